"""The history of rates and latencies, for charts of the last 15 minutes, hour and day.

Each process counts what it does, and writes the counts with its heartbeat: one row an endpoint and step of 10 s, and
the same summed up in steps of 8 minutes, so that a day is read from few rows. Latencies are counted in slots that
double (below 1 ms, 2 ms, 4 ms, …), so every quantile is an estimate within its slot. Steps are by the clock of the
process that counted. A step without work has no row. What cannot be written is kept for a while, then dropped: it is
for looking at, and proves nothing (audit.py does).
"""

from hopline.history.reading import WINDOWS, History, Point, Rate, Window, rates, read, succeeded
from hopline.history.recording import Recorder, purge, write

__all__ = ["WINDOWS", "History", "Point", "Rate", "Recorder", "Window", "purge", "rates", "read", "succeeded", "write"]
