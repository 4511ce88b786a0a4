"""Ports for servers: free now, and not of the range from which connections take theirs."""

from __future__ import annotations

import socket
from pathlib import Path

from feedback import ports
from feedback.ports import free_port


def test_a_port_can_be_listened_at_and_is_no_connection_s():
    drawn = {free_port() for _ in range(20)}
    assert len(drawn) > 10
    lowest = 49_152
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if given.is_file():
        lowest = int(given.read_text().split()[0])
    assert max(drawn) < min(lowest, 32_768)
    for port in drawn:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_that_is_taken_is_not_given(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        taken = listener.getsockname()[1]
        monkeypatch.setattr(ports, "LOWEST", taken)
        monkeypatch.setattr(ports, "HIGHEST", taken + 3)
        assert all(free_port() != taken for _ in range(20))
