"""Whom the feedback commands talk to, and that no token reaches anybody else."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from align.errors import ConfigError
from align.feedback_cli.common import connect, place, say, table_of


class Ear:
    """A server that answers anything, and remembers what it was shown."""

    def __init__(self):
        heard = self.heard = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                heard.append(self.headers.get("Authorization"))
                body = b"{}"
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def ears():
    both = Ear(), Ear()
    yield both
    for ear in both:
        ear.server.shutdown()
        ear.server.server_close()


@pytest.fixture
def data(tmp_path: Path, ears) -> Path:
    """A folder whose server is the first ear."""
    login = {"url": ears[0].url, "email": "e", "password": "p", "token": "served"}
    (tmp_path / "login.json").write_text(json.dumps(login))
    return tmp_path


def test_the_served_token_goes_to_the_served_address_only(ears, data, monkeypatch):
    served, other = ears
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=rf"LABEL_STUDIO_API_KEY: is not set; .*{served.url}"):
        connect(other.url, data)
    assert other.heard == []
    assert connect(None, data).url == served.url
    localhost = served.url.replace("127.0.0.1", "localhost")
    assert connect(localhost, data).url == served.url
    assert set(served.heard) == {"Token served"}


def test_the_environments_key_goes_to_the_address_given_only(ears, data, monkeypatch):
    served, other = ears
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "hosted")
    connect(None, data)
    connect(served.url, data)
    connect(other.url, data)
    assert set(served.heard) == {"Token served"}
    assert set(other.heard) == {"Token hosted"}
    with pytest.raises(ConfigError, match="--url: is not set"):
        connect(None, data / "nothing")


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("http://localhost:8080", "http://127.0.0.1:8080/", True),
        ("http://LOCALHOST", "http://127.0.0.1:80", True),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8081", False),
        ("http://127.0.0.1:8080@evil.example", "http://127.0.0.1:8080", False),
        ("http://127.0.0.1.evil.example:8080", "http://127.0.0.1:8080", False),
        ("http://127.0.0.1:port", "http://127.0.0.1:8080", False),
    ],
)
def test_addresses_are_the_same_by_host_and_port(one: str, two: str, same: bool):
    assert (place(one) == place(two)) is same


def test_names_are_printed_as_they_are(capsys):
    say("odd [/b] [red]name[/red]")
    assert capsys.readouterr().out == "odd [/b] [red]name[/red]\n"
    (column,) = table_of(["name"], [["odd [/b]"]]).columns
    assert [str(cell) for cell in column.cells] == ["odd [/b]"]
