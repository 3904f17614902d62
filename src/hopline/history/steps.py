"""What a row of the history holds, in which order, and what its slots of latency mean. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hopline.schema import HISTORY_SLOTS, aged, ran

STEP_SECONDS: Final = 10
COARSE_SECONDS: Final = 480
KEPT_SECONDS: Final = {STEP_SECONDS: 2 * 3_600, COARSE_SECONDS: 25 * 3_600}
"""For how long the rows of each step are kept."""
LAG_SECONDS: Final = 12
"""A step is complete in the table so long after its end: a heartbeat, and a little."""

COUNTS: Final = ("done", "retried", "dead", "deferred", "accepted", "published")
RAN: Final = len(COUNTS)
AGED: Final = RAN + HISTORY_SLOTS
COLUMNS: Final = (
    *COUNTS,
    *(ran(slot) for slot in range(HISTORY_SLOTS)),
    *(aged(slot) for slot in range(HISTORY_SLOTS)),
)
"""The order of the numbers of one row in memory."""
SENDING: Final = ""
"""The endpoint of what a process sent."""


def slot_of(seconds: float) -> int:
    """The slot of a latency: 0 is below 1 ms, and each next one ends at twice as much."""
    return min(int(seconds * 1000).bit_length(), HISTORY_SLOTS - 1) if seconds > 0 else 0


def quantile(slots: Sequence[int], part: float) -> float | None:
    """An estimate in seconds of the value below which that part lies, evenly spread within its slot."""
    wanted = part * sum(slots)
    below = 0
    for slot, count in enumerate(slots):
        if count and below + count >= wanted:
            start, end = (2.0 ** (slot - 1) if slot else 0.0), 2.0**slot
            return (start + (end - start) * (wanted - below) / count) / 1000
        below += count
    return None


def known_until(epoch_seconds: float) -> int:
    """The end of the last step that all processes have written by that time."""
    return int(epoch_seconds - LAG_SECONDS) // STEP_SECONDS * STEP_SECONDS
