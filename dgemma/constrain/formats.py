"""The formats of strings, as expressions for a whole text.

Each is what strict common readers of it take, so a little narrower than its standard where readers
differ: the search for a short ending goes to the very edges of what is allowed. Knows nothing
about schemas.
Source: RFC 3339, 5321, 1123, 3986, 4291, 9562; read by `datetime`, `ipaddress` and `jsonschema`.
"""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """What a text must satisfy.

    Attributes:
        whole: an expression that matches the whole text.
        also: an expression that must match the whole text as well; "" where there is none.
        longest: most characters, or 0.
    """

    whole: str
    also: str = ""
    longest: int = 0


_FOURTH = "(0[48]|[2468][048]|[13579][26])"
_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = (
    f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
)
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[+-]{_CLOCK})"
_N = "[0-9]{1,6}"
_SPAN = f"T({_N}H({_N}M({_N}S)?)?|{_N}M({_N}S)?|{_N}S)"
_WORD = r"[a-zA-Z0-9!#$%&'*+\-/=?\^_`{|}~]+"
_HOST = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_TOP = "[a-zA-Z][a-zA-Z0-9-]{0,61}[a-zA-Z0-9]"
_ONE_HYPHEN = "(-?[^-])+"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_HEX = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join([
    f"({_HEX}:){{7}}{_HEX}", f"({_HEX}:){{1,7}}:",
    *(f"({_HEX}:){{1,{7 - k}}}(:{_HEX}){{1,{k}}}" for k in range(1, 7)), f":(:{_HEX}){{1,7}}", "::",
])  # fmt: skip
_PORT = "(0|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_URI = r"a-zA-Z0-9\-._~!$&'()*+,;="
_USER, _NAME, _PART, _QUERY = (
    f"([{_URI}{marks}]|%[0-9a-fA-F]{{2}})" for marks in (":", "", ":@", ":@/?")
)
FORMATS = {
    "date": Format(_DATE),
    "time": Format(_TIME),
    "date-time": Format(f"{_DATE}T{_TIME}"),
    "duration": Format(
        f"P(({_N}Y({_N}M({_N}D)?)?|{_N}M({_N}D)?|{_N}D)({_SPAN})?|{_SPAN}|{_N}W)"
    ),
    "email": Format(
        rf"{_WORD}(\.{_WORD})*@({_HOST}\.)+{_TOP}", rf"[^@]{{1,64}}@{_ONE_HYPHEN}", 254
    ),
    "hostname": Format(rf"{_HOST}(\.{_HOST})*", _ONE_HYPHEN, 253),
    "ipv4": Format(_IPV4),
    "ipv6": Format(_IPV6),
    "uuid": Format("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    "uri": Format(
        rf"[a-zA-Z][a-zA-Z0-9+\-.]*:(//({_USER}*@)?(\[({_IPV6})\]|{_NAME}*)"
        rf"(:{_PORT})?(/{_PART}*)*|/({_PART}+(/{_PART}*)*)?|{_PART}+(/{_PART}*)*|)"
        rf"(\?{_QUERY}*)?(#{_QUERY}*)?"
    ),
}  # fmt: skip
OF_NUMBERS = frozenset(("int32", "int64", "float", "double"))
"""Formats that say nothing about texts."""
