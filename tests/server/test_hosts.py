"""The Host names of a server for this machine alone, against pages that rebind their own."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from dgemma.cli import serve as command
from dgemma.cli.main import Parser
from dgemma.errors import InvalidRequest
from dgemma.server.errors import Refusal
from dgemma.server.hosts import LOCAL, check_host, hosts_of
from tests.support.client import serve

OURS = ("localhost", "localhost:8000", "LocalHost", "localhost.", "127.0.0.1:1", "[::1]:65535",
        "[::1]", "localhost:")  # fmt: skip
OTHERS = (
    "evil.example", "evil.example:8000", "localhost.evil.example", "evil-localhost", "127.1",
    "127.0.0.1.nip.io", "localhost:80:90", "localhost:http", "localhost:80@evil.example", "[::1",
    "user@localhost", "localhost..", "localhost/", "::1", "[::1]evil", "[::2]", "0.0.0.0", "",
    "127.0.0.2", "2130706433", "a.localhost", " ", "localhost evil", "localhost,evil", "\u00fc",
    "localhost:123456",
)  # fmt: skip


@pytest.mark.model
def test_other_names_are_refused_everywhere() -> None:
    """Catches a page elsewhere that reads answers: by any route, also one that is open."""
    client = serve(hosts=LOCAL)
    for name in OURS:
        assert client.get("/health", headers={"host": name}).status_code == 200, name
    for path in ("/health", "/", "/ui/app.css", "/v1/models", "/openapi.json", "/nowhere"):
        refused = client.get(path, headers={"host": "evil.example:8000"})
        assert refused.status_code == 421
        assert "--allowed-host" in refused.json()["error"]["message"]
    body = {"prompt": "Hi", "max_tokens": 1}
    refused = client.post("/v1/completions", body, headers={"host": "evil.example"})
    assert refused.status_code == 421 and refused.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("name", OTHERS)
def test_a_name_that_looks_like_ours(name: str) -> None:
    """Catches a comparison of a part of the name alone."""
    headers = Headers(raw=[(b"host", name.encode("latin-1"))])
    with pytest.raises(Refusal) as refused:
        check_host(headers, LOCAL)
    assert refused.value.status == 421
    check_host(headers, ())  # a server for others takes any


def test_two_names_and_none() -> None:
    """Catches two headers of which a proxy reads the other one; a probe that needs no name."""
    twice = Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")])
    for hosts in (LOCAL, ()):
        with pytest.raises(Refusal) as refused:
            check_host(twice, hosts)
        assert refused.value.status == 400
    check_host(Headers(raw=[]), LOCAL)  # HTTP/1.0; every browser sends one


@pytest.mark.parametrize(("host", "bound", "allowed", "names"), [
    ("127.0.0.1", "127.0.0.1", (), LOCAL),
    ("localhost", "127.0.0.1", (), LOCAL),
    ("::1", "::1", (), LOCAL),
    ("127.0.0.2", "127.0.0.2", (), (*LOCAL, "127.0.0.2")),
    ("::ffff:127.0.0.1", "::ffff:127.0.0.1", (), (*LOCAL, "[::ffff:127.0.0.1]")),
    ("127.0.0.1", "127.0.0.1", ("Box.Example.", "box"), (*LOCAL, "box.example", "box")),
    ("0.0.0.0", "0.0.0.0", (), ()),
    ("::", "::", (), ()),
    ("192.168.1.5", "192.168.1.5", (), ()),
    ("fe80::1%eth0", "fe80::1%eth0", (), ()),
    ("0.0.0.0", "0.0.0.0", ("box",), (*LOCAL, "box")),
    ("192.168.1.5", "192.168.1.5", ("box",), (*LOCAL, "192.168.1.5", "box")),
])  # fmt: skip
def test_the_names_of_a_server(
    host: str, bound: str, allowed: tuple[str, ...], names: tuple[str, ...]
) -> None:
    """Catches a server for one machine that takes any name, and one for others that takes none."""
    assert hosts_of(host, bound, allowed) == names


@pytest.mark.parametrize("name", ["", "http://box", "box:80", "box/", "*", "a b", "[::1]:80"])
def test_what_is_no_name(name: str) -> None:
    """Catches an option that is taken and never matches."""
    with pytest.raises(InvalidRequest, match="without scheme and port"):
        hosts_of("127.0.0.1", "127.0.0.1", [name])


def test_the_options_are_read() -> None:
    """Catches an option that does nothing."""
    parser = Parser()
    command.configure(parser)
    given = parser.parse_args(["nano", "--allowed-host", "a", "--allowed-host", "b", "--no-page"])
    assert given.allowed_host == ["a", "b"] and not command.settings_of(given).page
    assert command.settings_of(parser.parse_args(["nano"])).page
