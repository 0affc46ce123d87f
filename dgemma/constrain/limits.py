"""How large schemas, patterns and grammars may be; one table, which docs/canvas.md shows.

Beyond these the grammar library takes seconds, gigabytes, or the process with it: its recursion
ends in a stack overflow. Where the work is counted in steps, `schema_proofs.EFFORT` and
`completion.EFFORT` bound it. Knows nothing about what is counted.
"""

from __future__ import annotations

from typing import NamedTuple

from dgemma.errors import InvalidRequest


class Limit(NamedTuple):
    """A bound.

    Attributes:
        most: what is allowed still.
        what: is counted, for messages and the table.
        remedy: for messages.
    """

    most: int
    what: str
    remedy: str

    def check(self, count: int, where: str) -> None:
        """Raise InvalidRequest if a count is above the bound."""
        if count > self.most:
            raise InvalidRequest(
                f"{where}: {count} {self.what}, at most {self.most} are allowed; {self.remedy}"
            )


PATTERN = Limit(4096, "bytes of a pattern in a schema", "shorten it")
PATTERNS = Limit(8, "patterns, formats and lengths that hold for one text", "merge some")
REGEX = Limit(1 << 15, "bytes of a regular expression", "shorten it")
GROUPS = Limit(100, "groups of a regular expression within one another", "write it flatter")
GRAMMAR = Limit(1 << 16, "bytes of a grammar", "shorten it")
RULES = Limit(1000, "rules of a GBNF grammar", "merge some")
CHAIN = Limit(600, "rules of a grammar, with their groups, that need one another in a row",
              "use repeats instead of rules that go on with one another")  # fmt: skip
TOOL_RULES = Limit(20_000, "rules, or sorts of keys, that tools need", "declare fewer at once")
SUBSCHEMAS = Limit(10_000, "subschemas of a schema", "split the schema")
DEPTH = Limit(800, "subschemas within one another, references followed", "write it flatter")
LITERAL = Limit(1 << 15, "bytes of a literal", "shorten it")
VALUES = Limit(1999, "values of an enum", "use a pattern, or ask in two steps")
"""The library has room for 2,000 things at a place, and the rule itself is one."""
CHOICES = Limit(VALUES.most, "choices", "use a regex, or ask in two steps")
PROPERTIES = Limit(1000, "properties of an object", "group them in objects")
COUNTED_PROPERTIES = Limit(
    100, "optional properties beside minProperties or maxProperties", "leave the bound out"
)
KEY_PATTERNS = Limit(32, "patternProperties of an object", "merge some with |")
KEY_MATCHES = Limit(5000, "pairs of a name and a pattern of patternProperties", "merge some")
MULTIPLE = Limit(
    10_000, "as multipleOf, its point left out, or as the common multiple of several at once",
    "ask for the number of such units, and multiply yourself",
)  # fmt: skip
"""A power of ten may be up to 10^6."""
COLUMNS = Limit(32, "columns of a table", "split the table")
CELLS = Limit(2000, "values of a table that are asked for", "ask for fewer rows")
ITEMS = Limit(200, "rows of a table, or items of a list, that are asked for", "ask for fewer")
NAME = Limit(200, "characters of a column's name, or of a language", "shorten it")
LIMITS = (
    PATTERN, PATTERNS, REGEX, GROUPS, GRAMMAR, RULES, CHAIN, TOOL_RULES, SUBSCHEMAS, DEPTH, LITERAL,
    VALUES, CHOICES, PROPERTIES, COUNTED_PROPERTIES, KEY_PATTERNS, KEY_MATCHES, MULTIPLE,
    COLUMNS, CELLS, ITEMS, NAME,
)  # fmt: skip


def table() -> str:
    """The bounds as a table of docs/canvas.md."""
    rows = [f"| {limit.what} | {limit.most:,} |" for limit in LIMITS]
    return "\n".join(["| at most | |", "|---|---|", *rows, ""])
