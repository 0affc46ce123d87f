"""`bench gpu`: every launch of the Triton kernels, compiled for GPUs that are not there.

Beside it a prediction of a step from its bytes and operations; see `roofline`. Nothing runs on a
GPU, so no figure here is a measured time.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context

import torch

from dgemma.bench.gpu_launches import KERNELS, CompiledLaunch, Lister
from dgemma.bench.gpu_packed import PACKED
from dgemma.bench.report import Cell, Listing, Report, Table, plain
from dgemma.bench.roofline import (
    FORMULAS,
    precision_predictions,
    predictions,
    roofline_tables,
)
from dgemma.bench.roofline import NOTES as ROOFLINE_NOTES
from dgemma.bench.shapes import REAL
from dgemma.errors import InvalidRequest, MissingExtra
from dgemma.kernels.gpu import LIMITS
from dgemma.model.config import ModelConfig
from dgemma.model.size import measure
from dgemma.weights.files import open_checkpoint
from dgemma.weights.find import find_model

DTYPES = ("bfloat16", "float16")
MODELS = ("26B", "nano")
PARTS: dict[str, Lister] = {**KERNELS, **PACKED}
"""Part of a step, or a precision of packed weights -> its calls."""

COLUMNS = {
    "shared": "shared memory of a block, bytes",
    "limit": "the most that a block may have on that target, bytes",
    "registers": "of a thread",
    "spill": "local memory of a thread, bytes",
    "blocks": "how many a processor holds at a time (occupancy); 0: none can start",
    "launches": "launches of this kernel, of which the one with the most shared memory is shown",
    "most spill of them": "the largest spill of all these launches, bytes",
}
BLOCKS = Listing(
    "Blocks of a processor",
    """\
blocks = the least of
    blocks of a processor
    its warps / warps of a block
    65,536 registers / (warps of a block * registers of a warp, in units of 256)
    its shared memory / (shared + 1 KB)
    512 columns of tensor memory / those of a block, on sm_100""",
)
NOTES = (
    "The kernels were compiled by Triton's own launch path and ptxas, for devices that were not "
    "there. Their results are tested in Triton's interpreter on a CPU, in fp32 and fp16. Never "
    "run: any kernel on a device, bf16 products of the kernels, the times above.",
    "Kernels of packed weights: the part is the precision of a file, compiled at the sizes of 26B "
    "in bfloat16. Weights that two files share are listed with each.",
    "`--json` has every launch.",
)


@dataclass(frozen=True, slots=True)
class GpuJob:
    """What one process compiles at a time: a part of a step for a device."""

    model: str
    part: str
    target: int
    dtype: str


@dataclass(frozen=True, slots=True)
class GpuJobResult:
    """Its launches, and the calls for which the device has no room."""

    job: GpuJob
    launches: Sequence[CompiledLaunch]
    refused: Sequence[str]


def config_of(model: str) -> ModelConfig:
    """The sizes of a name of `MODELS`."""
    return REAL if model == "26B" else open_checkpoint(find_model(model)[0]).config


def compile_job(job: GpuJob, most: int | None = None) -> GpuJobResult:
    """Compile every launch of a part, or those of its first `most` calls.

    Raises:
        InvalidRequest: Triton's interpreter was asked for, which compiles nothing.
        MissingExtra: the triton package is not installed.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InvalidRequest("TRITON_INTERPRET=1 compiles nothing; unset it")
    try:
        from dgemma.bench.gpu_compile import compile_calls
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "bench gpu needs the triton package; pip install 'dgemma[cuda]'"
        ) from error
    calls = list(PARTS[job.part](config_of(job.model), getattr(torch, job.dtype)))
    launches, refused = compile_calls(calls[:most], LIMITS[job.target])
    return GpuJobResult(job, launches, refused)


def compile_all(jobs: Sequence[GpuJob]) -> list[GpuJobResult]:
    """Every job, in as many processes as there are cores."""
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # Ctrl-C reaches every process of a terminal. Workers inherit the mask, also while they
        # start; this process gets the signal when it is unblocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            found = [pool.submit(compile_job, job) for job in jobs]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            return [one.result() for one in found]
        except KeyboardInterrupt:
            for worker in active_children():
                worker.terminate()
            raise


def launch_table(results: Iterable[GpuJobResult]) -> Table:
    """The largest launch of each kernel, target and dtype; dtypes that agree share a row."""
    found: dict[tuple[str, int, str], list[CompiledLaunch]] = {}
    for result in results:
        job = result.job
        for launch in result.launches:
            kernel = f"{job.part} {launch.kernel.lstrip('_')}"
            found.setdefault((kernel, job.target, job.dtype), []).append(launch)
    rows: dict[tuple[Cell, ...], list[str]] = {}
    for (kernel, target, dtype), launches in sorted(found.items()):
        top = max(launches, key=lambda one: (one.shared_bytes, one.spill_bytes, one.registers))
        most = max(one.spill_bytes for one in launches)
        row = (kernel, f"sm_{target}", top.config, top.shared_bytes, top.limit_bytes,
               top.registers, top.spill_bytes, top.occupancy, len(launches), most)  # fmt: skip
        rows.setdefault(row, []).append(dtype)
    head = ("kernel", "target", "config", "shared", "limit", "registers", "spill", "blocks",
            "launches", "most spill of them", "dtype")  # fmt: skip
    title = "Compiled launches, the largest of each kernel"
    return Table(title, head, [[*row, ", ".join(dtypes)] for row, dtypes in rows.items()])


