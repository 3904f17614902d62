"""From (error, attempt, policy) to an outcome. Pure: no clock, no I/O; the random number is an argument.

Delays grow by doubling from `first_seconds` to `cap_seconds`, spread by `jitter` so that what failed
together does not come back together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hopline.errors import MessageError, UsageError
from hopline.outcome import Dead, Outcome, Retry


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed handler runs again."""

    attempts: int = 8
    """Runs of the handler in all, the first one included, before the message is parked."""
    first_seconds: float = 1.0
    cap_seconds: float = 600.0
    jitter: float = 0.2
    """0 to 1: the part of each delay that is random; 0.2 spreads it over 80 % to 120 %."""
    never: tuple[type[BaseException], ...] = field(default=())
    """Errors that no retry can mend: parked at once."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_seconds < 0 or self.cap_seconds < self.first_seconds:
            raise UsageError("a RetryPolicy needs attempts >= 1 and 0 <= first_seconds <= cap_seconds")
        if not 0 <= self.jitter <= 1:
            raise UsageError(f"jitter is a part between 0 and 1, not {self.jitter}")

    def delay_seconds(self, attempt: int, random: float) -> float:
        """The wait after attempt number `attempt` (0 is the first) failed; `random` is in [0, 1)."""
        exponent = min(attempt, 62)  # 2**62 is far above any cap and still exact
        delay = min(self.cap_seconds, self.first_seconds * 2.0**exponent)
        return delay * (1 + self.jitter * (2 * random - 1))

    def longest_seconds(self) -> float:
        """The longest that all retries of one run can take; checked against the inbox retention."""
        return sum(self.delay_seconds(attempt, 1.0) for attempt in range(self.attempts - 1))


def bounded(outcome: Outcome, attempt: int, policy: RetryPolicy) -> Outcome:
    """A handler may say Retry itself, but not more often than its policy allows."""
    if isinstance(outcome, Retry) and attempt + 1 >= policy.attempts:
        return Dead("exhausted", outcome.reason)
    return outcome


def decide(error: BaseException, attempt: int, policy: RetryPolicy, random: float) -> Outcome:
    """The outcome of a failed attempt (0 is the first): another try after a delay, or the end."""
    if isinstance(error, MessageError):
        return Dead(error.reason, str(error))
    if isinstance(error, policy.never):
        return Dead("permanent", str(error))
    if attempt + 1 >= policy.attempts:
        return Dead("exhausted", str(error))
    return Retry(policy.delay_seconds(attempt, random))
