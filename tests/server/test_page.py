"""The page's files over HTTP: open, whole, with their headers, and nothing beside them."""

from __future__ import annotations

import asyncio
import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import DGemmaError
from dgemma.server import page as page_module
from dgemma.server.auth import Keys
from dgemma.server.page import FOLDER, MOST_FILES, load, takes_gzip
from tests.support.client import Client, serve

pytestmark = pytest.mark.model

SENT = sorted(path for path in FOLDER.rglob("*") if path.is_file())
PLAIN = {"accept-encoding": "identity"}


@pytest.fixture(scope="module")
def client() -> Client:
    """A server with a key, which the page is open without."""
    return serve(keys=Keys.of(["some-secret"]))


def raw(client: Client, path: str, method: str = "GET") -> tuple[int, bytes]:
    """A request whose path no client has tidied up: status and body."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [], "scheme": "http", "server": ("test", 80), "client": ("test", 1),
        "root_path": "",
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_every_file_is_sent_as_it_is(client: Client) -> None:
    """Catches a file that is left out or changed, a key that is asked for, a wrong type."""
    assert client.get("/").content == client.get("/ui/index.html").content
    assert client.get("/").content == (FOLDER / "index.html").read_bytes()
    assert {path.name for path in SENT} >= {"index.html", "preview.html", "app.css", "code.css"}
    for path in SENT:
        found = client.get(f"/ui/{path.relative_to(FOLDER).as_posix()}", headers=PLAIN)
        assert found.status_code == 200 and found.content == path.read_bytes(), path
        assert found.headers["content-type"] == page_module.TYPES[path.suffix]


def test_the_headers_of_the_page(client: Client) -> None:
    """Catches a page that another may frame, or that may load or run what is not its own."""
    headers = client.get("/").headers
    assert headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; frame-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dgemma"
    )
    expected = {"x-frame-options": "DENY", "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer", "cross-origin-opener-policy": "same-origin",
                "cache-control": "no-cache"}  # fmt: skip
    assert {name: headers[name] for name in expected} == expected
    preview = client.get("/ui/preview.html").headers
    assert preview["content-security-policy"] == (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; img-src data:; connect-src 'none'; frame-ancestors 'self'"
    )
    assert "x-frame-options" not in preview and preview["x-content-type-options"] == "nosniff"


def test_a_file_that_is_known_is_not_sent_again(client: Client) -> None:
    """Catches a copy that is never renewed, one always sent anew, and one tag for two forms."""
    tags = {}
    for encoding in ("gzip", "identity"):
        headers = {"accept-encoding": encoding}
        first = client.get("/ui/app.css", headers=headers)
        tags[encoding] = first.headers["etag"]
        for known in (tags[encoding], f'"other", W/{tags[encoding]}', "*"):
            again = client.get("/ui/app.css", headers=headers | {"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tags[encoding]
        assert first.headers["vary"] == "Accept-Encoding"
    assert len(set(tags.values())) == 2
    stale = client.get("/ui/app.css", headers=PLAIN | {"if-none-match": tags["gzip"]})
    assert stale.status_code == 200 and stale.content


def test_gzip_for_the_page_alone(client: Client) -> None:
    """Catches a stream that a compressor holds back, and a form that the client cannot read."""
    found = client.get("/ui/app.css", headers={"accept-encoding": "br, gzip;q=0.5"})
    assert found.headers["content-encoding"] == "gzip"
    assert int(found.headers["content-length"]) == len(load()["app.css"].packed)
    assert gzip.decompress(load()["app.css"].packed) == found.content  # httpx has unpacked it
    other = client.get("/v1/models", headers={"x-api-key": "some-secret"})
    assert "content-encoding" not in other.headers
    taken = ["gzip", "GZIP", "*", "deflate, gzip;q=1.0", "*;q=0, gzip"]
    refused = ["", "identity", "gzip;q=0", "gzip; q=0.000", "*;q=0", "xgzip", "*, gzip;q=0"]
    assert all(map(takes_gzip, taken)) and not any(map(takes_gzip, refused))


def test_head_and_other_methods(client: Client) -> None:
    """Catches a HEAD with a body, and a file that can be posted to."""
    for path in ("/", "/ui/app.css"):
        head, got = client.call("HEAD", path), client.get(path)
        assert head.status_code == 200 and head.content == b""
        for name in ("content-length", "etag", "content-security-policy"):
            assert head.headers[name] == got.headers[name]
    assert client.post("/", {}, headers={"x-api-key": "some-secret"}).status_code == 405
    assert raw(client, "/ui/app.css", "DELETE")[0] == 405


@pytest.mark.parametrize("path", [
    "/ui", "/ui/", "/ui//", "/ui/.", "/ui/..", "/ui/../ui/app.css", "/ui/./app.css",
    "/ui/../../etc/passwd", "/ui//etc/passwd", "/ui/\\..\\..\\etc\\passwd", "/ui/..\\app.css",
    "/ui/app.css\x00", "/ui/app.css\x00.html", "/ui/\x00", "/ui/app.css/", "/ui/APP.CSS",
    "/ui/%2e%2e/app.css", "/ui/..%2fapp.css", "/ui/..;/app.css", "/ui/C:\\app.css",
    "/ui/__init__.py", "/ui/../server/page.py", "/ui/\ufffd", "/ui/\uff0e./app.css",
    "/ui/" + "a" * 100_000, "/ui/" + "../" * 10_000 + "etc/passwd", "/app.css", "/index.html",
])  # fmt: skip
def test_no_path_leaves_the_folder(client: Client, path: str) -> None:
    """Catches a path that is put together and opened: the names are looked up, and no more."""
    status, body = raw(client, path)
    assert status in (401, 404) and len(body) < 2000
    assert b"root:" not in body and (FOLDER / "app.css").read_bytes() not in body


def test_only_files_of_the_folder_are_read(tmp_path: Path) -> None:
    """Catches a link out of the folder, a file of another kind, and a folder without an end."""
    folder, secret = tmp_path / "ui", tmp_path / "secret.css"
    (folder / "screens").mkdir(parents=True)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.js").write_text("1")
    secret.write_text("secret")
    (folder / "index.html").write_text("a")
    (folder / "screens/lab.js").write_text("b")
    (folder / "page.py").write_text("c")
    (folder / "linked.css").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path / "more")
    assert set(load(folder)) == {"index.html", "screens/lab.js"}
    (folder / "screens/large.js").write_bytes(b" " * (page_module.MOST_BYTES + 1))
    with pytest.raises(DGemmaError, match=r"large\.js cannot be read: it has more than"):
        load.__wrapped__(folder)
    (folder / "screens/large.js").unlink()
    for number in range(MOST_FILES):
        (folder / f"{number}.txt").write_text("")
    with pytest.raises(DGemmaError, match="--no-page"):
        load.__wrapped__(folder)


def test_without_a_page() -> None:
    """Catches an option that hides the index and leaves the rest."""
    client = serve(page=False, keys=Keys.of(["some-secret"]))
    for path in ("/", "/ui/app.css", "/ui/preview.html"):
        refused = client.get(path)
        assert refused.status_code == 404 and "has no page" in refused.json()["error"]["message"]
    assert client.get("/health").status_code == 200


def test_no_page_loads_anything_from_elsewhere(client: Client) -> None:
    """Catches a script of a CDN: of the page itself, and of the framework's own pages."""
    for path in SENT:
        found = re.findall(rb"""\b(?:src|href|url|import)\s*[=("' ]+\s*(?:https?:)?//""",
                           path.read_bytes())  # fmt: skip
        assert not found, path
    key = {"x-api-key": "some-secret"}
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        refused = client.get(path, headers=key)
        assert refused.status_code == 404
        assert "/openapi.json" in refused.json()["error"]["message"]
    assert "/ui/{name}" not in client.get("/openapi.json", headers=key).json()["paths"]