def refused_table(results: Iterable[GpuJobResult]) -> Table:
    """Calls that a device has no room for, counted."""
    rows: list[list[Cell]] = []
    for result in results:
        if result.refused:
            job = result.job
            rows.append([job.model, job.part, f"sm_{job.target}", job.dtype, len(result.refused),
                         result.refused[0]])  # fmt: skip
    return Table(
        "Calls that do not run",
        ("model", "part", "target", "dtype", "calls", "the first"),
        rows or [["none", "", "", "", 0, ""]],
    )


def excess(results: Iterable[GpuJobResult]) -> list[CompiledLaunch]:
    """Launches for which the compiler took more than the kernel's formula says."""
    return [
        launch
        for result in results
        for launch in result.launches
        if launch.expected_bytes is not None and launch.shared_bytes > launch.expected_bytes
    ]


def checked_note(results: Sequence[GpuJobResult]) -> str:
    """How formula and compiler agree."""
    launches = [launch for result in results for launch in result.launches]
    known = sum(launch.expected_bytes is not None for launch in launches)
    over = excess(results)
    worst = (
        f"; the first is {over[0].kernel} on {over[0].target} ({over[0].config})" if over else ""
    )
    return (
        f"{len(launches)} launches were compiled. {known} have a formula of their shared memory, "
        f"by which the blocks are chosen; {len(over)} take more than it says{worst}."
    )


def result_in_words(results: Sequence[GpuJobResult], targets: Sequence[int]) -> str:
    """The report's first sentence."""
    refused = sum(len(result.refused) for result in results)
    names = ", ".join(f"sm_{target}" for target in targets)
    if refused:
        return f"Calls of kernels without room on {names}: {refused}. Nothing was run on a GPU."
    return f"Every kernel compiles for {names} and fits; nothing was run on a GPU."


def explained() -> list[Table]:
    """The targets, and the columns of the launches."""
    targets: list[list[Cell]]
    targets = [[f"sm_{c}", one.example, one.shared_bytes // 1024] for c, one in LIMITS.items()]
    return [
        Table("Columns of the launches", ("column", "meaning"), list(COLUMNS.items())),
        Table("Targets", ("target", "example", "most shared memory of a block, KB"), targets),
    ]


def values(results: Sequence[GpuJobResult]) -> list[dict[str, object]]:
    """A row for each launch, for programs."""
    return [
        {"model": result.job.model, "part": result.job.part, "dtype": result.job.dtype}
        | plain(launch)
        for result in results
        for launch in result.launches
    ]


def targets_of(text: str) -> list[int]:
    """Compute capabilities from "80,90"; "sm_90" and "9.0" are 90.

    Raises:
        InvalidRequest: one whose limits are not known.
    """
    known = {str(capability): capability for capability in LIMITS}
    found = []
    for name in text.split(","):
        written = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", name.strip())
        capability = known.get("".join(written.groups())) if written else None
        if capability is None:
            raise InvalidRequest(f"unknown target {name.strip()!r}; known: {', '.join(known)}")
        found.append(capability)
    return list(dict.fromkeys(found))


def report(targets: Sequence[int], command: str, say: Callable[[str], None]) -> Report:
    """Compile for every target, and lay out."""
    jobs = [
        GpuJob(model, part, target, dtype)
        for model in MODELS
        for part in PARTS
        for target in targets
        for dtype in DTYPES
        if part in KERNELS or (model, dtype) == (MODELS[0], DTYPES[0])
    ]
    say("compiling; with an empty cache a target takes about a minute of one core")
    results = compile_all(jobs)
    return Report(
        "The GPU path without a GPU",
        command,
        {"models": ", ".join(MODELS)},
        [
            refused_table(results),
            launch_table(results),
            *explained(),
            *roofline_tables(REAL, measure(REAL).parameters),
        ],
        {
            "launches": values(results),
            "refused": [{"job": plain(r.job), "calls": r.refused} for r in results if r.refused],
            "roofline": plain(predictions(REAL)),
            "precisions": plain(precision_predictions(REAL, measure(REAL).parameters)),
        },
        (checked_note(results), *NOTES, *ROOFLINE_NOTES),
        lead=result_in_words(results, targets),
        listings=(BLOCKS, FORMULAS),
    )
