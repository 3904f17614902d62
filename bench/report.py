"""How results are kept and shown: JSON files, Markdown tables, and sections of docs/benchmarks.md that are made here.

A section stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; what is around it is a person's.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.figures import Spread
from bench.programs import ROOT

DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
IMAGES: Final = ROOT / "docs" / "img"


def parser(name: str, document: str) -> argparse.ArgumentParser:
    """With what all of these benchmarks take."""
    made = argparse.ArgumentParser(
        prog=f"./dev bench {name}", description=document, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (3)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    made.add_argument(
        "--publish", action="store_true", help="write table and charts into docs/benchmarks.md and docs/img"
    )
    return made


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned for those who read the source."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def rounds(count: int) -> str:
    """What a figure of so many rounds is."""
    return "one round" if count == 1 else f"median of {count} rounds and their range"


def shown(value: Spread | float, digits: int = 0) -> str:
    """A median with what the rounds gave in brackets; one figure without."""
    if not isinstance(value, Spread):
        return f"{value:,.{digits}f}"
    if value.low == value.high:
        return f"{value.median:,.{digits}f}"
    return f"{value.median:,.{digits}f} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def conditions(machine: Mapping[str, Any], command: str) -> str:
    """One line under a table: when, where, and with which command."""
    versions = ", ".join(
        f"{name} {value}"
        for name, value in machine.items()
        if name not in {"at", "cpu", "cores", "system", "load_before"}
    )
    return (
        f"{machine['at']}, `{command}`: {machine['cores']} cores ({machine['cpu']}), {machine['system']}, {versions}; "
        f"load average before the run {machine['load_before'][0]}."
    )


def command(name: str, arguments: Sequence[str]) -> str:
    """What was typed, without the options that change no figure."""
    words = list(arguments)
    if "--json" in words:
        del words[words.index("--json") : words.index("--json") + 2]
    return " ".join(("./dev bench", name, *(word for word in words if word != "--publish")))


def give(
    name: str, text: str, results: Mapping[str, Any], charts: Mapping[str, str], options: argparse.Namespace
) -> None:
    """Prints the text, writes the JSON if there is a file for it, and publishes text and charts if told to."""
    sys.stdout.write(text + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.publish:
        images = "\n".join(f"![{chart}](img/{chart}.svg)" for chart in charts)
        publish(name, f"{text}\n\n{images}", charts)


def publish(name: str, text: str, charts: Mapping[str, str]) -> None:
    """Puts the text into its section of docs/benchmarks.md, and the charts beside it, by their names."""
    IMAGES.mkdir(exist_ok=True)
    for chart, svg in charts.items():
        (IMAGES / f"{chart}.svg").write_text(svg)
    document = DOCUMENT.read_text()
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(document) is None:
        raise SystemExit(f"bench: {DOCUMENT} has no section {begin} … {end}")
    DOCUMENT.write_text(pattern.sub(lambda _: section, document))
