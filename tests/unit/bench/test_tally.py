from __future__ import annotations

import time
from pathlib import Path

from bench.tally import Tally


def test_what_one_process_counts_another_reads(tmp_path: Path) -> None:
    worker, reader = Tally(tmp_path / "tally"), Tally(tmp_path / "tally")
    sent_at = time.monotonic() - 1.0

    worker.hit(sent_at)
    worker.hit(sent_at - 1.0)

    assert reader.count == 2
    first, second = reader.seconds()
    assert 1.0 <= first < second
    assert reader.seconds(1) == [second]


def test_a_tally_goes_on_where_the_one_before_it_stopped(tmp_path: Path) -> None:
    Tally(tmp_path / "tally").hit(time.monotonic())

    Tally(tmp_path / "tally").hit(time.monotonic())

    assert Tally(tmp_path / "tally").count == 2
