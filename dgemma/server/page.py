"""The page: the files of `dgemma/ui`, and the headers that they are sent with.

Every file is read once, when the server starts, so no path of a request reaches the disk. Knows
files and HTTP's headers. Knows nothing about the API that the page speaks.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dgemma.errors import DGemmaError, unreadable
from dgemma.files.read import MIB, read_bytes
from dgemma.server.errors import Refusal

FOLDER = Path(__file__).parents[1] / "ui"
INDEX, PREVIEW = "index.html", "preview.html"

MOST_FILES, MOST_BYTES = 256, MIB
"""Files of the folder, and bytes of one of them."""

TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".json": "application/json",
    ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8", ".png": "image/png",
}  # fmt: skip
"""The endings of the files that are sent, and what they hold; all others are left out."""

COMMON = {
    "Cache-Control": "no-cache", "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dgemma"
)
STRICT = {
    "Content-Security-Policy": POLICY, "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
PREVIEW_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'none'; frame-ancestors 'self'"
)
"""Of the frame that shows what a model wrote: it has no origin, and reaches nothing."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page.

    Attributes:
        content: its bytes; `packed`: the same under gzip.
        mark: differs for other content; see `tag`.
        headers: all but those of one request.
    """

    content: bytes
    packed: bytes
    mark: str
    headers: Mapping[str, str]

    def tag(self, packed: bool) -> str:
        """The entity tag (RFC 9110, section 8.8.3) of one of its forms."""
        return f'"{self.mark}{"-gzip" if packed else ""}"'


Page = Mapping[str, PageFile]
"""The files by their paths within the folder."""


@cache
def load(folder: Path = FOLDER) -> Page:
    """Read the page. Links are left out: they may lead out of the folder.

    Raises:
        DGemmaError: a file cannot be read, or there are too many.
    """
    found: dict[str, PageFile] = {}
    for place, _, names in os.walk(folder):
        for path in sorted(Path(place, name) for name in names):
            kind = TYPES.get(path.suffix)
            if kind is None or path.is_symlink():
                continue
            try:
                content = read_bytes(path, MOST_BYTES)
            except OSError as error:
                raise DGemmaError(f"the page's file {unreadable(path, error)}") from error
            found[path.relative_to(folder).as_posix()] = _file(path.name, kind, content)
    if INDEX not in found or len(found) > MOST_FILES:
        raise DGemmaError(
            f"{folder} does not hold the page ({len(found)} files, at most {MOST_FILES}, one of "
            f"them {INDEX}); install dgemma again, or start the server with --no-page"
        )
    return found


def _file(name: str, kind: str, content: bytes) -> PageFile:
    own = {"Content-Security-Policy": PREVIEW_POLICY} if name == PREVIEW else STRICT
    mark = hashlib.sha256(content).hexdigest()[:32]
    packed = gzip.compress(content, 9, mtime=0)
    return PageFile(content, packed, mark, {"Content-Type": kind} | COMMON | own)


async def send(http: Request) -> Response:
    """The file that a path names: `/` is the index, `/ui/...` the others.

    Raises:
        Refusal: 404, there is no such file, or no page.
    """
    page: Page = http.app.state.page
    path = http.scope["path"]
    found = page.get(INDEX if path == "/" else path.removeprefix("/ui/"))
    if found is None:
        why = "the page has no such file; it begins at /" if page else "this server has no page"
        raise Refusal(404, f"there is no {path[:100]}: {why}", code="not_found")
    packed = takes_gzip(http.headers.get("accept-encoding", ""))
    tag = found.tag(packed)
    headers = {**found.headers, "ETag": tag}
    if is_known(http.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(found.packed if packed else found.content, headers=headers)


ROUTES = [Route("/", send, methods=["GET"], include_in_schema=False),
          Route("/ui/{name:path}", send, methods=["GET"], include_in_schema=False)]  # fmt: skip


def is_page(path: str) -> bool:
    """Whether a path is the page's, which is read without a key."""
    return path == "/" or path.startswith("/ui/")


def takes_gzip(accepted: str) -> bool:
    """Whether an `Accept-Encoding` takes gzip (RFC 9110, section 12.5.3)."""
    weights = {}
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        weights[name.strip()] = weight
    weight = weights.get("gzip", weights.get("*", "q=0"))
    name, _, value = weight.partition("=")
    return name.strip() != "q" or value.strip().strip("0.") != ""


def is_known(known: str, tag: str) -> bool:
    """Whether an `If-None-Match` names a tag (RFC 9110, section 13.1.2)."""
    return known.strip() == "*" or tag in re.findall(r'"[^"]*"', known)
