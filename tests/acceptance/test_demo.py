"""`orders demo` as a user runs it: from outside, with the report as the answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle
from tests.support.processes import is_alive, run, taken

pytestmark = pytest.mark.timeout(240)
FIGURES = {
    "sent", "accepted", "refused_at_the_edge", "confirmed", "rejected", "emails_delivered", "missing", "duplicated",
    "orders_per_second", "post_p50_ms", "post_p99_ms", "confirmed_p50_ms", "confirmed_p99_ms", "ran_on",
}  # fmt: skip


def report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text())
    assert report.keys() >= FIGURES
    assert report["accepted"] + report["refused_at_the_edge"] == report["sent"]
    assert report["confirmed"] + report["rejected"] == report["accepted"] == report["emails_delivered"]
    assert (report["missing"], report["duplicated"]) == (0, 0)
    assert 0 < report["post_p50_ms"] <= report["post_p99_ms"]
    assert 0 < report["confirmed_p50_ms"] <= report["confirmed_p99_ms"]
    return report


async def test_it_works_where_the_usual_ports_are_taken_and_twice_in_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    for turn in ("first", "second"):
        with taken(5672, 15672, 5432, 8000, 1025, 4369):
            done = await run("demo", "--orders", 300, "--folder", folder, "--report", tmp_path / turn)

        assert done.returncode == 0, done.stdout + done.stderr
        assert "Every order accounted for" in done.stdout
        assert report_of(tmp_path / turn)["sent"] == 300
        assert not (folder / "run.json").exists()


async def test_two_checkouts_at_once_do_not_meet(tmp_path: Path) -> None:
    runs = [
        run("demo", "--orders", 200, "--workers", 2, "--folder", tmp_path / name, "--report", tmp_path / f"{name}.json")
        for name in ("one", "two")
    ]

    for done in await asyncio.gather(*runs):
        assert done.returncode == 0, done.stdout + done.stderr

    for name in ("one", "two"):
        assert report_of(tmp_path / f"{name}.json")["ran_on"]["workers"] == 2


async def test_it_runs_on_postgres_and_the_oracle_agrees(tmp_path: Path, postgres_database_url: str) -> None:
    words = ("--database", postgres_database_url, "--report", tmp_path / "report")

    done = await run("demo", "--orders", 300, "--folder", tmp_path / "stack", *words)

    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(tmp_path / "report")
    states = await oracle.states(postgres_database_url)
    mails = oracle.Ledger(tmp_path / "stack" / "demo" / "mail.ndjson").mails()
    assert len(states) == report["accepted"]
    assert set(states.values()) == oracle.TERMINAL
    assert mails.keys() == states.keys()
    assert {len(sent) for sent in mails.values()} == {1}


async def test_a_rate_is_kept(tmp_path: Path) -> None:
    done = await run(
        "demo", "--orders", 60, "--rate", 30, "--folder", tmp_path / "stack", "--report", tmp_path / "report"
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert report_of(tmp_path / "report")["orders_per_second"] < 35


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--orders", "0"), "--orders"),
        (("--rate", "-1"), "--rate"),
        (("--database", "mysql://x"), "postgresql+asyncpg"),
        (("--database", "postgresql+asyncpg://nobody@127.0.0.1:9/none"), "database"),
    ],
)
async def test_a_bad_option_is_one_clear_line(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = await run("demo", "--folder", tmp_path / "stack", *words)

    assert done.returncode not in (0, 1)
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


async def test_everything_that_was_started_is_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    demo = asyncio.create_task(run("demo", "--orders", 2_000, "--rate", 100, "--folder", folder))
    while not (folder / "run.json").exists():
        assert not demo.done(), demo.result().stdout
        await asyncio.sleep(0.05)
    running = json.loads((folder / "run.json").read_text())
    pids = [role["pid"] for role in running["roles"]]
    assert all(map(is_alive, pids))

    os.kill(running["supervisor_pid"], signal.SIGINT)
    done = await demo

    assert done.returncode == 130
    assert "Interrupted" in done.stdout
    assert not any(map(is_alive, pids))
