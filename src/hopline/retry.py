"""From (error, attempt, policy) to an outcome. Pure: no clock, no I/O; the random number is an argument.

An attempt is one delivery's run of the handler, with up to `immediate` more tries at once for what passes by
itself (a deadlock in a partner's database). Only when those fail too does the attempt count, and the message
comes back later. Delays grow by doubling from `first_seconds` to `cap_seconds`, spread by `jitter` so that what
failed together does not come back together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hopline.errors import DependencyDown, MessageError, UsageError
from hopline.outcome import Dead, Defer, Outcome, Retry


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed handler runs again."""

    attempts: int = 8
    """Attempts in all, the first one included, before the message is parked."""
    first_seconds: float = 1.0
    cap_seconds: float = 600.0
    jitter: float = 0.2
    """0 to 1: the part of each delay that is random; 0.2 spreads it over 80 % to 120 %."""
    immediate: int = 1
    """Tries at once after the first one of an attempt failed."""
    never: tuple[type[BaseException], ...] = ()
    """Errors that no retry can mend: parked at once."""
    pause: tuple[type[BaseException], ...] = ()
    """Errors that say that what the handler needs is down: its queue pauses, and no attempt is spent."""
    on: Mapping[type[BaseException], RetryPolicy] = field(default_factory=dict)
    """Other policies for some errors; the class that is nearest to the error's own counts."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_seconds < 0 or self.cap_seconds < self.first_seconds:
            raise UsageError("a RetryPolicy needs attempts >= 1 and 0 <= first_seconds <= cap_seconds")
        if not 0 <= self.jitter <= 1:
            raise UsageError(f"jitter is a part between 0 and 1, not {self.jitter}")
        if self.immediate < 0:
            raise UsageError(f"immediate is a number of tries, 0 or more, not {self.immediate}")

    def delay_seconds(self, attempt: int, random: float) -> float:
        """The wait after attempt number `attempt` (0 is the first) failed; `random` is in [0, 1)."""
        exponent = min(attempt, 62)  # 2**62 is far above any cap and still exact
        delay = min(self.cap_seconds, self.first_seconds * 2.0**exponent)
        return delay * (1 + self.jitter * (2 * random - 1))

    def longest_seconds(self) -> float:
        """The longest that all retries of one run can take; checked against the inbox retention."""
        own = sum(self.delay_seconds(attempt, 1.0) for attempt in range(self.attempts - 1))
        return max(own, *(policy.longest_seconds() for policy in self.on.values())) if self.on else own

    def of(self, error: BaseException) -> RetryPolicy:
        """The policy for an error."""
        return next((self.on[kind] for kind in type(error).__mro__ if kind in self.on), self)


def bounded(outcome: Outcome, attempt: int, policy: RetryPolicy) -> Outcome:
    """A handler may say Retry itself, but not more often than its policy allows."""
    if isinstance(outcome, Retry) and attempt + 1 >= policy.attempts:
        return Dead("exhausted", outcome.reason)
    return outcome


def decide(error: BaseException, attempt: int, policy: RetryPolicy, random: float) -> Outcome:
    """The outcome of a failed attempt (0 is the first): another one after a delay, a pause, or the end."""
    policy = policy.of(error)
    if isinstance(error, MessageError):
        return Dead(error.reason, str(error))
    if isinstance(error, policy.never):
        return Dead("permanent", str(error))
    if isinstance(error, (DependencyDown, *policy.pause)):
        return Defer(0.0, str(error), pause=True)
    if attempt + 1 >= policy.attempts:
        return Dead("exhausted", str(error))
    return Retry(policy.delay_seconds(attempt, random), str(error))


def again_at_once(error: BaseException, tries: int, policy: RetryPolicy) -> bool:
    """Whether an attempt whose try number `tries` (1 is the first) failed so is tried again at once.

    A deadline that has passed is not: it covers all tries of the attempt.
    """
    policy = policy.of(error)
    given: tuple[type[BaseException], ...] = (*policy.never, *policy.pause)
    return tries <= policy.immediate and not isinstance(error, (MessageError, DependencyDown, TimeoutError, *given))
