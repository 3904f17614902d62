"""The four ways in which the handling of one delivery can end. A delivery ends in exactly one of them.

A handler may return one itself (expected failures are data, not exceptions); otherwise pure code decides
from the error, the attempt and the policy (see retry.py). The worker matches them once, when it settles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Done:
    """Handled. `note` is one line for the timeline, such as the answer of a mail server."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed for now: handle again after the delay; spends an attempt."""

    delay_seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Defer:
    """Not now: handle again after the delay; spends no attempt."""

    delay_seconds: float
    reason: str = ""
    pause: bool = False
    """What the handler needs is down: its queue pauses, for a time that grows, and the message waits as long."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Given up: parked as a dead letter, where a person can see and mend it."""

    reason: str
    detail: str = ""


Outcome: TypeAlias = Done | Retry | Defer | Dead
