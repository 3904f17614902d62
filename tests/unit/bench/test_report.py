from __future__ import annotations

from pathlib import Path

import pytest
from bench import report
from bench.figures import Spread


def test_a_table_is_markdown_with_aligned_columns() -> None:
    shown = report.table(("", "rate"), [("a side", "1"), ("b", "23,456")])

    assert shown.splitlines() == [
        "|        | rate   |",
        "|--------|--------|",
        "| a side | 1      |",
        "| b      | 23,456 |",
    ]


def test_a_figure_is_shown_with_its_range_unless_there_is_none() -> None:
    assert report.shown(Spread(1234.5, 1000.0, 2000.0)) == "1,234 (1,000 to 2,000)"
    assert report.shown(Spread(1.25, 1.25, 1.25), 2) == "1.25"


def test_the_command_is_told_without_what_changes_no_figure() -> None:
    arguments = ["--seconds", "3", "--json", "/some/file", "--publish", "--rounds", "2"]

    assert report.command("flow", arguments) == "./dev bench flow --seconds 3 --rounds 2"


def test_a_section_is_replaced_and_the_rest_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("before\n<!-- bench:flow -->\nold\n<!-- /bench:flow -->\nafter\n<!-- bench:tasks -->\n")
    monkeypatch.setattr(report, "DOCUMENT", document)
    monkeypatch.setattr(report, "IMAGES", tmp_path / "img")

    report.publish("flow", "new \\1 text\n", {"flow": "<svg/>"})

    section = "before\n<!-- bench:flow -->\nnew \\1 text\n<!-- /bench:flow -->\nafter\n<!-- bench:tasks -->\n"
    assert document.read_text() == section
    assert (tmp_path / "img" / "flow.svg").read_text() == "<svg/>"


def test_a_document_without_the_section_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("nothing here\n")
    monkeypatch.setattr(report, "DOCUMENT", document)
    monkeypatch.setattr(report, "IMAGES", tmp_path / "img")

    with pytest.raises(SystemExit, match="has no section"):
        report.publish("flow", "new", {})
    assert document.read_text() == "nothing here\n"
