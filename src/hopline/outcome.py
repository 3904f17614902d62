"""The four ways in which the handling of one delivery can end. A delivery ends in exactly one of them.

A handler may return one itself (expected failures are data, not exceptions); otherwise pure code decides
from the error, the attempt and the policy (see retry.py). The worker matches them once, when it settles.

An outcome checks its values where it is made, which is in the handler: UsageError is then an error of that handler
for that message, and a worker can store every outcome that exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from hopline.errors import UsageError

LONGEST_DELAY_SECONDS = 366 * 86_400.0
"""Longest delay that is stored. What is due later than in a year is a date in the program's own tables."""


@dataclass(frozen=True, slots=True)
class Done:
    """Handled. `note` is one line for the timeline, such as the answer of a mail server."""

    note: str = ""

    def __post_init__(self) -> None:
        _check_text("Done(note)", self.note)


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed for now: handle again after the delay; spends an attempt."""

    delay_seconds: float
    reason: str = ""

    def __post_init__(self) -> None:
        checked_delay("Retry(delay_seconds)", self.delay_seconds)
        _check_text("Retry(reason)", self.reason)


@dataclass(frozen=True, slots=True)
class Defer:
    """Not now: handle again after the delay; spends no attempt."""

    delay_seconds: float
    reason: str = ""
    pause: bool = False
    """What the handler needs is down: its queue pauses, for a time that grows, and the message waits as long."""

    def __post_init__(self) -> None:
        checked_delay("Defer(delay_seconds)", self.delay_seconds)
        _check_text("Defer(reason)", self.reason)
        if not isinstance(self.pause, bool):
            raise UsageError(f"Defer(pause) is True or False, not {_shown(self.pause)}")


@dataclass(frozen=True, slots=True)
class Dead:
    """Given up: parked as a dead letter, where a person can see and mend it."""

    reason: str
    detail: str = ""

    def __post_init__(self) -> None:
        _check_text("Dead(reason)", self.reason)
        _check_text("Dead(detail)", self.detail)
        if not self.reason.strip():
            raise UsageError("Dead(reason) is empty: give a word or a short sentence that says why")


Outcome: TypeAlias = Done | Retry | Defer | Dead


def checked_delay(what: str, seconds: object) -> float:
    """Returns a delay in seconds that every database can add to its clock.

    UsageError unless it is a number from 0 to LONGEST_DELAY_SECONDS.
    """
    if (
        isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= LONGEST_DELAY_SECONDS
    ):  # false for nan
        return float(seconds) + 0.0  # -0.0 is 0.0
    raise UsageError(
        f"{what} is a number of seconds from 0 to {LONGEST_DELAY_SECONDS:.0f} (a year), not {_shown(seconds)}; "
        "keep what is due later than that in a table of your own"
    )


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{what} is a text, not {_shown(value)}; write str(…)")


def _shown(value: object) -> str:
    """A short description of a value of any type, without calling the value's own code."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value)
    return f"a {type(value).__name__}"
