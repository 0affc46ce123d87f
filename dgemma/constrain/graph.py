"""The longest way through a graph that may have cycles, in linear steps and without recursion."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def longest_way(weights: Mapping[Node, int], edges: Mapping[Node, Collection[Node]]) -> int:
    """A bound on the weight of any way that meets each node at most once.

    Args:
        weights: of the nodes.
        edges: from a node to the next ones; those without a weight are left out.

    Returns:
        The heaviest way, where all nodes of a cycle count as if a way could take each of them.
    """
    number: dict[Node, int] = {}  # when a node was met (Tarjan's strongly connected components)
    low: dict[Node, int] = {}
    heaviest: dict[Node, int] = {}  # of the ways that begin at a node whose component is done
    path: list[Node] = []
    for start in weights:
        todo: list[tuple[Node, Iterator[Node]]] = []
        if start not in number:
            number[start] = low[start] = len(number)
            path.append(start)
            todo.append((start, iter(edges.get(start, ()))))
        while todo:
            node, rest = todo[-1]
            for to in rest:
                if to not in weights or to in heaviest:
                    continue
                if to in number:
                    low[node] = min(low[node], number[to])
                    continue
                number[to] = low[to] = len(number)
                path.append(to)
                todo.append((to, iter(edges.get(to, ()))))
                break
            else:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[node])
                if low[node] == number[node]:
                    cycle = [path.pop()]
                    while cycle[-1] != node:
                        cycle.append(path.pop())
                    after = [
                        heaviest[to] for one in cycle for to in edges.get(one, ()) if to in heaviest
                    ]
                    weight = sum(weights[one] for one in cycle) + max(after, default=0)
                    heaviest.update(dict.fromkeys(cycle, weight))
    return max(heaviest.values(), default=0)
