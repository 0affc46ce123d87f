"""The measurements by name: each loads what it needs, measures, and gives a report.

Knows what a report must carry. Knows nothing about options' spelling or where a report goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dgemma.bench import compare, generate, offline, scale, serving, step
from dgemma.bench.chart import Chart
from dgemma.bench.drive import open_llm, prompt_ids, resolved
from dgemma.bench.machine import facts
from dgemma.bench.report import Report, Table
from dgemma.bench.traffic import DRAFTS, TrafficMix, conversations
from dgemma.errors import InvalidRequest, nearest
from dgemma.llm import LLM
from dgemma.model.config import ModelConfig
from dgemma.weights.files import load_config

Say = Callable[[str], None]
Options = Mapping[str, Any]
AXES = ("prompt", "canvas", "batch", "layers")
CACHES = ("dynamic", "static")
MODES = {"both": ("as it comes", "tuned"), "plain": ("as it comes",), "tuned": ("tuned",)}


@dataclass(frozen=True)
class Where:
    """Which model, and where and how it runs; see `dgemma.llm.load`."""

    model: str
    device: str
    dtype: str
    threads: int | None
    strict: bool

    def open(self) -> LLM:
        """Load it."""
        return open_llm(self.model, self.device, self.dtype, self.threads, self.strict)


def subject(model: str, config: ModelConfig, device: str, dtype: str) -> dict[str, str]:
    """What was measured, as text."""
    full = config.layer_types.count("full_attention")
    return {
        "model": model,
        "sizes": (
            f"hidden {config.hidden_size}, {config.num_layers} layers ({full} full), "
            f"{config.num_experts} experts x {config.moe_intermediate_size} top "
            f"{config.top_k_experts}, vocabulary {config.vocab_size:,}, "
            f"canvas {config.canvas_length}, window {config.sliding_window}"
        ),
        "device": device,
        "dtype": dtype,
    }


def _subject(where: Where, llm: LLM) -> dict[str, str]:
    dtype = str(llm.choice.dtype).removeprefix("torch.")
    return subject(where.model, llm.config, str(llm.choice.device), dtype)


def _report(
    title: str,
    command: str,
    about: Mapping[str, str],
    shown: tuple[Sequence[Table], Sequence[Chart]],
    values: Mapping[str, Any],
    notes: Sequence[str],
) -> Report:
    return Report(title, command, about, facts(), shown[0], values, shown[1], notes)


def run_step(where: Where, options: Options, command: str, say: Say) -> Report:
    """See `step`."""
    llm = where.open()
    result = step.measure_step(llm, options["prompt"], options["steps"])
    title = f"Denoising step, prompt {options['prompt']}"
    about = _subject(where, llm)
    return _report(title, command, about, step.tables(result), result.values(), step.NOTES)


def run_compare(where: Where, options: Options, command: str, say: Say) -> Report:
    """See `compare`."""
    if options["modes"] not in MODES:
        hint = nearest(options["modes"], MODES)
        raise InvalidRequest(f"unknown modes {options['modes']!r}{hint}; known: {', '.join(MODES)}")
    if options["cache"] not in CACHES:
        hint = nearest(options["cache"], CACHES)
        raise InvalidRequest(
            f"unknown cache {options['cache']!r}{hint}; known: {', '.join(CACHES)}"
        )
    if where.threads is not None:
        torch.set_num_threads(where.threads)
    directory, device, dtype = resolved(where.model, where.device, where.dtype, where.strict)
    config = load_config(directory, where.strict)
    prompt_ids(config, options["prompt"])  # refused before anything is run
    if (options["llama"] is None) != (options["llama_args"] is None):
        raise InvalidRequest("--llama and --llama-args go together: a program and its arguments")
    threads = torch.get_num_threads()
    llama = []
    if options["llama"] is not None:
        words = options["llama_args"]
        llama = compare.measure_llama(options["llama"], words, threads, options["pairs"])
    job = compare.CompareRun(
        directory, options["prompt"], options["steps"], device, dtype, threads, options["cache"]
    )
    results = compare.measure(job, options["pairs"], MODES[options["modes"]], say)
    about = subject(where.model, config, device, dtype)
    shown = compare.tables(results, llama, options["prompt"])
    found = compare.values(results, llama)
    return _report("Ours and transformers", command, about, shown, found, compare.NOTES)


def run_scale(where: Where, options: Options, command: str, say: Say) -> Report:
    """See `scale`."""
    axes = [axis.strip() for axis in options["axes"].split(",")]
    for axis in axes:
        if axis not in AXES:
            known = ", ".join(AXES)
            raise InvalidRequest(f"unknown axis {axis!r}{nearest(axis, AXES)}; known: {known}")
    names = ("prompts", "canvases", "batches", "layers")
    prompts, canvases, batches, layers = (scale.sizes(options[name], f"--{name}") for name in names)
    llm = where.open()
    if "prompt" in axes:
        prompt_ids(llm.config, max(prompts))
    prompt, steps = options["prompt"], options["steps"]
    series: list[scale.Series] = []
    caches: list[scale.CacheSize] = []
    if "prompt" in axes:
        series, caches = scale.by_prompt(llm, prompts, steps, say)
    if "canvas" in axes:
        series.append(scale.by_canvas(llm, canvases, prompt, steps, say))
    if "batch" in axes:
        series.append(scale.by_batch(llm, batches, prompt, steps, say))
    if "layers" in axes:
        series += scale.by_layers(llm, layers, prompt, steps, say)
    about, shown = _subject(where, llm), scale.tables(series, caches)
    found = scale.values(series, caches)
    return _report("How the cost of a step grows", command, about, shown, found, scale.NOTES)


def run_generate(where: Where, options: Options, command: str, say: Say) -> Report:
    """See `generate`."""
    llm = where.open()
    prompt: Sequence[int] = offline.requests(llm, 1)[0].token_ids
    if options["prompt"] is not None:
        prompt = prompt_ids(llm.config, options["prompt"])
    answers = generate.measure(llm, prompt, options["max_tokens"], options["runs"])
    about, shown = _subject(where, llm), generate.tables(answers)
    title = f"Generation, prompt {len(prompt)}, at most {options['max_tokens']} tokens"
    return _report(title, command, about, shown, generate.values(answers), generate.NOTES)


def run_offline(where: Where, options: Options, command: str, say: Say) -> Report:
    """See `offline`."""
    sizes = scale.sizes(options["concurrency"], "--concurrency")
    llm = where.open()
    prompt_ids(llm.config, options["prompt"])
    points, waits = [], []
    for size in sizes:
        points.append(offline.throughput(llm, size, max(sizes), options["runs"]))
        waits.append(offline.newcomer(llm, size, options["runs"]))
        say(f"{size} at once: served / offline {points[-1].ratio:.3f}")
    prefill = offline.cached(llm, options["prompt"], options["runs"])
    about, shown = _subject(where, llm), offline.tables(points, waits, prefill)
    found = offline.values(points, waits, prefill)
    return _report("Many requests at once", command, about, shown, found, offline.NOTES)


def run_serving(where: Where, options: Options, command: str, say: Say) -> Report:
    """See `serving`."""
    url = options["url"]
    drafts = options["drafts"] or ("text" if url is None else "off")
    if drafts not in DRAFTS:
        raise InvalidRequest(f"unknown drafts {drafts!r}; known: {', '.join(DRAFTS)}")
    if url is not None and where != Where(where.model, "auto", "auto", None, True):
        raise InvalidRequest("--url: its device, dtype and threads are chosen where it is started")
    if url is None and options["key_env"] is not None:
        raise InvalidRequest("--key-env belongs to --url; the server that is started has its own")
    lengths = scale.sizes(options["lengths"], "--lengths")
    file, seed, rates = options["prompts_file"], options["seed"], serving.rates(options["rates"])
    at_once = options["concurrency"] or ("" if rates else "1,2,4,8")
    loads = [
        serving.Load(n, None) for n in (scale.sizes(at_once, "--concurrency") if at_once else ())
    ]
    loads += [serving.Load(None, rate) for rate in rates]
    mix = TrafficMix(seed, lengths, conversations(file) if file is not None else ())
    asked = {"count": options["requests"], "drafts": drafts, "seed": seed, "say": say}
    if url is not None:
        key = serving.key_from(options["key_env"], os.environ)
        target = serving.Target(serving.base_url(url), key, where.model)
        points = serving.drive(target, loads, mix, timeout_s=options["timeout_s"], **asked)
        about = {"model": where.model, "server": target.url}
    else:
        directory, device, dtype = resolved(where.model, where.device, where.dtype, where.strict)
        words = ["--device", where.device, "--dtype", where.dtype]
        words += [] if where.strict else ["--no-strict"]
        with serving.serving(str(directory), words, where.threads) as target:
            points = serving.drive(target, loads, mix, timeout_s=options["timeout_s"], **asked)
        about = subject(where.model, load_config(directory, where.strict), device, dtype)
    title, found = "A server under load", serving.values(points)
    return _report(title, command, about, serving.tables(points), found, serving.NOTES)


SUITE: dict[str, Callable[[Where, Options, str, Say], Report]] = {
    "step": run_step,
    "compare": run_compare,
    "scale": run_scale,
    "generate": run_generate,
    "offline": run_offline,
    "serving": run_serving,
}
