"""The relay's memory between commit and confirm: so many messages, and so many bytes of their bodies.

Whoever commits asks for room first, and what gets none waits in the database for the sweep. The bound in bytes is
exceeded by one message at most, and for what the sweep claims, whose sizes it learns only then, by one claim.
"""

from __future__ import annotations

from collections.abc import Sequence

from hopline.database import Send

GUESSED_BYTES = 16_384
"""Of a body in the outbox, until the sweep has seen some."""


class Window:
    """Counts what is held. For one event loop."""

    def __init__(self, *, messages: int, bytes_: int) -> None:
        self._messages = messages
        self._bytes = bytes_
        self._mean_bytes = GUESSED_BYTES

    def take(self, sends: Sequence[Send]) -> int:
        """Makes room for as many of them as there is room for, from the first on; returns how many."""
        taken = 0
        for send in sends[: max(0, self._messages)]:
            if self._bytes <= 0:
                break
            self._bytes -= len(send.envelope.body)
            taken += 1
        self._messages -= taken
        return taken

    def give(self, sends: Sequence[Send]) -> None:
        """They are not held any more."""
        self._messages += len(sends)
        self._bytes += sum(len(send.envelope.body) for send in sends)

    def claimable(self, most: int) -> int:
        """How many rows may be claimed, by the sizes of those that were claimed before."""
        return max(0, min(most, self._messages, -(-self._bytes // self._mean_bytes)))

    def hold(self, claimed: Sequence[Send]) -> None:
        """Rows that were claimed are held, whatever their size."""
        if claimed:
            held = sum(len(send.envelope.body) for send in claimed)
            self._mean_bytes = max(1, held // len(claimed))
            self._messages -= len(claimed)
            self._bytes -= held
