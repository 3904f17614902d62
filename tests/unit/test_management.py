from __future__ import annotations

import io
import itertools

import pytest

from hopline import management


def test_an_answer_is_read_whole() -> None:
    assert management._whole(io.BufferedReader(io.BytesIO(b"[1]"))) == b"[1]"


def test_an_answer_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 4.0)
    monkeypatch.setattr("hopline.management.time.monotonic", lambda: next(clock))

    with pytest.raises(TimeoutError, match="not complete within 10 s"):
        management._whole(Endless())


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "ANSWER_BYTES", 10)

    with pytest.raises(ValueError, match="more than 10 bytes"):
        management._whole(Endless())


class Endless:
    """An answer of a few bytes again and again."""

    def read1(self, _size: int) -> bytes:
        return b"four"
