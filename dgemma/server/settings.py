"""The settings of a server: names, keys, limits.

Plain values. Knows nothing about HTTP frameworks or models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dgemma.errors import InvalidRequest
from dgemma.server.auth import Keys

MIB = 1 << 20

BACKLOG = 2048
"""Connections that may wait to be accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits of one request, and of all together.

    Attributes:
        body_bytes: of a request's body; above: 413.
        json_depth: levels of objects and lists in a body.
        messages: of a conversation. Chat templates take time that grows with the square of it.
        json_values: values, and names of fields, in a body.
        prompt_tokens: of a prompt; None: as many as the model's context holds.
        max_tokens: of an answer, also if a request names none; None: to the context's end.
        max_steps: denoising steps of a canvas, in all its tries, that a request may name; None: no
            limit. A request that names none gets the model's own number.
        schema_bytes, schema_depth: of a JSON schema, a grammar, or all tool declarations.
        compile_s, compile_mb: seconds and megabytes in which a grammar must be compiled.
        n: answers of one request, each canvas of a race counted.
        open_requests: requests that are worked on at a time; above: 429.
        open_per_key: the same for one API key.
        connections: in all, with a request or idle; fewer if the process may not open so many
            files. Above: an idle one is closed, and if there is none, the new one.
        connections_per_address: the same for one client address.
        connections_per_second: new ones of one client address that are read in a second; above:
            they wait.
    """

    body_bytes: int = 4 * MIB
    json_depth: int = 96
    messages: int = 1000
    json_values: int = 300_000
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_steps: int | None = None
    schema_bytes: int = 256 * 1024
    schema_depth: int = 64
    compile_s: int = 10
    compile_mb: int = 1024
    n: int = 16
    open_requests: int = 512
    open_per_key: int = 256
    connections: int = 2048
    connections_per_address: int = 1024
    connections_per_second: int = 100

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server serves one model.

    Attributes:
        names: the model's names in requests; the first is the one that replies carry.
        keys: the API keys; none: requests need no key.
        admin_keys: the keys that open /metrics, and nothing else. None: without API keys it is
            open to everyone, with them to nobody.
        limits: see `ServerLimits`.
        cors_origins: origins of web pages that may call; none: no CORS headers at all.
        hosts: names that requests may be for; none: any. See `hosts_of`.
        page: whether there is a page at /.
        log_text: whether the log may hold what users write.
        heartbeat_s: seconds of silence after which a stream sends a comment.
        grace_s: seconds that open requests get to finish when the server stops.
    """

    names: tuple[str, ...] = ("nano",)
    keys: Keys = field(default_factory=Keys)
    admin_keys: Keys = field(default_factory=Keys)
    limits: ServerLimits = field(default_factory=ServerLimits)
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    page: bool = True
    log_text: bool = False
    heartbeat_s: float = 10.0
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.names:
            raise InvalidRequest("names is empty; give the model a name")
        if not self.heartbeat_s > 0:
            raise InvalidRequest(f"heartbeat_s must be above 0, got {self.heartbeat_s}")
        if not self.grace_s >= 0:
            raise InvalidRequest(f"grace_s must be 0 or more, got {self.grace_s}")
