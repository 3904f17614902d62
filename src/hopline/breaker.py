"""The circuit breaker of one handler: whether what it needs is taken to be up. Pure; time is an argument.

    closed ──a message finds it down──▶ open ──its time is over──▶ probing ──one message is handled──▶ closed
                                          ▲                           │
                                          └──────found down again─────┘   (for twice as long, up to the cap)

While open nothing is handled; while probing one message is tried at a time. A pause also ends, from any state, when
the same handler succeeds in another process; and a probing ends when no message comes that could be tried. Then nobody
knows, so the next failure pauses for twice as long as the last one did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "probing"]


@dataclass(slots=True)
class Breaker:
    """Times are seconds of one monotonic clock."""

    first_seconds: float = 1.0
    cap_seconds: float = 60.0
    state: State = "closed"
    reason: str = ""
    """What the handler said when it found it down."""
    until: float = 0.0
    """While open: when a message may be tried."""
    openings: int = 0
    """How often in a row it was found down."""

    def found_down(self, reason: str, began: float, now: float, random: float) -> bool:
        """A message whose handling began then found it down; True if that opens it, for longer than before."""
        if self.state == "open" or self._knows_better(began):
            return False
        pause = min(self.cap_seconds, self.first_seconds * 2.0 ** min(self.openings, 30))
        self.state, self.reason, self.openings = "open", reason, self.openings + 1
        self.until = now + pause * (0.8 + 0.4 * random)
        return True

    def waited(self, now: float) -> bool:
        """Time has passed; True if it is over, and messages are tried one at a time."""
        if self.state != "open" or now < self.until:
            return False
        self.state = "probing"
        return True

    def found_up(self, began: float) -> bool:
        """A message whose handling began then was handled; True if that closes it."""
        if self.state == "closed":
            self.openings = 0
        if self.state != "probing" or self._knows_better(began):
            return False
        self.state, self.reason, self.openings = "closed", "", 0
        return True

    def found_up_elsewhere(self) -> bool:
        """Another process handled a message since it was last found down; True if that closes it."""
        closes = self.state != "closed"
        self.state, self.reason, self.openings = "closed", "", 0
        return closes

    def nothing_to_probe(self) -> bool:
        """No message came that could be tried; True if that closes it. How often it was found down is kept."""
        if self.state != "probing":
            return False
        self.state, self.reason = "closed", ""
        return True

    def _knows_better(self, began: float) -> bool:
        """Whether a message began before the probing, so that it proves nothing of now."""
        return self.state == "probing" and began < self.until

    def remaining_seconds(self, now: float) -> float:
        """How long it stays open; 0 if it is not."""
        return max(0.0, self.until - now) if self.state == "open" else 0.0
