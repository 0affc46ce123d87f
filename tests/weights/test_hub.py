"""`pull` against a small hub on the loopback device: resume, hashes, errors, what is fetched."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from dgemma.errors import CheckpointError, MissingExtra, ModelNotFound
from dgemma.model.config import ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.weights.cached import cached_models
from dgemma.weights.files import open_checkpoint
from dgemma.weights.find import find_model, hub_cache
from dgemma.weights.hub import pull
from dgemma.weights.save import save_weights

pytestmark = pytest.mark.process

NAME = "someone/tiny"
COMMIT = "c0ffee" + "0" * 34
OTHER = "decade" + "0" * 34
CHUNK = 1000
"""Bytes that the client writes at a time (10 MB in real life): a part is a multiple of it."""


def sha1(content: bytes) -> str:
    """The hash of a git blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class FakeHub:
    """A hub with one model.

    Attributes:
        files: name and content; endings in `large` are LFS files.
        serve: what is really sent, where it differs (a bad mirror).
        cut: names whose first transfers break off half way, and how often they do.
        broken: names that cannot be had at all: a status to answer with.
        requests: (method, path, Range) of every request.
    """

    files: dict[str, bytes]
    serve: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    commit: str = COMMIT
    gated: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def large(self, name: str) -> bool:
        """Whether a file is stored as an LFS file."""
        return name.endswith((".safetensors", ".bin", ".gguf", "tokenizer.json"))

    def entry(self, name: str, key: str) -> dict[str, Any]:
        """What the hub says of a file; `key` is its word for the name."""
        content = self.files[name]
        entry: dict[str, Any] = {key: name, "size": len(content), "blobId": sha1(content)}
        if self.large(name):
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            entry["lfs"] = {**lfs, "oid": lfs["sha256"], "pointerSize": 130}
        if key == "path":
            entry |= {"type": "file", "oid": entry.pop("blobId")}
        return entry

    def fetched(self, name: str) -> list[str | None]:
        """The Range headers of all transfers of a file."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]


class Handler(BaseHTTPRequestHandler):
    """The four kinds of request that a download needs."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Be quiet."""

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.gated:
            return self.answer(b"{}", 403, X_Error_Code="GatedRepo")
        if not path.removeprefix("/api/models").startswith(f"/{NAME}"):
            return self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
        part = path.removeprefix("/api/models").removeprefix(f"/{NAME}").split("/")[1:]
        if part[:1] == ["revision"] and part[1] not in ("main", self.hub.commit):
            return self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        if part[:1] in ([], ["revision"]):
            siblings = [self.hub.entry(name, "rfilename") for name in self.hub.files]
            info = {"id": NAME, "sha": self.hub.commit, "siblings": siblings}
            return self.answer(json.dumps(info).encode(), Content_Type="application/json")
        if part[0] == "tree":
            tree = [self.hub.entry(name, "path") for name in self.hub.files]
            return self.answer(json.dumps(tree).encode(), Content_Type="application/json")
        return self.file("/".join(part[2:]))

    def file(self, name: str) -> None:
        if name in self.hub.broken:
            return self.answer(b"", self.hub.broken[name])
        content = self.hub.serve.get(name, self.hub.files[name])
        true = self.hub.files[name]
        etag = hashlib.sha256(true).hexdigest() if self.hub.large(name) else sha1(true)
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": self.hub.commit}
        asked = self.headers.get("Range")
        status, rest = 200, content
        if asked is not None:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            status, rest = 206, content[start:]
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and self.hub.cut.get(name):
            self.hub.cut[name] -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
            return None
        return self.answer(rest, status, **headers)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's cache, token or proxy."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(
    tmp_path: Path,
    config: ModelConfig,
    random_model: Callable[..., DiffusionGemma],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FakeHub]:
    """A hub on the loopback device with a checkpoint in several shards, named by HF_ENDPOINT."""
    source = save_weights(
        random_model(config),
        tmp_path / "source",
        config=config,
        max_shard_bytes=100_000,
        files={"tokenizer.json": "{}", "README.md": "# tiny", "LICENSE": "free"},
    )
    files = {path.name: path.read_bytes() for path in sorted(source.iterdir())}
    others = {"pytorch_model.bin": b"pickle", "original/model.safetensors": b"x", "a.onnx": b"x"}
    made = FakeHub(files | others)
    handler = type("BoundHandler", (Handler,), {"hub": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", made.address)
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def shard(hub: FakeHub) -> str:
    """One of the large files."""
    return next(name for name in hub.files if name.startswith("model-00002"))


def test_pull_and_open(hub: FakeHub) -> None:
    """The usual case: what was pulled is found by name and opens; nothing else was fetched."""
    with pytest.raises(ModelNotFound, match=f"dgemma pull {NAME}"):
        find_model(NAME)
    snapshot = pull(NAME)
    assert find_model(NAME) == (snapshot, "hub cache")
    assert open_checkpoint(snapshot).config.hidden_size == 32
    wanted = {n for n in hub.files if "/" not in n and not n.endswith((".bin", ".onnx"))}
    assert {path.name for path in snapshot.iterdir()} == wanted
    assert all((snapshot / name).read_bytes() == hub.files[name] for name in wanted)
    assert all(len(hub.fetched(name)) == 1 for name in wanted)
    for name in ("pytorch_model.bin", "original/model.safetensors", "a.onnx"):
        assert not hub.fetched(name)


def test_second_pull_fetches_nothing_and_repairs_damage(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    """ "Pull again" is the remedy that errors name, so it must check what is there."""
    snapshot = pull(NAME, endpoint=hub.address + "/")
    hub.requests.clear()
    pull(NAME)
    assert not any(method == "GET" and "resolve" in path for method, path, _ in hub.requests)
    for name in (shard(hub), "config.json"):
        blob = (snapshot / name).resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    pull(NAME)
    assert "damaged" in caplog.text
    for name in (shard(hub), "config.json"):
        assert (snapshot / name).read_bytes() == hub.files[name]
        assert len(hub.fetched(name)) == 1


def test_only_some_files(hub: FakeHub) -> None:
    """One of ten quantised files costs the disk of all ten. Such a repository has no config."""
    hub.files = {"q4.gguf": b"4" * 5000, "q8.gguf": b"8" * 5000, "Q6/a-1[x].gguf": b"6" * 5000,
                 "README.md": b"# all"}  # fmt: skip
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        pull(NAME)
    snapshot = pull(NAME, include=["q4*"])
    assert (snapshot / "q4.gguf").read_bytes() == hub.files["q4.gguf"]
    assert {path.name for path in snapshot.iterdir()} == {"q4.gguf"}
    assert not hub.fetched("q8.gguf") and not hub.fetched("README.md")
    hub.requests.clear()
    assert pull(NAME, include=["q4.gguf", "Q6/*", "*.md"]) == snapshot
    assert not hub.fetched("q4.gguf") and not hub.fetched("q8.gguf")
    assert (snapshot / "Q6/a-1[x].gguf").read_bytes() == hub.files["Q6/a-1[x].gguf"]
    assert [model.name for model in cached_models()] == [
        f"{NAME}:Q6/a-1[x].gguf", f"{NAME}:q4.gguf"
    ]  # fmt: skip
    with pytest.raises(ModelNotFound, match=r"no file .* matches 'q5\*'; it has .*q8\.gguf"):
        pull(NAME, include=["q5*"])


def test_one_file_is_resumed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that people pull alone is the one of 17 GB."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.files = {"q4.gguf": bytes(range(256)) * 40}
    hub.cut["q4.gguf"] = 1
    snapshot = pull(NAME, include=["*.gguf"])
    assert hub.fetched("q4.gguf") == [None, "bytes=5000-"]
    assert (snapshot / "q4.gguf").read_bytes() == hub.files["q4.gguf"]


@pytest.mark.parametrize("name", ["../q4.gguf", "a/../../q4.gguf", "/q4.gguf", "a\\q4.gguf"])
def test_names_are_no_paths(hub: FakeHub, name: str) -> None:
    """With patterns, folders are downloaded: a bad mirror's must not lead out of the snapshot."""
    hub.files = {name: b"4" * 5000}
    with pytest.raises(CheckpointError, match="not downloaded"):
        pull(NAME, include=["*"])


def test_resumes_within_a_pull(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks twice: the rest is asked for, not the whole file again."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    name = shard(hub)
    hub.cut[name] = 2
    snapshot = pull(NAME)
    size = len(hub.files[name])
    first = size // 2 // CHUNK * CHUNK
    second = first + (size - first) // 2 // CHUNK * CHUNK
    assert hub.fetched(name) == [None, f"bytes={first}-", f"bytes={second}-"]
    assert (snapshot / name).read_bytes() == hub.files[name]


def test_resumes_in_the_next_pull(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine went off half way: the next `pull` goes on there. (huggingface-hub 1.33 alone
    throws the part away.)"""
    name = shard(hub)
    hub.cut[name] = 1

    def off(*args: Any) -> None:
        hub.broken[name] = 403

    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", off)
    with pytest.raises(CheckpointError, match="pull again to go on"):
        pull(NAME)
    with pytest.raises(ModelNotFound):
        find_model(NAME)
    hub.broken.clear()
    hub.requests.clear()
    snapshot = pull(NAME)
    assert hub.fetched(name) == [f"bytes={len(hub.files[name]) // 2 // CHUNK * CHUNK}-"]
    assert (snapshot / name).read_bytes() == hub.files[name]
    open_checkpoint(snapshot)


@pytest.mark.parametrize("which", ["large", "small"])
def test_wrong_hash(hub: FakeHub, which: str) -> None:
    """Right length, one bit wrong: refused, deleted, and a later pull from a good source works."""
    name = shard(hub) if which == "large" else "config.json"
    true = hub.files[name]
    hub.serve[name] = true[:-1] + bytes([true[-1] ^ 1])
    with pytest.raises(CheckpointError, match=rf"{name} .*wrong hash"):
        pull(NAME)
    blobs = hub_cache() / "models--someone--tiny" / "blobs"
    assert hub.serve[name] not in [path.read_bytes() for path in blobs.iterdir()]
    hub.serve.clear()
    open_checkpoint(pull(NAME))


def test_damaged_part_does_not_block(hub: FakeHub) -> None:
    """A part of something else (longer than the file, or wrong bytes) costs one more pull."""
    name = shard(hub)
    digest = hashlib.sha256(hub.files[name]).hexdigest()
    blobs = hub_cache() / "models--someone--tiny" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{digest}.dgemma-part"
    part.write_bytes(b"?" * (len(hub.files[name]) + 1))
    open_checkpoint(pull(NAME))
    (blobs / digest).unlink()
    part.write_bytes(b"?" * 100)
    with pytest.raises(CheckpointError, match="wrong hash"):
        pull(NAME)
    open_checkpoint(pull(NAME))


def test_revisions(hub: FakeHub) -> None:
    """A commit can be named; a branch that moved is followed, and the old one stays."""
    first = pull(NAME, revision=COMMIT)
    assert find_model(NAME, COMMIT)[0] == first
    hub.commit = OTHER
    hub.files["README.md"] = b"# new"
    second = pull(NAME)
    assert find_model(NAME)[0] == second != first
    assert (second / "README.md").read_bytes() == b"# new"
    with pytest.raises(ModelNotFound, match=r"no revision 'v2'"):
        pull(NAME, revision="v2")


def test_errors_name_their_remedy(hub: FakeHub) -> None:
    """Each of them a user will meet."""
    with pytest.raises(ModelNotFound, match=r"has no model 'someone/tinny'.*hf auth login"):
        pull("someone/tinny")
    with pytest.raises(ModelNotFound, match="form 'org/name'"):
        pull("no such name/at/all")
    hub.gated = True
    with pytest.raises(ModelNotFound, match="accept its terms"):
        pull(NAME)
    hub.gated = False
    del hub.files["config.json"]
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        pull(NAME)


def test_hashes_are_no_paths(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash names a file in the cache: one like "../../x" from a bad mirror must not be used."""
    entry = hub.entry
    monkeypatch.setattr(hub, "entry", lambda name, key: entry(name, key) | {"blobId": "../../x"})
    with pytest.raises(CheckpointError, match="no usable hash"):
        pull(NAME)


@pytest.mark.fault("N 46")
def test_no_connection(hub: FakeHub) -> None:
    """Also with a snapshot in the cache: a pull that checked nothing must not look like one."""
    pull(NAME)
    with pytest.raises(CheckpointError, match="downloading someone/tiny from.*offline"):
        pull(NAME, endpoint="http://127.0.0.1:9")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the install command; the rest of the package does not need it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "dgemma.weights.hub_download", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'dgemma\[hub\]'"):
        pull(NAME)
