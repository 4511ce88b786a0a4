"""A port for a server that takes a while to start, or that stops and comes back."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

LOWEST, HIGHEST = 15_000, 32_000


def free_port() -> int:
    """A port of this machine that nothing listens on now.

    It is below those that systems give to outgoing connections (Linux from 32,768, others from
    49,152). A port that the system chose (bind to 0) is one of them, so that any program's
    connection, even one that looks for the server, may hold it when the server wants it.
    """
    while True:
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
