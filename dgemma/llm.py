"""LLM: the friendly face. Joins weights, text and engine; every answer goes through the engine.

Knows how prompts become ids and events become text. Knows nothing about how a step is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from dgemma.compose.calibration import Calibration
from dgemma.compose.decide import Decision, decide
from dgemma.compose.drafts import best, drafts
from dgemma.compose.edit import Edited, edit
from dgemma.compose.fill import Filled, Hole, fill, infill
from dgemma.compose.plan import Plan
from dgemma.compose.questions import Question
from dgemma.compose.revise import Revised, repair, revise
from dgemma.constrain.cache import Calls, calls_of, named_tool
from dgemma.device import DeviceChoice, choose
from dgemma.diffusion.constrained import ConstrainedAnswer
from dgemma.engine.counters import Counters
from dgemma.engine.engine import Engine
from dgemma.engine.worker import Worker
from dgemma.errors import InvalidRequest, Overloaded
from dgemma.frontend import Frontend, Messages, ModelFacts, Prompt, TextStream, read_text_files
from dgemma.model.config import ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.params import SamplingParams
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Mode, Output, Request
from dgemma.weights.files import Checkpoint, find_model, open_checkpoint
from dgemma.weights.load import load_weights
from dgemma.weights.save import save_weights

T = TypeVar("T")
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "chat_template.jinja", "README.md")  # fmt: skip


class LLM:
    """A loaded model with its text layer and its engine. Made by `load`.

    Attributes:
        model: the network, a `torch.nn.Module`.
        config: its sizes.
        choice: device and dtype with their reasons.
        engine: what runs requests; `worker` is the thread that drives it.
        frontend: makes requests from prompts and text from events.
        tokenizer, template: None if the checkpoint has none.
        defaults: the checkpoint's own sampler.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        checkpoint: Checkpoint,
        choice: DeviceChoice,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        *,
        cache_bytes: int | None = None,
        max_running: int = 32,
    ) -> None:
        self.model = model
        self.config: ModelConfig = checkpoint.config
        self.checkpoint = checkpoint
        self.choice = choice
        self.tokenizer = tokenizer
        self.template = template
        self.defaults: SamplingParams = checkpoint.generation.params
        end_ids = checkpoint.generation.eos_token_ids or checkpoint.config.eos_token_ids
        self.engine = Engine(
            model, end_ids=end_ids, defaults=self.defaults, cache_bytes=cache_bytes,
            max_running=max_running,
        )  # fmt: skip
        self.worker = Worker(self.engine)
        spec = self.engine.spec
        self.frontend = Frontend(
            checkpoint.directory, tokenizer, template, end_ids=spec.end_ids, canvas=spec.length,
            context=self.engine.limits.context,
        )  # fmt: skip

    # -- prompts -------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """See `Frontend.prompt_ids`."""
        return self.frontend.prompt_ids(prompt)

    def chat_ids(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
    ) -> list[int]:
        """See `Frontend.chat_ids`."""
        return self.frontend.chat_ids(messages, tools, thinking)

    # -- running -------------------------------------------------------------------------------

    def submit(
        self, request: Request, *, chat: bool = False, calls: Calls | None = None
    ) -> TextStream:
        """Start a request, from any thread. Iterate the stream for its events, or close it.

        It runs whether or not the stream is read, beside all others, and its tokens are the same.

        Args:
            request: ids and parameters.
            chat: split thought, tool calls and text in the output.
            calls: tool calls that must be made, or kept to.

        Raises:
            InvalidRequest: the request cannot be honoured; nothing was started.
            Overloaded: too many requests wait.
        """
        prepared = self.frontend.prepare(request, chat=chat, calls=calls)
        reader, constraint = prepared.reader, prepared.constraint
        constrained = None if constraint is None else ConstrainedAnswer(*constraint)
        should_stop = None if reader is None else reader.should_stop
        return TextStream(
            self.worker.submit(prepared.request, should_stop, constrained), reader
        )  # fmt: skip

    def counters(self) -> Counters:
        """What runs now and what has run, as plain numbers."""
        return self.engine.counters()

    def close(self, *, finish: bool = False) -> None:
        """Cancel what runs, or wait until it is finished, and take no further request."""
        self.worker.close(finish=finish)

    def _run(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | None, *,
        n: int = 1, best_of: int | None = None, chat: bool = False, calls: Calls | None = None,
        mode: Mode = "diffusion", trace: bool = False,
    ) -> list[Output]:  # fmt: skip
        """All answers to all prompts, n each, computed together."""
        requests = drafts(prompts, params, best_of or n, mode=mode, trace=trace)
        if best_of is None:
            return self.run(requests, chat=chat, calls=calls)
        return self.run_plan(best(self.facts, requests, n, best_of), chat=chat, calls=calls)

    def run(
        self, requests: Sequence[Request], *, chat: bool = False, calls: Calls | None = None
    ) -> list[Output]:
        """Run requests together and wait for all; see `submit`."""
        streams: list[TextStream] = []
        outputs: list[Output] = []
        try:
            for request in requests:
                while True:
                    try:
                        streams.append(self.submit(request, chat=chat, calls=calls))
                        break
                    except Overloaded:  # more than may wait: first let some be finished
                        if len(outputs) == len(streams):
                            raise
                        outputs.append(streams[len(outputs)].result())
            return outputs + [stream.result() for stream in streams[len(outputs) :]]
        finally:
            for stream in streams:
                stream.close()
            for stream in streams:  # after an error: nothing of the call runs on behind it
                deque(stream, maxlen=0)

    def run_plan(self, plan: Plan[T], *, chat: bool = False, calls: Calls | None = None) -> T:
        """Run a plan of `dgemma.compose` to its end; its requests run beside all others."""
        try:
            requests = next(plan)
            while True:
                requests = plan.send(self.run(requests, chat=chat, calls=calls))
        except StopIteration as done:
            found: T = done.value
            return found
        finally:
            plan.close()

    def generate(
        self, prompt: Any, params: SamplingParams | None = None, *, n: int = 1,
        best_of: int | None = None, trace: bool = False,
    ) -> Any:  # fmt: skip
        """Continue plain text or ids: no chat template, no control tokens from text.

        Args:
            prompt: a string, a list of ids, or a list of either (a batch).
            params: how to draw.
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
        many = isinstance(prompt, Sequence) and not isinstance(prompt, str) and bool(prompt)
        batch = many and isinstance(prompt[0], Sequence)
        prompts = [self.prompt_ids(p) for p in (prompt if batch else [prompt])]
        outputs = self._run(prompts, params, n=n, best_of=best_of, trace=trace)
        return outputs if batch or n > 1 else outputs[0]

    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *,
        tools: Sequence[Mapping[str, Any]] | None = None, thinking: bool = False, n: int = 1,
        best_of: int | None = None, tool_choice: str | Mapping[str, Any] = "auto",
    ) -> Any:  # fmt: skip
        """Answer a conversation; the output's thought, tool calls and text are apart.

        Args:
            messages: {"role": ..., "content": ...} in order; see `dgemma.text.messages`.
            params: how to draw.
            tools: OpenAI-style function declarations; calls of strict ones keep to their schema.
            thinking: ask for a thought before the answer.
            n, best_of: drafts, as in `generate`; with n above 1 a list is returned.
            tool_choice: "auto", "none" (the tools are not shown), "required" (one of them is
                called for certain), or the one to call in OpenAI's form.

        Raises:
            InvalidRequest: malformed messages, tools or parameters.
            TemplateError: no chat template, or it refused the conversation.
        """
        choice, tool = named_tool(tool_choice)
        if choice == "required" and not tools:
            raise InvalidRequest(
                "tool_choice needs tools; give some, or leave it out", field="tool_choice"
            )
        shown = None if choice == "none" else tools
        calls = calls_of(tools, choice, tool)
        prompts = [self.chat_ids(messages, shown, thinking)]
        outputs = self._run(prompts, params, n=n, best_of=best_of, chat=True, calls=calls)
        return outputs if n > 1 else outputs[0]

    def stream(
        self, prompt: Prompt | Messages, params: SamplingParams | None = None, *,
        tools: Sequence[Mapping[str, Any]] | None = None, thinking: bool = False,
    ) -> TextStream:  # fmt: skip
        """The events of one answer as they happen: "frame" per step, "commit" per canvas, "done".

        Args:
            prompt: text or ids as in `generate`, or messages as in `chat`.
        """
        ids, chat = self.frontend.ids(prompt, tools, thinking)
        request = Request(token_ids=tuple(ids), params=params or SamplingParams(), frames=True)
        return self.submit(request, chat=chat, calls=calls_of(tools, "auto", None))

    def autoregress(
        self, prompt: Prompt | Messages, params: SamplingParams | None = None, *,
        tools: Sequence[Mapping[str, Any]] | None = None, thinking: bool = False,
    ) -> Output:  # fmt: skip
        """The same weights as an ordinary greedy autoregressive model: the baseline.

        Raises:
            InvalidRequest: a parameter that only steers denoising.
        """
        ids, chat = self.frontend.ids(prompt, tools, thinking)
        return self._run([ids], params, chat=chat, mode="autoregressive")[0]

    # -- on the canvas: see `dgemma.compose` ---------------------------------------------------

    @property
    def facts(self) -> ModelFacts:
        """See `Frontend.facts`."""
        return self.frontend.facts

    def fill(
        self, parts: Sequence[str | Hole], params: SamplingParams | None = None, *,
        context: str | None = None, search: bool = True,
    ) -> Filled:  # fmt: skip
        """Fill the holes between texts; see `dgemma.compose.fill.fill`."""
        return self.run_plan(fill(self.facts, parts, params, context=context, search=search))

    def infill(
        self, prefix: str, suffix: str, params: SamplingParams | None = None, *,
        context: str | None = None, max_hole: int | None = None, search: bool = True,
    ) -> Filled:  # fmt: skip
        """Write what stands between two texts; see `dgemma.compose.fill.infill`."""
        return self.run_plan(
            infill(self.facts, prefix, suffix, params, context=context, max_hole=max_hole,
                   search=search)
        )  # fmt: skip

    def edit(
        self, text: str, instruction: str | None = None,
        spans: Sequence[tuple[int, int]] | None = None, strength: float = 0.6,
        params: SamplingParams | None = None, *, context: str | None = None,
    ) -> Edited:  # fmt: skip
        """Write spans of a text anew, in place; see `dgemma.compose.edit.edit`."""
        return self.run_plan(
            edit(self.facts, text, instruction, spans, strength, params, context=context)
        )

    def revise(
        self, output: Output, below: float = 0.5, params: SamplingParams | None = None
    ) -> Revised:
        """Denoise the shaky tokens of an output again; see `dgemma.compose.revise.revise`."""
        return self.run_plan(revise(self.facts, output, below, params))

    def repair(self, text: str, params: SamplingParams, strength: float = 0.2) -> Output:
        """Make a text fit a schema, regex or grammar; see `dgemma.compose.revise.repair`."""
        return self.run_plan(repair(self.facts, text, params, strength))

    def decide(
        self, state: str | Messages | Sequence[int], questions: Sequence[Question], *,
        samples: int = 1, joint: bool = False, seed: int = 0,
        calibration: Calibration | None = None, canvas_length: int | None = None,
    ) -> Decision:  # fmt: skip
        """Answer typed questions by one reading; see `dgemma.compose.decide.decide`.

        Args:
            state: as there, or messages, which then are the whole prompt.
        """
        if isinstance(state, list | tuple) and state and isinstance(state[0], Mapping):
            state = self.chat_ids(state, None, False)
        return self.run_plan(
            decide(self.facts, state, questions, samples=samples, joint=joint, seed=seed,  # type: ignore[arg-type]
                   calibration=calibration, canvas_length=canvas_length)
        )  # fmt: skip


def load(
    name: str | Path = "nano", *, device: str = "auto", dtype: str = "auto", strict: bool = True,
    cache_bytes: int | None = None, max_running: int = 32,
) -> LLM:  # fmt: skip
    """Load a model.

    Args:
        name: a bundled name ("nano"), a directory, or a hub name in the local cache.
        device: "auto", "cpu" or "cuda".
        dtype: "auto" (on a CPU fp32 under 1 GB of weights, else the checkpoint's own), "float32",
            "bfloat16" or "float16".
        strict: refuse unknown keys in config.json.
        cache_bytes: memory for the keys and values of all requests; None: a quarter of a CPU's
            free memory, 0.8 of a GPU's, and never more than could be of use.
        max_running: most requests that are worked on at a time; more wait.

    Raises:
        ModelNotFound, ConfigError, CheckpointError, TokenizerError, TemplateError, DeviceError:
            what is wrong and what to do; nothing is half loaded.
    """
    directory, _ = find_model(name)
    checkpoint = open_checkpoint(directory, strict=strict)
    tokenizer, template = read_text_files(directory)
    with torch.device("meta"):
        model = DiffusionGemma(checkpoint.config)
    count = sum(p.numel() for p in model.parameters())
    choice = choose(device, dtype, count, checkpoint.dtype)
    load_weights(model, checkpoint, device=choice.device, dtype=choice.dtype)
    model.eval().requires_grad_(False)
    return LLM(
        model, checkpoint, choice, tokenizer, template, cache_bytes=cache_bytes,
        max_running=max_running,
    )  # fmt: skip


def save(llm: LLM, directory: str | Path) -> Path:
    """Write a model in the released layout: configs, weights, tokenizer, template, card.

    Raises:
        CheckpointError: the directory holds something else or cannot be written.
    """
    source = llm.checkpoint.directory
    files = {n: source / n for n in TEXT_FILES if (source / n).exists()}
    return save_weights(
        llm.model, directory, config=llm.config, generation=llm.checkpoint.generation,
        files=files, aside=llm.checkpoint,
    )  # fmt: skip
