from __future__ import annotations

import asyncio

import pytest

from hopline.service import SAME_WISH_SECONDS, Stopping


@pytest.mark.parametrize(
    ("after_seconds", "at_once"),
    [
        ((0.0,), False),
        ((0.0, 0.1), False),
        ((0.0, 0.0, 1.0, SAME_WISH_SECONDS), False),
        ((0.0, SAME_WISH_SECONDS + 0.1), True),
        ((0.0, 0.1, SAME_WISH_SECONDS + 0.1), True),
    ],
)
def test_signals_close_together_are_one_wish(after_seconds: tuple[float, ...], at_once: bool) -> None:
    stop, ended = asyncio.Event(), []
    stopping = Stopping(stop, lambda: ended.append(True))

    for after in after_seconds:
        stopping.told(1000.0 + after)

    assert stop.is_set()
    assert bool(ended) is at_once
