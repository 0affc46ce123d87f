"""LLM: the Python interface. It joins weights, text and engine; the engine makes every answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload

import torch

from dgemma.compose.calibration import Calibration
from dgemma.compose.decide import Decision, decide
from dgemma.compose.edit import Edited, edit
from dgemma.compose.fill import Filled, Hole, fill, infill
from dgemma.compose.plan import Plan
from dgemma.compose.questions import Question
from dgemma.compose.revise import Revised, repair, revise
from dgemma.compose.run import PlanStream, begun, run_drafts, run_plan, run_requests
from dgemma.constrain.tool_choice import Tools, tool_use
from dgemma.device import DeviceChoice
from dgemma.engine.counters import Counters
from dgemma.engine.engine import Engine
from dgemma.engine.worker import Worker
from dgemma.errors import InvalidRequest
from dgemma.events import EventStream
from dgemma.frontend import Frontend, Messages, ModelFacts, Prompt, Variables
from dgemma.loading import about, load_model, save_model
from dgemma.model.config import ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import Params, SamplingKeywords, SamplingParams
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Mode, Output, Request
from dgemma.weights.files import Checkpoint

T = TypeVar("T")


class LLM:
    """A loaded model with its text layer and its engine. Made by `load`.

    It closes at the end of a `with`. `params` are `SamplingParams`, or a dict of its fields; the
    same fields as keywords replace those of `params`.

    Attributes:
        model: the network, a `torch.nn.Module`; `config` has its sizes.
        choice: device and dtype with their reasons.
        engine: runs the requests; `worker` is the thread that drives it.
        frontend: makes ids from prompts and text from ids.
        tokenizer, template: None if the checkpoint has none.
        defaults: the checkpoint's own sampler.
        calibration: what was fitted for the checkpoint.
        about: device, size and purpose in plain values.
        single_turn: its dgemma.json says that the model answers a message well only if
            no other turns come before it. `chat` sends what it is given, all the same.
    """

    def __new__(cls, *given: Any, **more: Any) -> LLM:
        """Refuses a name with a hint, before `__init__` misses its arguments."""
        model = more.get("model", given[0] if given else None)
        if not isinstance(model, DiffusionGemma):
            raise InvalidRequest('use dgemma.load("nano") to load a model; it returns an LLM')
        return object.__new__(cls)

    def __init__(
        self, model: DiffusionGemma, checkpoint: Checkpoint, choice: DeviceChoice,
        tokenizer: Tokenizer | None, template: ChatTemplate | None, *,
        cache_bytes: int | None = None, max_running: int = 32, share_prefix_cache: bool = False,
        calibration: str | Path | None = None, learn_restart: bool = False,
    ) -> None:  # fmt: skip
        self.model = model
        self.config: ModelConfig = checkpoint.config
        self.checkpoint = checkpoint
        self.choice = choice
        self.tokenizer = tokenizer
        self.template = template
        self.defaults: SamplingParams = checkpoint.generation.sampling
        self.single_turn: bool = checkpoint.generation.single_turn
        self.about = about(checkpoint, choice, max_running)
        end_ids = checkpoint.generation.eos_token_ids or checkpoint.config.eos_token_ids
        self.engine = Engine(
            model, end_ids=end_ids, defaults=self.defaults, cache_bytes=cache_bytes,
            max_running=max_running, share_prefix_cache=share_prefix_cache,
        )  # fmt: skip
        self.calibration = Calibration.of(calibration, checkpoint.directory)
        self.engine.limits.learnt.take(*self.calibration.limits, learning=learn_restart)
        self.worker = Worker(self.engine)
        spec = self.engine.spec
        self.frontend = Frontend(
            checkpoint.path, tokenizer, template, end_ids=spec.end_ids, canvas=spec.length,
            context=self.engine.limits.context,
        )  # fmt: skip
        self.engine.frontend = self.frontend

    def __repr__(self) -> str:
        name, dtype = self.checkpoint.path.name, str(self.choice.dtype).removeprefix("torch.")
        return f"LLM({name!r}, {self.device}, {dtype}, context {self.engine.limits.context})"

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return self.choice.device

    @property
    def facts(self) -> ModelFacts:
        """See `Frontend.facts`."""
        return self.frontend.facts

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """See `Frontend.prompt_ids`."""
        return self.frontend.prompt_ids(prompt)

    def chat_ids(
        self, messages: Messages, tools: Tools | None = None, thinking: bool = False,
        chat_template_kwargs: Variables = None,
    ) -> list[int]:  # fmt: skip
        """See `Frontend.chat_ids`."""
        return self.frontend.chat_ids(messages, tools, thinking, chat_template_kwargs)

    # -- running -------------------------------------------------------------------------------

    def submit(self, request: Request) -> EventStream:
        """Start a request, from any thread. Iterate the stream for its events, or close it.

        It runs whether or not the stream is read, beside all others, and its tokens are the same.

        Raises:
            InvalidRequest: the request cannot be honoured; nothing was started.
            Overloaded: too many requests wait.
        """
        return self.worker.submit(request)

    def counters(self) -> Counters:
        """The state of the engine and its work so far, as plain numbers."""
        return self.engine.counters()

    def close(self, *, finish: bool = False) -> None:
        """Cancel the running requests, or let them finish; take no further one."""
        self.worker.close(finish=finish)

    def run(self, requests: Sequence[Request]) -> list[Output]:
        """Run requests together and wait for all; see `submit`."""
        return run_requests(self.submit, requests)

    def run_plan(self, plan: Plan[T]) -> T:
        """Run a plan of `dgemma.compose` to its end; its requests run beside all others."""
        return run_plan(self.submit, plan)

    def stream_plan(self, plan: Plan[T], *, search: bool = False) -> PlanStream[T]:
        """The events of a plan as they happen, the drafts of its requests among them.

        `search` shows requests that only look for something (lengths, readings), too.
        """
        return PlanStream(self.submit, begun(plan), search=search)

    # -- answers -------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str: the first one wins
        self, prompt: Prompt, params: Params = None, *, n: Literal[1] = 1,
        best_of: int | None = None, trace: bool = False, **sampling: Unpack[SamplingKeywords],
    ) -> Output: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt], params: Params = None, *, n: int = 1,
        best_of: int | None = None, trace: bool = False, **sampling: Unpack[SamplingKeywords],
    ) -> list[Output]: ...  # fmt: skip

    def generate(
        self, prompt: Prompt | Sequence[Prompt], params: Params = None, *, n: int = 1,
        best_of: int | None = None, trace: bool = False, **sampling: Unpack[SamplingKeywords],
    ) -> Output | list[Output]:  # fmt: skip
        """Continue plain text or ids: no chat template, no control tokens from text.

        Args:
            prompt: a string, a list of ids, or a list of either (a batch).
            n: drafts per prompt, with seeds seed, seed + 1, ...
            best_of: make so many drafts and return the n that the encoder itself finds likeliest,
                the best first.
            trace: keep every denoising step in `Output.trace`.

        Returns:
            An output; for a batch or n > 1 a list, drafts of one prompt side by side.

        Raises:
            InvalidRequest: an empty prompt or batch, or a parameter that cannot be honoured.
            ContextOverflow: a prompt too long for the model.
            TokenizerError: text, but the checkpoint has no tokenizer.
        """
        batch = self.frontend.batch(prompt)
        prompts = [self.prompt_ids(one) for one in batch or [prompt]]
        drawn = SamplingParams.of(params, **sampling)
        outputs = run_drafts(
            self.submit, self.frontend, prompts, drawn, n=n, best_of=best_of, trace=trace
        )  # fmt: skip
        return outputs if batch is not None or n > 1 else outputs[0]

    @overload
    def chat(  # type: ignore[overload-overlap]  # an empty list may be either: it is refused
        self, messages: Messages, params: Params = None, *, tools: Tools | None = None,
        thinking: bool = False, n: Literal[1] = 1, best_of: int | None = None,
        tool_choice: str | Mapping[str, Any] = "auto", chat_template_kwargs: Variables = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Output: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages | Sequence[Messages], params: Params = None, *,
        tools: Tools | None = None, thinking: bool = False, n: int = 1,
        best_of: int | None = None, tool_choice: str | Mapping[str, Any] = "auto",
        chat_template_kwargs: Variables = None, **sampling: Unpack[SamplingKeywords],
    ) -> list[Output]: ...  # fmt: skip

    def chat(
        self, messages: Messages | Sequence[Messages], params: Params = None, *,
        tools: Tools | None = None, thinking: bool = False, n: int = 1,
        best_of: int | None = None, tool_choice: str | Mapping[str, Any] = "auto",
        chat_template_kwargs: Variables = None, **sampling: Unpack[SamplingKeywords],
    ) -> Output | list[Output]:  # fmt: skip
        """Answer a conversation; the output's thought, tool calls and text are apart.

        Args:
            messages: {"role": ..., "content": ...} in order, see `dgemma.text.messages`; or a list
                of conversations (a batch).
            tools: OpenAI-style function declarations; calls of strict ones keep to their schema.
            thinking: ask for a thought before the answer.
            n, best_of: drafts, as in `generate`; a batch or n > 1 gives a list.
            tool_choice: "auto", "none" (the tools are not shown), "required" (one of them is
                called for certain), or the one to call in OpenAI's form.
            chat_template_kwargs: other variables of the chat template, such as
                {"preserve_thinking": True}; refused if it does not read them.

        Raises:
            InvalidRequest: malformed messages, tools or parameters.
            TemplateError: no chat template, or it refused the conversation.
        """
        calls = tool_use(tools, tool_choice)
        shown = None if tool_choice == "none" else tools
        batch = self.frontend.batch(messages)
        asked = shown, thinking, chat_template_kwargs
        prompts = [self.chat_ids(one, *asked) for one in batch or [messages]]
        drawn = SamplingParams.of(params, **sampling)
        outputs = run_drafts(self.submit, self.frontend, prompts, drawn, n=n, best_of=best_of,
                             chat=True, tool_use=calls)  # fmt: skip
        return outputs if batch is not None or n > 1 else outputs[0]

    def stream(
        self, prompt: Prompt | Messages, params: Params = None, *, tools: Tools | None = None,
        thinking: bool = False, chat_template_kwargs: Variables = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> EventStream:  # fmt: skip
        """The events of one answer as they happen: "frame" per step, "commit" per canvas, "done".

        The prompt is text or ids as in `generate`, or messages as in `chat`.
        """
        ids, chat = self.frontend.ids(prompt, tools, thinking, chat_template_kwargs)
        drawn, use = SamplingParams.of(params, **sampling), tool_use(tools)
        return self.submit(
            Request(token_ids=tuple(ids), params=drawn, chat=chat, tool_use=use, frames=True)
        )

    def autoregress(
        self, prompt: Prompt | Messages, params: Params = None, *, tools: Tools | None = None,
        thinking: bool = False, draft: bool = False, chat_template_kwargs: Variables = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Output:  # fmt: skip
        """The same weights as an ordinary greedy autoregressive model: the baseline.

        `draft`: the same answer in fewer passes; it may be drawn, by `temperature` and `seed`.

        Raises:
            InvalidRequest: a parameter that only steers denoising, or a strict tool.
        """
        ids, chat = self.frontend.ids(prompt, tools, thinking, chat_template_kwargs)
        drawn = SamplingParams.of(params, **sampling)
        mode: Mode = "exact" if draft else "autoregressive"
        request = Request(token_ids=tuple(ids), params=drawn, mode=mode, chat=chat,
                          tool_use=tool_use(tools))  # fmt: skip
        return self.submit(request).result()

    # -- on the canvas: see `dgemma.compose` ---------------------------------------------------

    def fill(
        self, parts: Sequence[str | Hole], params: Params = None, *, context: str | None = None,
        search: bool = True, **sampling: Unpack[SamplingKeywords],
    ) -> Filled:  # fmt: skip
        """Fill the holes between texts; see `dgemma.compose.fill.fill`."""
        drawn = SamplingParams.of(params, **sampling)
        return self.run_plan(fill(self.facts, parts, drawn, context=context, search=search))

    def infill(
        self, prefix: str, suffix: str, params: Params = None, *, context: str | None = None,
        max_hole: int | None = None, search: bool = True, **sampling: Unpack[SamplingKeywords],
    ) -> Filled:  # fmt: skip
        """Write the text between two others; see `dgemma.compose.fill.infill`."""
        drawn = SamplingParams.of(params, **sampling)
        return self.run_plan(infill(self.facts, prefix, suffix, drawn, context=context,
                                    max_hole=max_hole, search=search))  # fmt: skip

    def edit(
        self, text: str, instruction: str | None = None,
        spans: Sequence[tuple[int, int]] | None = None, strength: float = 0.6,
        params: Params = None, *, context: str | None = None, **sampling: Unpack[SamplingKeywords],
    ) -> Edited:  # fmt: skip
        """Rewrite spans of a text in place; see `dgemma.compose.edit.edit`."""
        drawn = SamplingParams.of(params, **sampling)
        return self.run_plan(edit(self.facts, text, instruction, spans, strength, drawn,
                                  context=context))  # fmt: skip

    def revise(
        self, output: Output, below: float = 0.5, params: Params = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Revised:  # fmt: skip
        """Denoise the uncertain tokens of an output again; see `dgemma.compose.revise.revise`."""
        return self.run_plan(
            revise(self.facts, output, below, SamplingParams.of(params, **sampling))
        )

    def repair(
        self, text: str, params: Params = None, strength: float = 0.2, best_of: int = 1,
        **sampling: Unpack[SamplingKeywords],
    ) -> Output:  # fmt: skip
        """Make a text fit a schema, regex or grammar; see `dgemma.compose.revise.repair`."""
        drawn = SamplingParams.of(params, **sampling)
        return self.run_plan(repair(self.facts, text, drawn, strength, best_of))

    def decide(
        self, state: str | Messages | Sequence[int],
        questions: Sequence[Question] | Mapping[str, Any], *, samples: int = 1, joint: bool = False,
        seed: int = 0, calibration: Calibration | None = None, canvas_length: int | None = None,
    ) -> Decision:  # fmt: skip
        """Answer typed questions by one reading; see `dgemma.compose.decide.decide`.

        A `state` of messages is the whole prompt. The model's own `calibration` is the default.
        """
        if isinstance(state, list | tuple) and state and isinstance(state[0], Mapping):
            state = self.chat_ids(state)
        return self.run_plan(
            decide(self.facts, state, questions, samples=samples, joint=joint, seed=seed,  # type: ignore[arg-type]
                   calibration=self.calibration if calibration is None else calibration,
                   canvas_length=canvas_length)
        )  # fmt: skip


def load(
    name: str | Path = "nano", *, device: str | torch.device = "auto", strict: bool = True,
    dtype: str | torch.dtype = "auto", calibration: str | Path | None = None,
    cache_bytes: int | None = None, max_running: int = 32, attention: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
    share_prefix_cache: bool = False, learn_restart: bool = False, memory: str | int | None = None,
    cache_dtype: str = "auto",
) -> LLM:  # fmt: skip
    """Load a model.

    Args:
        name: a bundled name ("nano"), a directory, or a hub name in the local cache.
        device: "auto", "cpu", "cuda" or "mps".
        memory: most that is taken on the device, "18GB" or "16GiB"; see docs/released-weights.md.
        dtype: "float32", "bfloat16", "float16", or "auto" (small on a CPU: fp32, else as stored).
        cache_dtype: "fp8" keeps the keys and values of full layers in 8 bits (e4m3).
        strict: refuse unknown keys in config.json.
        cache_bytes: memory for keys and values; None: what `memory` leaves, or a share of the free.
        max_running: most requests that are worked on at a time; more wait.
        attention: "reference" (each request by itself, so its tokens never depend on the others),
            "paged" (all requests at once) or "auto": reference on a CPU, paged on CUDA.
        progress: called while the weights load, with the bytes that are loaded, and all of them.
        share_prefix_cache: owners of requests share the cached keys and values of prompts.
        calibration: a file of `dgemma calibrate`; None: calibration.json of the checkpoint, if any.
        learn_restart: answers change what `restart_after="auto"` means in later requests.

    Raises:
        DGemmaError: of a kind that names the fault, with its remedy; nothing is half loaded.
    """
    found = load_model(
        name, device=device, dtype=dtype, strict=strict, attention=attention, progress=progress,
        cache_dtype=cache_dtype, memory=memory, cache_bytes=cache_bytes, running=max_running,
    )  # fmt: skip
    return LLM(
        found.model, found.checkpoint, found.choice, found.tokenizer, found.template,
        cache_bytes=found.cache_bytes, share_prefix_cache=share_prefix_cache,
        max_running=max_running, calibration=calibration, learn_restart=learn_restart,
    )  # fmt: skip


def save(llm: LLM, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model in the released layout: configs, weights, tokenizer, template, card.

    `overwrite` replaces the checkpoint that is there, as a whole, be it the model's own.

    Raises:
        CheckpointError: the directory holds something that is to stay, or cannot be written.
    """
    return save_model(llm.model, llm.checkpoint, directory, overwrite=overwrite)
