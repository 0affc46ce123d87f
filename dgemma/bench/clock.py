"""Time on a CPU or a GPU, of a block or of the parts of a network, and memory that grows meanwhile.

`Watch` puts a timer around functions of objects for a while and takes it away again: no file of the
model knows of it. On CUDA parts are timed by events, so watching adds no waits.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PAUSE_S = 0.001
"""Between two samples of the memory."""

SHORTEST_MS = 1.0
"""Less than this is not timed by itself."""


def now_ms(device: torch.device) -> float:
    """A clock in milliseconds; on CUDA it waits until all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3


def timed_ms(action: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each repetition, after two that are not counted.

    An action shorter than `SHORTEST_MS` is done several times at once, and the time is shared out.
    """
    action()
    start = now_ms(device)
    action()
    once = now_ms(device) - start
    times = 1 if once >= SHORTEST_MS else min(1000, int(SHORTEST_MS / max(once, 1e-3)) + 1)
    out = []
    for _ in range(repeats):
        start = now_ms(device)
        for _ in range(times):
            action()
        out.append((now_ms(device) - start) / times)
    return out


class Watch:
    """Adds up the time of functions under names; nested ones must not be watched together."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._watched: list[tuple[Any, str]] = []

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for owner, function in self._watched:
            delattr(owner, function)
        self._watched.clear()

    def add(self, name: str, owner: Any, function: str = "forward") -> None:
        """Time `owner.function` under `name` until the block ends."""
        inner = getattr(owner, function)
        assert function not in vars(owner), "watched twice"

        def outer(*args: Any, **kwargs: Any) -> Any:
            if self.device.type == "cuda":
                event: Any = torch.cuda.Event
                start, end = event(enable_timing=True), event(enable_timing=True)
                start.record()
                result = inner(*args, **kwargs)
                end.record()
                self._events.append((name, start, end))
                return result
            began = time.perf_counter()
            result = inner(*args, **kwargs)
            self._spent[name] += (time.perf_counter() - began) * 1e3
            return result

        setattr(owner, function, outer)
        self._watched.append((owner, function))

    def take(self) -> dict[str, float]:
        """Milliseconds under each name since the last call."""
        if self._events:
            torch.cuda.synchronize(self.device)
        for name, start, end in self._events:
            self._spent[name] += start.elapsed_time(end)
        self._events.clear()
        spent = dict(self._spent)
        self._spent.clear()
        return spent


def proc_field(path: str, key: str) -> str | None:
    """The value of the first `key: value` line of a file of Linux; None if there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == key), None)


def proc_bytes(path: str, key: str) -> int | None:
    """The same for a size, which Linux writes in kB."""
    text = proc_field(path, key)
    return None if text is None else int(text.split()[0]) * 1024


def status_bytes(field: str) -> int | None:
    """A size of this process from Linux ("RssAnon", "VmHWM"); None elsewhere."""
    return proc_bytes("/proc/self/status", field)


class Growth:
    """The rise of memory within a block.

    Attributes:
        growth_bytes: of anonymous resident memory, sampled every millisecond in a thread; None
            where the system does not say.
        device_growth_bytes: of CUDA memory; None on a CPU.
        samples: times that the thread has looked so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.growth_bytes: int | None = None
        self.device_growth_bytes: int | None = None
        self.samples = 0
        self._over = threading.Event()
        self._peak = 0
        self._base: int | None = None
        self._device_base = 0
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._over.wait(PAUSE_S):
            self._peak = max(self._peak, status_bytes("RssAnon") or 0)
            self.samples += 1

    def __enter__(self) -> Growth:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._device_base = torch.cuda.memory_allocated(self.device)
        self._base = status_bytes("RssAnon")
        self._peak = self._base or 0
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
            self.device_growth_bytes = peak - self._device_base
        self._over.set()
        self._thread.join()
        if self._base is not None:
            self.growth_bytes = max(self._peak, status_bytes("RssAnon") or 0) - self._base
