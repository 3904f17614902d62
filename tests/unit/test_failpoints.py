from __future__ import annotations

import inspect

import pytest

from hopline import failpoints
from hopline.errors import UsageError
from hopline.failpoints import POINTS, Failpoint, Point, install, parse


class Steps:
    """Something to put failpoints into."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def plain(self, word: str) -> str:
        self.seen.append(word)
        return word.upper()

    async def slow(self, word: str) -> str:
        return self.plain(word)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Steps with points `plain` and `slow`, whose action is to note the moment."""
    made = Steps()
    points = {
        "plain": Point(__name__, "Steps", "plain", "before"),
        "slow": Point(__name__, "Steps", "slow", "after"),
    }
    monkeypatch.setattr(failpoints, "POINTS", points)
    monkeypatch.setattr(failpoints, "_ACTIONS", {"kill": lambda: made.seen.append("killed")})
    for name in points:
        monkeypatch.setattr(Steps, name, getattr(Steps, name))  # so that what is installed is undone
    return made


@pytest.mark.parametrize("name", POINTS)
def test_every_point_is_a_method_that_exists(name: str) -> None:
    point = POINTS[name]

    assert inspect.isfunction(inspect.getattr_static(point.target, point.method))


def test_entries_are_parsed() -> None:
    assert parse("worker.before-commit=kill@3, relay.after-confirm=stop") == [
        Failpoint("worker.before-commit", "kill", 3),
        Failpoint("relay.after-confirm", "stop"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("worker.befor-commit=kill", "no failpoint 'worker.befor-commit'; there are worker.before-commit"),
        ("worker.before-commit", "cannot ''"),
        ("worker.before-commit=crash", "cannot 'crash'; it can kill, stop, exit"),
        ("worker.before-commit=kill@0", "counts from 1"),
        ("worker.before-commit=kill@often", "counts from 1"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text)


async def test_without_the_variable_nothing_is_wrapped() -> None:
    before = [inspect.getattr_static(point.target, point.method) for point in POINTS.values()]

    installed = install({"HOPLINE_LOG_LEVEL": "info"})

    assert installed == []
    assert [inspect.getattr_static(point.target, point.method) for point in POINTS.values()] == before


async def test_a_point_acts_at_its_time_only_and_the_method_works_as_before(steps: Steps) -> None:
    install({failpoints.VARIABLE: "plain=kill@2"})

    answers = [steps.plain(word) for word in ("one", "two", "three")]

    assert answers == ["ONE", "TWO", "THREE"]
    assert steps.seen == ["one", "killed", "two", "three"]


async def test_a_point_after_a_coroutine_acts_when_it_has_run(steps: Steps) -> None:
    install({failpoints.VARIABLE: "slow=kill"})

    answer = await steps.slow("one")

    assert answer == "ONE"
    assert steps.seen == ["one", "killed"]
