"""From (error, attempt, policy) to an outcome. Pure: no clock, no I/O; the random number is an argument.

An attempt is one delivery's run of the handler, with up to `immediate` more tries at once for what passes by
itself (a deadlock in a partner's database). Only when those fail too does the attempt count, and the message
comes back later. Delays grow by doubling from `first_seconds` to `cap_seconds`, spread by `jitter` so that what
failed together does not come back together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hopline.errors import DependencyDown, MessageError, OutboxFull, UsageError, text_of
from hopline.outcome import LONGEST_DELAY_SECONDS, Dead, Defer, Outcome, Retry, checked_delay

ATTEMPTS_MAX = 10_000
"""Most attempts of a policy; with the shortest delays they are spent within a day."""


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
    never: Sequence[type[BaseException]] = ()
    """Error classes that no retry can mend: parked at once. Kept as a tuple."""
    pause: Sequence[type[BaseException]] = ()
    """Error classes that say that what the handler needs is down: its queue pauses, no attempt is spent. A tuple."""
    on: Mapping[type[BaseException], RetryPolicy] = field(default_factory=dict)
    """Other policies for some errors; the class that is nearest to the error's own counts."""

    def __post_init__(self) -> None:
        if not _is_count(self.attempts, 1):
            raise UsageError(f"RetryPolicy(attempts) is a whole number from 1 to {ATTEMPTS_MAX}")
        if not _is_count(self.immediate, 0):
            raise UsageError(f"RetryPolicy(immediate) is a number of tries from 0 to {ATTEMPTS_MAX}")
        first = checked_delay("RetryPolicy(first_seconds)", self.first_seconds)
        if checked_delay("RetryPolicy(cap_seconds)", self.cap_seconds) < first:
            raise UsageError("a RetryPolicy needs first_seconds <= cap_seconds")
        if not _is_part(self.jitter):
            raise UsageError("RetryPolicy(jitter) is a part between 0 and 1")
        object.__setattr__(self, "never", _classes("never", self.never))
        object.__setattr__(self, "pause", _classes("pause", self.pause))
        if not isinstance(self.on, Mapping):
            raise UsageError("RetryPolicy(on) is a mapping: error class -> RetryPolicy")
        _classes("on", tuple(self.on))
        if not all(isinstance(policy, RetryPolicy) for policy in self.on.values()):
            raise UsageError("RetryPolicy(on) maps each error class to a RetryPolicy")

    def delay_seconds(self, attempt: int, random: float) -> float:
        """The wait after attempt number `attempt` (0 is the first) failed; `random` is in [0, 1)."""
        exponent = min(attempt, 62)  # 2**62 is far above any cap and still exact
        delay = min(self.cap_seconds, self.first_seconds * 2.0**exponent)
        return min(LONGEST_DELAY_SECONDS, delay * (1 + self.jitter * (2 * random - 1)))

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
    """The outcome of a failed attempt (0 is the first): another one after a delay, a pause, or the end.

    Total: any exception gives an outcome. An exit or a cancellation by a handler is an error like any other.
    """
    policy = policy.of(error)
    text = text_of(error)
    if isinstance(error, MessageError):
        return Dead(_reason(error.reason), text)
    if isinstance(error, tuple(policy.never)):
        return Dead("permanent", text)
    if isinstance(error, (DependencyDown, OutboxFull, *policy.pause)):
        return Defer(0.0, text, pause=True)
    if attempt + 1 >= policy.attempts:
        return Dead("exhausted", text)
    return Retry(policy.delay_seconds(attempt, random), text)


def again_at_once(error: BaseException, tries: int, policy: RetryPolicy) -> bool:
    """Whether an attempt whose try number `tries` (1 is the first) failed so is tried again at once.

    A deadline that has passed is not, because it covers all tries of the attempt; nor is an exit or a cancellation.
    """
    policy = policy.of(error)
    given = (*policy.never, *policy.pause)
    if not isinstance(error, Exception):
        return False
    return tries <= policy.immediate and not isinstance(
        error, (MessageError, DependencyDown, OutboxFull, TimeoutError, *given)
    )


def _reason(given: object) -> str:
    """The reason of a MessageError, whose class may be a program's own."""
    return given if isinstance(given, str) and given.strip() else MessageError.reason


def _is_part(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= ATTEMPTS_MAX


def _classes(name: str, given: object) -> tuple[type[BaseException], ...]:
    """Error classes as the tuple that `isinstance` takes; one class alone is fine too."""
    classes = (given,) if isinstance(given, type) else given
    if isinstance(classes, Sequence | set | frozenset) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in classes
    ):
        return tuple(classes)
    raise UsageError(f"RetryPolicy({name}) takes error classes, such as {name}=(ValueError,)")
