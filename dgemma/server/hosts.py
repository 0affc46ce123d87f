"""The names under which a server may be called.

A page of another site can have its own name resolve to this machine (DNS rebinding); the browser
then takes this server for that site and lets the page read every answer. It still sends the site's
name as Host, so a server for this machine alone refuses names that are not its own. Knows the one
header. Knows nothing about keys or paths.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from dgemma.errors import InvalidRequest
from dgemma.server.errors import Refusal

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine that no other can have."""

_NAME = re.compile(r"(\[[0-9a-f:.]+\]|[\w-]+(?:\.[\w-]+)*)\.?", re.ASCII)
_PORT = re.compile(r"(?::\d{0,5})?", re.ASCII)


def hosts_of(host: str, bound: str, allowed: Iterable[str]) -> tuple[str, ...]:
    """The names of a server; none: any name will do.

    A server that listens for other machines too does not know its names; it takes any, unless it
    is told some. A page of another site does not have its key.

    Args:
        host: the address that it was told to listen on; `bound`: the one it got.
        allowed: further names.

    Raises:
        InvalidRequest: one of `allowed` is no name.
    """
    more = [_allowed(name) for name in allowed]
    address = ipaddress.ip_address(bound.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if not more and not address.is_loopback:
        return ()
    own = [name for name in (host, bound) if not address.is_unspecified]
    shown = [f"[{name}]" if ":" in name else name.lower() for name in own]
    return tuple(dict.fromkeys([*LOCAL, *shown, *more]))


def _allowed(name: str) -> str:
    found = _NAME.fullmatch(name.lower())
    if found is None:
        raise InvalidRequest(
            f"--allowed-host {name!r} is not the name of a host; give it without scheme and port"
        )
    return found[1]


def check_host(headers: Headers, hosts: tuple[str, ...]) -> None:
    """Refuse a request to a name that is not ours. Without the header it is no browser's.

    Args:
        hosts: the names; none: any.

    Raises:
        Refusal: 400, the header comes twice; 421, the name is another.
    """
    given = headers.getlist("host")
    if len(given) > 1:
        message = "the request has more than one Host header; send one"
        raise Refusal(400, message, code="bad_request", headers={"Connection": "close"})
    if not hosts or not given:
        return
    name = _NAME.match(given[0].lower())
    if name is None or not _PORT.fullmatch(given[0], name.end()) or name[1] not in hosts:
        raise Refusal(
            421, f"the request is for the host {given[0][:100]!r}, and this server is "
            f"{', '.join(hosts)}; call it by one of these, or start it with --allowed-host NAME",
            code="unknown_host",
        )  # fmt: skip
