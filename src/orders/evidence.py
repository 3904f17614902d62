"""Whether refusals of the session are the session's, and refusals of mails the mails'. Pure; one for each mailer.

A reply can be read wrongly (replies.py), and a server may say anything. Two rules bound what a wrong reading does:

1. A recipient whose mail meets the end of a session twice, while other mails are taken in between, is no session:
   that mail spends an attempt. So one mail cannot pause the queue for ever.
2. IN_A_ROW different recipients whose refusals are unclear, without a mail taken in between, are no refusals of mails:
   every further one pauses the queue. So a server that refuses everything does not park every mail that waits.

Both forget when the process ends.
"""

from __future__ import annotations

from typing import Final

IN_A_ROW: Final = 5
"""Recipients. So many mails are parked at most by a server that refuses everything and does not say why."""
REMEMBERED: Final = 1_024
"""Recipients whose session ended; the one that was noted first is forgotten."""


class Evidence:
    """What the server did with the mails of one mailer."""

    def __init__(self) -> None:
        self._taken = 0
        self._ended: dict[str, int] = {}
        """By recipient: how many mails had been taken when its session ended."""
        self._refused: set[str] = set()
        """Recipients since the last mail that was taken."""

    def taken(self, to: str) -> None:
        """The server took a mail."""
        self._taken += 1
        self._refused.clear()
        self._ended.pop(to, None)

    def blames_mail(self, to: str) -> bool:
        """The session ended at a mail to this recipient; True if it is the mail's fault (rule 1)."""
        before = self._ended.pop(to, self._taken)
        self._ended[to] = self._taken
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        return before < self._taken

    def blames_server(self, to: str) -> bool:
        """A mail to this recipient was refused, for an unclear reason; True if it is the server's fault (rule 2)."""
        if len(self._refused) < IN_A_ROW:
            self._refused.add(to)
        return to not in self._refused
