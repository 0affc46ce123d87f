"""A plan of the memory of a model: what is kept in which precision and where.

Knows sizes alone; `budget.py` beside it makes plans.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgemma.byte_sizes import in_gb
from dgemma.quant.offload import BUFFERS, padded, pinned_bytes

EXPERTS, ATTENTION, DENSE = "experts", "attention", "dense MLP"
KINDS = (EXPERTS, ATTENTION, DENSE, "embedding", "self-conditioning", "routers and norms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tensor of the network as it will lie in memory.

    Attributes:
        name: ours.
        kind: of `KINDS`.
        layer: its number; -1: in none.
        precision: its format or dtype.
        parts: bytes of each tensor that the file's numbers are kept as.
        made: bytes of what a kernel makes of it; 0: it is kept in `parts`. What is away is never
            made into anything.
        numbers: how many.
        unpacked: numbers of the matrix that is unpacked at a time; 0: it is kept plain.
        view: it can be a view of the file.
    """

    name: str
    kind: str
    layer: int
    precision: str
    parts: tuple[int, ...]
    numbers: int
    made: int = 0
    unpacked: int = 0
    view: bool = False

    @property
    def stored(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts)

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self.made or self.stored


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the memory of a model goes, in bytes.

    Attributes:
        device: "cpu", "cuda" or "mps".
        budget: most bytes on the device; None: no limit.
        held: the weights.
        eight_bit: names of plain weights that are packed in 8 bit at load.
        away: layers whose experts are not in the device's memory, but in the host's; on a CPU
            they stay in the file, and the system reads them at each pass.
        streams: experts that are away are copied to the device layer by layer.
        mapped: on a CPU, weights are views of the file where they can be.
        cache_bytes: what the engine is told; None: its own choice.
        cache: of keys and values for `context` tokens of `requests` requests, or more of them if
            the budget has room.
        work: temporaries.
    """

    device: str
    budget: int | None
    held: tuple[Held, ...]
    eight_bit: frozenset[str] = frozenset()
    away: tuple[int, ...] = ()
    streams: bool = False
    mapped: bool = False
    context: int
    requests: int
    cache_bytes: int | None = None
    cache: int
    work: int

    def is_away(self, one: Held) -> bool:
        """Whether a tensor is not in the device's memory."""
        return one.kind == EXPERTS and one.layer in self.away

    @property
    def weights(self) -> int:
        """On the device, without buffers."""
        return sum(one.nbytes for one in self.held if not self.is_away(one))

    @property
    def host(self) -> int:
        """Of the experts that are away: pinned, or in the file."""
        away = [one for one in self.held if self.is_away(one)]
        if not self.streams:
            return sum(one.stored for one in away)
        return sum(pinned_bytes(part) for one in away for part in one.parts)

    @property
    def buffers(self) -> int:
        """For the layers that come from the host."""
        if not self.streams or not self.away:
            return 0
        sizes = dict.fromkeys(self.away, 0)
        for one in filter(self.is_away, self.held):
            sizes[one.layer] += sum(padded(part) for part in one.parts)
        return BUFFERS * max(sizes.values())

    @property
    def copied(self) -> int:
        """Weights in memory that no file backs."""
        views = self.mapped and self.device == "cpu"
        here = (one for one in self.held if not self.is_away(one))
        return sum(one.nbytes for one in here if not (views and one.view and not one.made))

    @property
    def total(self) -> int:
        """On the device."""
        return self.weights + self.buffers + self.cache + self.work

    @property
    def host_names(self) -> frozenset[str]:
        """The weights that stay in the host's memory."""
        return frozenset(one.name for one in self.held if self.is_away(one))

    def kind(self, name: str) -> tuple[str, int, int]:
        """Precision of a kind of `KINDS`, its bytes on the device, and away."""
        ours = [one for one in self.held if one.kind == name]
        sizes: dict[str, int] = {}
        for one in ours:
            sizes[one.precision] = sizes.get(one.precision, 0) + one.nbytes
        names = sorted(sizes, key=lambda n: -sizes[n])
        here = sum(one.nbytes for one in ours if not self.is_away(one))
        away = sum(one.stored for one in ours if self.is_away(one))
        return ", ".join(names), here, away

    def lines(self) -> list[str]:
        """The plan for people, a line for each kind."""
        limit = "" if self.budget is None else f" of {in_gb(self.budget)}"
        where = "pinned on the host" if self.streams else "left in the file"
        said = [f"memory on {self.device}: {in_gb(self.total)}{limit}"]
        for name in KINDS:
            precision, here, away = self.kind(name)
            more = f", {in_gb(away)} {where}" if away else ""
            said.append(f"{name}: {in_gb(here)}, {precision}{more}")
        if self.away:
            numbers = ", ".join(map(str, self.away))
            buffers = (
                f"; {BUFFERS} buffers of {in_gb(self.buffers)} together" if self.streams else ""
            )
            said.append(f"layers away: {numbers} {where}{buffers}")
        what = f"{self.requests} x {self.context:,} tokens at least"
        said.append(f"keys and values: {in_gb(self.cache)}, {what}")
        said.append(f"temporaries: {in_gb(self.work)}")
        return said

    def facts(self) -> dict[str, object]:
        """The plan as plain values, in bytes."""
        kinds = {}
        for name in KINDS:
            precision, here, away = self.kind(name)
            kinds[name] = {"precision": precision, "device": here, "host": away}
        return {
            "device": self.device, "budget": self.budget, "total": self.total, "kinds": kinds,
            "cache": self.cache, "work": self.work, "buffers": self.buffers, "host": self.host,
            "away": list(self.away), "context": self.context, "requests": self.requests,
        }  # fmt: skip
