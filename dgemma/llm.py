"""LLM: the friendly face. Joins weights, text and engine; every answer goes through the engine.

Knows how prompts become ids and events become text. Knows nothing about how a step is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dgemma.device import Choice, choose
from dgemma.engine.counters import Counters
from dgemma.engine.engine import Engine
from dgemma.engine.worker import Worker
from dgemma.errors import InvalidRequest, Overloaded, TemplateError, TokenizerError
from dgemma.model.config import ModelConfig
from dgemma.model.transformer import DiffusionGemma
from dgemma.text.answer import AnswerReader
from dgemma.text.chat import ChatTemplate
from dgemma.text.parse import MarkerIds, thought_is_open
from dgemma.text.stream import Stream
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Mode, Output, Request, SamplingParams, ThoughtIds
from dgemma.weights.files import Checkpoint, find_model, open_checkpoint
from dgemma.weights.load import load_weights
from dgemma.weights.save import save_weights

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "chat_template.jinja", "README.md")  # fmt: skip


class LLM:
    """A loaded model with its text layer and its engine. Made by `load`.

    Attributes:
        model: the network, a `torch.nn.Module`.
        config: its sizes.
        choice: device and dtype with their reasons.
        engine: what runs requests; `worker` is the thread that drives it.
        tokenizer, template: None where the checkpoint has none.
        defaults: the checkpoint's own sampler.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        checkpoint: Checkpoint,
        choice: Choice,
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
        self._markers = None if tokenizer is None else MarkerIds.of(tokenizer)

    # -- prompts -------------------------------------------------------------------------------

    def _text(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenizerError(
                f"{self.checkpoint.directory} has no tokenizer.json, so text cannot be read or "
                "written; prompt with a list of token ids, or add the file"
            )
        return self.tokenizer

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of a plain prompt: BOS and text without control tokens, or the ids given.

        Raises:
            InvalidRequest: it is empty, or neither text nor ids.
            TokenizerError: text, but no tokenizer.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidRequest("the prompt is empty; give some text")
            return self._text().encode(prompt, bos=True)
        try:
            ids: list[int] = [*prompt]
        except TypeError as error:
            raise InvalidRequest("a prompt is a string or a list of token ids") from error
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token")
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise InvalidRequest("a prompt is a string or a list of token ids (integers)")
        return ids

    def chat_ids(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, thinking: bool
    ) -> list[int]:
        """Ids of a conversation under the checkpoint's chat template.

        Raises:
            InvalidRequest: no messages, or one that is malformed.
            TemplateError: the checkpoint has no chat template.
        """
        if self.template is None:
            self._text()
            raise TemplateError(
                f"{self.checkpoint.directory} has no chat template; use generate() with plain text"
            )
        return self.template.encode(messages, tools=tools, thinking=thinking)

    # -- running -------------------------------------------------------------------------------

    def submit(self, request: Request, *, chat: bool = False) -> Stream:
        """Start a request, from any thread. Iterate the stream for its events, or close it.

        It runs whether or not the stream is read, beside all others, and its tokens are the same.

        Args:
            request: ids and parameters.
            chat: split thought, tool calls and text in the output.

        Raises:
            InvalidRequest: the request cannot be honoured; nothing was started.
            Overloaded: too many requests wait.
        """
        stop = request.params.stop or ()
        if stop or chat:
            self._text()
        open_thought = False
        if chat and self._markers is not None:
            markers = self._markers
            open_thought = thought_is_open(markers, request.token_ids)
            thought = ThoughtIds(markers.channel_open, markers.channel_close, open_thought)
            request = replace(request, thought=thought)
        reader = None
        if self.tokenizer is not None:
            reader = AnswerReader(self.tokenizer, stop=stop, chat=chat, thought_open=open_thought)
        texts: deque[str] = deque()

        def enough(ids: Sequence[int]) -> bool:
            if reader is None:
                return False
            texts.append(reader.push(ids))
            return reader.stopped

        return Stream(self.worker.submit(request, enough), reader, texts, self._draft)

    def counters(self) -> Counters:
        """What runs now and what has run, as plain numbers."""
        return self.engine.counters()

    def close(self, *, finish: bool = False) -> None:
        """Cancel what runs, or wait until it is finished, and take no further request."""
        self.worker.close(finish=finish)

    def _draft(self, ids: Sequence[int]) -> str:
        return "" if self.tokenizer is None else self.tokenizer.decode(ids)

    def _run(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | None, *,
        n: int = 1, chat: bool = False, mode: Mode = "diffusion", trace: bool = False,
    ) -> list[Output]:  # fmt: skip
        """All answers to all prompts, n each, computed together; seeds count up from the given."""
        if n < 1:
            raise InvalidRequest(f"n must be at least 1, got {n}")
        params = params or SamplingParams()
        streams: list[Stream] = []
        outputs: list[Output] = []
        try:
            for prompt in prompts:
                for draft in range(n):
                    own = params
                    if params.seed is not None:
                        own = replace(params, seed=(params.seed + draft) % 2**64)
                    request = Request(
                        token_ids=tuple(prompt), params=own, mode=mode, index=len(streams),
                        trace=trace,
                    )  # fmt: skip
                    while True:
                        try:
                            streams.append(self.submit(request, chat=chat))
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

    def generate(
        self, prompt: Any, params: SamplingParams | None = None, *, n: int = 1, trace: bool = False
    ) -> Any:
        """Continue plain text or ids: no chat template, no control tokens from text.

        Args:
            prompt: a string, a list of ids, or a list of either (a batch).
            params: how to draw.
            n: drafts per prompt, with seeds seed, seed + 1, ...
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
        outputs = self._run(prompts, params, n=n, trace=trace)
        return outputs if batch or n > 1 else outputs[0]

    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *,
        tools: Sequence[Mapping[str, Any]] | None = None, thinking: bool = False, n: int = 1,
    ) -> Any:  # fmt: skip
        """Answer a conversation; the output's thought, tool calls and text are apart.

        Args:
            messages: {"role": ..., "content": ...} in order; see `dgemma.text.messages`.
            params: how to draw.
            tools: OpenAI-style function declarations.
            thinking: ask for a thought before the answer.
            n: drafts; above 1 a list is returned.

        Raises:
            InvalidRequest: malformed messages, tools or parameters.
            TemplateError: no chat template, or it refused the conversation.
        """
        outputs = self._run([self.chat_ids(messages, tools, thinking)], params, n=n, chat=True)
        return outputs if n > 1 else outputs[0]

    def stream(
        self, prompt: Prompt | Messages, params: SamplingParams | None = None, *,
        tools: Sequence[Mapping[str, Any]] | None = None, thinking: bool = False,
    ) -> Stream:  # fmt: skip
        """The events of one answer as they happen: "frame" per step, "commit" per canvas, "done".

        Args:
            prompt: text or ids as in `generate`, or messages as in `chat`.
        """
        ids, chat = self._either(prompt, tools, thinking)
        request = Request(token_ids=tuple(ids), params=params or SamplingParams(), frames=True)
        return self.submit(request, chat=chat)

    def autoregress(
        self, prompt: Prompt | Messages, params: SamplingParams | None = None, *,
        tools: Sequence[Mapping[str, Any]] | None = None, thinking: bool = False,
    ) -> Output:  # fmt: skip
        """The same weights as an ordinary greedy autoregressive model: the baseline.

        Raises:
            InvalidRequest: a parameter that only steers denoising.
        """
        ids, chat = self._either(prompt, tools, thinking)
        return self._run([ids], params, chat=chat, mode="autoregressive")[0]

    def _either(
        self, prompt: Any, tools: Sequence[Mapping[str, Any]] | None, thinking: bool
    ) -> tuple[list[int], bool]:
        """Ids, and whether the prompt was a conversation."""
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            return self.chat_ids(prompt, tools, thinking), True
        if tools or thinking:
            raise InvalidRequest("tools and thinking need messages, not a plain prompt")
        return self.prompt_ids(prompt), False


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
    tokenizer = template = None
    if (directory / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_directory(directory)
        if (directory / "chat_template.jinja").exists():
            template = ChatTemplate.from_directory(directory, tokenizer)
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
