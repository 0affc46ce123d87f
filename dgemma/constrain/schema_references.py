"""References of a checked schema: found, followed past what merely names another, written anew.

Without this a chain of references costs the square of its length, or, in the grammar library's
recursion, the process.
Source: RFC 6901, section 6: a pointer in a URI's fragment is percent-encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote


class References:
    """The references of one schema."""

    def __init__(self, checked: Mapping[str, Any]) -> None:
        """
        Args:
            checked: subschemas by where they are in the schema as it was given.
        """
        self._checked = checked
        self._meant: dict[int, Any] = {}  # what a subschema stands for

    def find(self, ref: str) -> Any:
        """The subschema that a reference leads to; None: there is none."""
        try:
            found = self._checked.get(unquote(ref, errors="strict"))
        except UnicodeDecodeError:
            found = None
        return self._checked.get(ref) if found is None else found

    def follow(self, root: Any, nodes: Sequence[dict[str, Any]]) -> list[str]:
        """Write every reference to where it ends, as a pointer into the checked schema.

        Args:
            root: the checked schema.
            nodes: its subschemas with a `$ref` that leads somewhere.

        Returns:
            The pointers.
        """
        pointers = dict(_pointers(root, "#"))
        lists = [node for node in self._checked.values() if _only_refs(node)]
        ends = [(node, self._end(self.find(node["$ref"]))) for node in nodes]
        ends += [(node, self._end(node)) for node in lists]
        written = []
        for node, end in ends:
            if isinstance(end, bool):
                if "$ref" in node:
                    node["allOf"] = [*node.get("allOf", []), end]
                    del node["$ref"]
            elif "$ref" in node or not (end is node or _only_refs(end)):
                node["$ref"] = quote(pointers[id(end)], safe="#/~$")
                if _only_refs(node):
                    del node["allOf"]
                written.append(node["$ref"])
        return written

    def _end(self, node: Any) -> Any:
        """What a subschema stands for, past all that merely name another."""
        way = []
        while id(node) not in self._meant:
            self._meant[id(node)] = node  # if it is met again: a circle
            way.append(node)
            named = self._named(node)
            node = node if named is None else named
        end = self._meant[id(node)]
        self._meant.update((id(one), end) for one in way)
        return end

    def _named(self, node: Any) -> Any:
        """The one subschema that another names, if it says nothing else; else None."""
        if _is_ref(node):
            return self.find(node["$ref"])
        keys = _said(node)
        if keys == {"allOf"} or keys == {"anyOf"}:
            (parts,) = (node[key] for key in keys)
            if len(parts) == 1 or (_is_ref(parts[0]) and all(map(parts[0].__eq__, parts))):
                return parts[0]
        return None


def _said(node: Any) -> set[str]:
    return set(node) - {"$defs", "definitions"} if isinstance(node, dict) else set()


def _is_ref(node: Any) -> bool:
    return _said(node) == {"$ref"}


def _only_refs(node: Any) -> bool:
    """Whether a subschema is but a list of references that all hold."""
    return _said(node) - {"$ref"} == {"allOf"} and all(map(_is_ref, node["allOf"]))


def _pointers(node: Any, place: str) -> Iterator[tuple[int, str]]:
    """Where each object of a schema is."""
    if isinstance(node, dict):
        yield id(node), place
    if isinstance(node, dict | list):
        for key, part in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _pointers(part, f"{place}/{escaped(key)}")


def escaped(key: object) -> str:
    """A key as a part of a pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")
