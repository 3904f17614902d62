"""The sampler with a scripted measurement: when it measures, what it tells, and that it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import cast

import pytest

from hopline.console import live as sampler
from hopline.console.live import LONGEST_SECONDS, Live, Sample, TooManyStreams, pause_seconds
from hopline.errors import DatabaseUnavailable
from hopline.history import Rate
from hopline.status import Status
from tests.support.waiting import wait_until

OFTEN = 0.001
SELDOM = 3_600.0


class Script:
    """What is measured, told from outside."""

    def __init__(self) -> None:
        self.measured = 0
        self.trouble: Exception | None = None
        self.hold: asyncio.Event | None = None

    async def __call__(self) -> tuple[Status, Mapping[str, Rate]]:
        self.measured += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.trouble is not None:
            raise self.trouble
        return cast("Status", self.measured), {}


@pytest.fixture
def script() -> Script:
    return Script()


async def following(samples: AsyncIterator[Sample | None]) -> Sample | None:
    async with asyncio.timeout(5):
        return await anext(samples)


async def test_it_measures_only_while_somebody_listens(script: Script) -> None:
    live = Live(script, seconds=OFTEN, streams=10)
    assert live.known is None

    with live.listening() as samples:
        for _ in range(3):
            assert await following(samples) is not None
    await wait_until(lambda: live._loop is None)
    measured = script.measured

    assert measured >= 3
    with live.listening() as samples:
        await following(samples)
        await wait_until(lambda: script.measured > measured)
    await live.close()


async def test_those_who_ask_at_once_share_one_measurement(script: Script) -> None:
    live = Live(script, seconds=SELDOM, streams=10)
    script.hold = asyncio.Event()
    asking = [asyncio.create_task(live.sample()) for _ in range(20)]
    await wait_until(lambda: script.measured == 1)
    script.hold.set()

    found = await asyncio.gather(*asking)

    assert {id(one) for one in found} == {id(found[0])}
    assert await live.sample() is found[0]
    assert script.measured == 1
    await live.close()


async def test_who_asked_and_went_away_does_not_stop_the_measurement_of_the_others(script: Script) -> None:
    live = Live(script, seconds=SELDOM, streams=10)
    script.hold = asyncio.Event()
    first, second = asyncio.create_task(live.sample()), asyncio.create_task(live.sample())
    await wait_until(lambda: script.measured == 1)

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    script.hold.set()

    assert (await second).status is not None
    await live.close()


async def test_what_cannot_be_measured_is_told_and_the_streams_go_on(script: Script) -> None:
    live = Live(script, seconds=OFTEN, streams=10)
    with live.listening() as samples:
        for trouble in (DatabaseUnavailable("the disk is gone"), ValueError("unforeseen")):
            script.trouble = trouble
            sample = await following(samples)
            told = (type(trouble).__name__, str(trouble))
            while sample is None or not any(text in sample.trouble for text in told):
                sample = await following(samples)
            assert sample.status is None
        script.trouble = None
        sample = await following(samples)
        while sample is None or sample.status is None:
            sample = await following(samples)
        assert sample.trouble == ""
    await live.close()


async def test_a_measurement_has_a_deadline(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MEASURE_SECONDS", 0.01)
    script.hold = asyncio.Event()
    live = Live(script, seconds=SELDOM, streams=10)

    assert "no answer within" in (await live.sample()).trouble
    await live.close()


async def test_a_stream_without_news_says_that_it_is_alive(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "HEARTBEAT_SECONDS", 0.01)
    live = Live(script, seconds=SELDOM, streams=10)
    with live.listening() as samples:
        assert await following(samples) is not None
        while await following(samples) is not None:
            pass
    await live.close()


async def test_there_is_room_for_so_many_streams_and_again_when_one_ends(script: Script) -> None:
    live = Live(script, seconds=OFTEN, streams=2)
    with live.listening():
        with live.listening():
            with pytest.raises(TooManyStreams, match="2 pages are live already"):
                live.check_room()
            with pytest.raises(TooManyStreams), live.listening():
                pass
        live.check_room()
    await live.close()


async def test_closing_ends_every_stream_and_what_is_being_measured(script: Script) -> None:
    live = Live(script, seconds=OFTEN, streams=10)
    script.hold = asyncio.Event()
    with live.listening() as first, live.listening() as second:
        waiting = [asyncio.create_task(_all(samples)) for samples in (first, second)]
        await wait_until(lambda: script.measured == 1)

        await live.close()

        async with asyncio.timeout(5):
            assert await asyncio.gather(*waiting) == [[], []]


async def _all(samples: AsyncIterator[Sample | None]) -> list[Sample | None]:
    return [sample async for sample in samples]


@pytest.mark.parametrize(("took", "pause"), [(0.001, 2.0), (0.04, 2.0), (0.1, 5.0), (15.0, LONGEST_SECONDS)])
def test_what_takes_long_to_measure_is_measured_less_often(took: float, pause: float) -> None:
    assert pause_seconds(2.0, took) == pytest.approx(pause)
