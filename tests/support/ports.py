"""Free TCP ports on 127.0.0.1."""

from __future__ import annotations

import random
import socket

# Below the ephemeral ports, so that no outgoing connection takes one while its server is down.
_RANGE = range(20_000, 32_000)


def free_port() -> int:
    """A port that nothing listens on now. Somebody may take it before its user does: unlikely, not impossible."""
    for port in random.sample(_RANGE, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
