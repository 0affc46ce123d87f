"""What attackers send to the routes of the page: paths, names of hosts, texts to be rendered."""

from __future__ import annotations

PATHS = (
    "/ui/../../etc/passwd", "/ui/%2e%2e/%2e%2e/pyproject.toml", "/ui/..%5c..%5cetc", "/ui/%00",
    "/ui/app.css%00.html", "/ui//etc/passwd", "/ui/" + "../" * 4_000, "/ui/__init__.py",
)  # fmt: skip
HOSTS = ("evil.example", "localhost.evil.example", "localhost\r\nHost: evil.example", "[::1", "")

HEADS = tuple(
    f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for path, host in (
        *((path, "localhost") for path in PATHS),
        *((path, host) for path in ("/", "/health") for host in HOSTS),
    )
)
"""Requests none of which may be answered with 200."""

SIZE = 190_000
PARTS = (
    "[", "*a **b ", "> ", "- a\n", "$x^2$ ", "a|b\n-|-\n", "[a](", "<![CDATA[", "\\(", "&amp;",
)  # fmt: skip
BOMBS = (
    *((part * SIZE)[:SIZE] for part in PARTS), "$" + "\\sqrt{" * 600 + "}" * 600 + "$",
    f"```yaml\n{'*' * 19_000}\n```", "[a]: http://x\n\n" + "[a] " * 48_000,
)  # fmt: skip
"""Texts that take a parser of Markdown, code or TeX long, or become much HTML."""
