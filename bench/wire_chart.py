"""The chart of `./dev bench wire`: each work's rates by client, with the client's CPU for one message."""

from typing import Any, Final

from bench.chart import Bar, bars
from bench.figures import spread

HEADS: Final = {
    "publish": "publish, each confirmed",
    "consume": "consume, acknowledged by the hundred",
    "consume decoded": "the same, with all properties decoded",
    "consume each": "consume, each acknowledged",
    "both": "publish and consume at once",
}
COLOURS: Final = {"hopline": "#2f81f7", "c": "#8c959f", "pika": "#c69026", "aio-pika": "#a475f9"}


def chart(report: dict[str, Any], labels: dict[str, str]) -> str:
    """The SVG of a report of wire.py; `labels` are the clients' names for people."""
    subtitle = (
        f"1 KiB, persistent, quorum queue, window 1000; median of {report['rounds']} rounds and their range; "
        f"µs: CPU of the client; {report['machine']}, Python {report['python']}"
    )
    groups = {_head(work, report): _bars(work, report, labels) for work in HEADS}
    return bars("Messages a second of one client", subtitle, groups)


def _head(work: str, report: dict[str, Any]) -> str:
    ratio = report["ratios"].get(f"{work.replace(' ', '_')}_vs_c")
    return f"{HEADS[work]}: hopline.amqp has {ratio:.2f} of C" if ratio else HEADS[work]


def _bars(work: str, report: dict[str, Any], labels: dict[str, str]) -> list[Bar]:
    found = []
    for client, works in report["clients"].items():
        figures = works[work]
        text = f"{figures['rate'] / 1000:.1f} k/s, {figures['client_us']:.1f} µs"
        found.append(Bar(labels[client], spread(figures["rates"]), text, COLOURS[client], ours=client == "hopline"))
    return found
