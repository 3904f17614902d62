"""How long to wait before RabbitMQ is tried again, and at which host. Pure but for the shuffle.

A failure that passes by itself is tried again soon. A refusal (login, virtual host, permission, certificate) lasts
until a person acts, so it is tried again for ever and seldom.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from hopline import amqp

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_CAP_SECONDS = 10.0
REFUSED_FIRST_SECONDS = 1.0
REFUSED_CAP_SECONDS = 60.0
"""A refusal is mended by a person: after the mend the link needs at most this long."""

Host = tuple[str, int]

_REFUSALS = (
    amqp.AuthenticationFailed,
    amqp.NotAllowed,
    amqp.InvalidPath,
    amqp.TLSFailed,
    amqp.UsageError,
    amqp.AccessRefused,
    amqp.NotFound,
    amqp.ResourceLocked,
)


def backoff_seconds(failures: int, chance: float) -> float:
    """Full jitter: evenly between nothing and a bound that doubles with each failure (`chance` is in [0, 1))."""
    return chance * min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 16))


def pause_seconds(failures: int, error: BaseException, chance: float) -> float:
    """The pause after this error, which was the last of so many failures in a row."""
    if isinstance(error, _REFUSALS):
        bound = min(REFUSED_CAP_SECONDS, REFUSED_FIRST_SECONDS * 2.0 ** min(failures, 16))
        return bound * (0.5 + chance / 2)
    return backoff_seconds(failures, chance)


class Hosts:
    """The hosts of a URL in an order of this process's own, so that many processes do not all choose the first.

    A host that fails is left for the next one. A login is no proof that a host works: whoever uses it decides.
    """

    def __init__(self, hosts: Sequence[Host], shuffle: Callable[[list[Host]], object] = random.shuffle) -> None:
        self._hosts = list(hosts)
        shuffle(self._hosts)
        self._at = 0

    @property
    def current(self) -> Host:
        """The host to try now."""
        return self._hosts[self._at]

    def failed(self) -> None:
        """The current host failed: the next one is to be tried."""
        self._at = (self._at + 1) % len(self._hosts)

    def rounds(self, failures: int) -> int:
        """How often each of the hosts has been tried after so many failures in a row."""
        return failures // len(self._hosts)
