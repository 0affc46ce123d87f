"""The plain values that cross the borders between the parts of `dgemma`.

Frozen dataclasses of ints, floats, strings and bytes. They must not know tensors (no torch),
files, tokenizers or HTTP, so that a client can import them in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dgemma.answer_parts import Constraint as Constraint
from dgemma.answer_parts import TokenScore as TokenScore
from dgemma.answer_parts import Verdict as Verdict
from dgemma.errors import bad_field
from dgemma.params import SamplingParams, refused
from dgemma.request_parts import MOST_EDITS, PromptContent, ThoughtIds, ToolUse, check_types
from dgemma.request_parts import CanvasControl as CanvasControl
from dgemma.request_parts import CanvasEdit as CanvasEdit
from dgemma.request_parts import checked_ids as checked_ids

FinishReason = Literal["stop", "length", "cancelled", "error"]
EventType = Literal["status", "frame", "commit", "done"]
Mode = Literal["diffusion", "autoregressive", "exact", "score"]
Field = Literal["text", "thinking", "tool_call", ""]
"""The field of an answer that an id belongs to; "": none (a marker, an id after the end)."""
StopReason = Literal["", "converged", "step_cap"]
"""The reason why a canvas is finished; "" while it is not."""

PAGE = 64
"""Tokens of a page of the key-value memory."""

ATTENTION_PATHS = ("auto", "reference", "paged")
"""Ways from queries to keys: each request by itself, or all requests at once."""

CACHE_DTYPES = ("auto", "fp8")
"""Number formats of the keys and values of full layers: the model's, or e4m3."""

MOST_PRIORITY, MOST_SECONDS = 1000, 10**9
"""Bounds of `Request.priority` and of its times."""

ENTROPY_PER_NAT = 64
"""`Event.entropy` holds round(64 x nats) per position, capped at 255 (about 4 nats)."""

MOST_SHOWN = 8
"""Alternatives of a position in a frame."""

SHOWN = 60
"""Most characters of an answer in its `repr`."""


_NONE = type(None)
_REQUEST_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "params": (SamplingParams, "SamplingParams"), "mode": (str, "a string"),
    **dict.fromkeys(("chat", "frames", "status", "trace"), (bool, "true or false")),
    "tool_use": ((ToolUse, _NONE), "a ToolUse"), "thought": ((ThoughtIds, _NONE), "ThoughtIds"),
    "canvas": ((CanvasControl, _NONE), "a CanvasControl"),
    **dict.fromkeys(("contents", "edits"), ((tuple, list), "a tuple")),
    **dict.fromkeys(("index", "score_from", "priority", "alternatives"), (int, "an integer")),
    **dict.fromkeys(("owner", "replaces"), (str, "a string")),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAbout:
    """A loaded model, for those who choose what to ask of it.

    Attributes:
        device, dtype: where, and in which number format, it computes.
        parameters: numbers in its weights.
        running: most answers that it denoises at a time.
        single_turn: it answers a message well only if no other turns come before it.
        code: whether it was trained to write code.
        examples: prompts that it answers well; none: the checkpoint names none.
    """

    device: str
    dtype: str
    parameters: int
    running: int
    single_turn: bool
    code: bool
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One answer to be made by the engine.

    Attributes:
        token_ids: the prompt; never empty.
        params: how to draw; None fields are filled by the engine.
        mode: "diffusion"; "autoregressive" for token after token; "exact" for the same answer, of
            which drafts on a canvas save passes; "score" for the log-probabilities
            that the encoder gives to the prompt's own ids from `score_from` on, and no answer.
        chat: whether thought, tool calls and text of the answer come apart; else all is text.
        tool_use: the tools that an answer may call, and whether it must; None: it may call none.
        index: the caller's label, copied into every event.
        frames: whether a "frame" event is wanted for each denoising step.
        alternatives: how many of the likeliest ids of each position come with a frame, 0 to 8.
        status: whether "status" events are wanted until the first step.
        trace: whether `Output.trace` holds every step.
        thought: needed when `params.thinking_budget` is set; a chat gets it from the engine.
        canvas: control of the first canvas.
        edits: of its canvases, between two steps; see `dgemma.diffusion.edits`.
        contents: parts of the prompt that stand for other content, in order. Cached keys and values
            are shared up to the first that differs; the network itself reads `token_ids` alone.
        score_from: first scored position of a "score" request, at least 1.
        priority: of the owner's requests, the highest goes first; 0 is a person who waits, less is
            for work in the background. Neither it nor any field below changes the tokens.
        owner: whose request it is. Owners have equal shares, however many requests one has, and
            share no cached keys and values of callers, so that none can time another's prompts.
        replaces: a label; a newer request of the same owner and label cancels this one (an editor's
            completion).
        deadline_s: seconds after which the request ends with an error, whatever it has.
        queue_timeout_s: seconds after which it ends with an error if it has not begun.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    mode: Mode = "diffusion"
    chat: bool = False
    tool_use: ToolUse | None = None
    index: int = 0
    frames: bool = False
    alternatives: int = 0
    status: bool = False
    trace: bool = False
    thought: ThoughtIds | None = None
    canvas: CanvasControl | None = None
    edits: tuple[CanvasEdit, ...] = ()
    contents: tuple[PromptContent, ...] = ()
    score_from: int = 1
    priority: int = 0
    owner: str = ""
    replaces: str = ""
    deadline_s: float | None = None
    queue_timeout_s: float | None = None

    @property
    def needs_text(self) -> bool:
        """Whether only a model with a tokenizer can run it."""
        params = self.params
        return bool(
            self.chat or self.tool_use or params.stop or params.bad_words or params.constraint_field
        )

    def __post_init__(self) -> None:
        check_types(self, _REQUEST_TYPES)
        object.__setattr__(self, "token_ids", checked_ids("token_ids", self.token_ids))
        if abs(self.priority) > MOST_PRIORITY:
            raise refused("priority", f"be -{MOST_PRIORITY} to {MOST_PRIORITY}", self.priority)
        for name in ("deadline_s", "queue_timeout_s"):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= MOST_SECONDS:
                raise refused(name, f"be above 0 and at most {MOST_SECONDS} seconds", value)
        if not 0 <= self.alternatives <= MOST_SHOWN:
            raise refused("alternatives", f"be 0 to {MOST_SHOWN}", self.alternatives)
        if self.alternatives and not self.frames:
            raise bad_field("alternatives", "come with frames; ask for frames, too")
        if len(self.edits) > MOST_EDITS:
            raise bad_field("edits", f"are {len(self.edits)}, more than {MOST_EDITS}; give fewer")
        if not all(isinstance(edit, CanvasEdit) for edit in self.edits):
            raise refused("edits", "hold CanvasEdit alone")
        end = 0
        for content in self.contents:
            if not isinstance(content, PromptContent):
                raise refused("contents", "hold PromptContent alone", content)
            if content.start < end:
                raise bad_field("contents", "must be in the order of the prompt, none over another")
            end = content.start + content.length
        if end > len(self.token_ids):
            raise bad_field("contents", f"reach to {end}, past the {len(self.token_ids)} ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The cost of an answer.

    `thought_tokens` are those of the completion that are in thoughts of a chat; `steps` counts
    denoising steps (or autoregressive passes), and `discarded_steps` those of them whose canvas was
    begun anew. Canvases that race beside another take no further step.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    thought_tokens: int = 0
    canvases: int = 0
    steps: int = 0
    discarded_steps: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_step(self) -> float:
        """Committed tokens per denoising step; 0.0 before the first step."""
        return self.completion_tokens / self.steps if self.steps else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStep:
    """One denoising step as it happened.

    Attributes:
        canvas, attempt, step: counted from 0; see `SamplingParams.tries` and `race`.
        temperature: of this step.
        ids: the canvas the network read.
        argmax: the most likely id of each position.
        accepted: one byte a position: 1 if its sample was accepted, 2 if it is pinned, else 0.
        entropy: nats of each position under the tempered distribution.
        reason: why the canvas ended here: "converged", "step_cap", or "" if it went on.
    """

    canvas: int
    step: int
    temperature: float
    ids: tuple[int, ...]
    argmax: tuple[int, ...]
    accepted: bytes
    entropy: tuple[float, ...]
    reason: StopReason = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call the model asked for: the name and the arguments as plain JSON values."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidToolCall:
    """What stands where a call should, but cannot be run.

    Attributes:
        text: as the model wrote it, without the markers around it.
        error: the reason why it is not a call.
        name: of the tool, if it can be read.
    """

    text: str
    error: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of an answer's text; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """A piece of an answer's thought; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A whole tool call; `index` counts the calls of an answer from 0."""

    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class InvalidToolCallDelta:
    """A call that cannot be run; `index` counts those of an answer from 0."""

    index: int
    call: InvalidToolCall


Delta = TextDelta | ThoughtDelta | ToolCallDelta | InvalidToolCallDelta
"""A piece of an answer. All of them, in their order, are the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished answer.

    Attributes:
        text: the answer, without thought, tool calls and end ids.
        token_ids: all committed ids before the first end id (thought and calls included).
        seed: the seed that was used, drawn or given.
        restart_after: the same of this parameter, which "auto" leaves to the engine; 0: never.
        finish_reason: "stop", "length", "cancelled" or "error".
        stopped_by: the stop string that ended it, if one did.
        usage: counts of tokens, canvases and steps.
        thinking: the text of the thought channel, None if there was none.
        tool_calls: the calls in the order of writing, each of a tool that was offered.
        invalid_tool_calls: what the model wrote as calls but cannot be run: broken ones, and those
            of tools that were not offered. No text of theirs is in `text`.
        error: the cause, if `finish_reason` is "error".
        trace: every step, if the request asks for it.
        scores: of every token in `token_ids`, if the request asks for them.
        constraint: how the answer was kept in its grammar, if it has one.
        verdict: the encoder's opinion of the answer, if the request asks for it.
        prompt_ids: the prompt as the model read it, so that an answer can be worked on further.
        thought_closed: whether its last turn begins with an empty thought that the chat template
            leaves to the model: it is put there if the request says how the answer begins.
        index: the request's label.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    seed: int = 0
    restart_after: int = 0
    finish_reason: FinishReason = "stop"
    stopped_by: str | None = None
    usage: Usage = field(default_factory=Usage)
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    error: str | None = None
    trace: tuple[TraceStep, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    constraint: Constraint | None = None
    verdict: Verdict | None = None
    prompt_ids: tuple[int, ...] = ()
    thought_closed: bool = False
    index: int = 0

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}..."
        error = "" if self.error is None else f", error={self.error!r}"
        return f"Output({text!r}, {self.finish_reason!r}, {len(self.token_ids)} tokens{error})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a request.

    Attributes:
        type: "frame" (one per denoising step), "commit" (one per canvas, and under `stable_prefix`
            one for other ids that can no longer change), "done" (the last), or "status", if the
            request asks for it: once queued, and before every pass that encodes its prompt.
        index: the request's label.
        t_ms: milliseconds from the request's arrival to this event, on the engine's clock; equal
            events may differ in it.
        canvas, step: counted from 0; a commit's step is the number of steps it took, a status's
            the number of prompt tokens that are encoded.
        attempt: number of the try that a frame shows, or that was committed, from 0.
        ids: a frame's argmax draft, or committed ids, cut at the first end id; those of all
            commits together are the answer's.
        whole: false on a commit that is not its canvas's last.
        reason: why a committed canvas ended, on its last commit.
        scores: of a commit's ids, if the request asks for them.
        verdict: of a commit's ids, if the request asks for it.
        state: on "status".
        deltas: of a commit and of the end: what they add to the answer for certain. Text that may
            yet turn out to be part of a stop string, of a character or of a call comes later.
            Of a frame: what its canvas would still add if it were the last one, without a call
            that is not finished.
        fields: the field of each committed id, in their order, as soon as it is known.
        temperature: of a frame's step.
        accepted: one byte a position: 1 if this step accepted its sample, 2 if it is pinned.
        entropy: one byte a position, see `ENTROPY_PER_NAT`.
        alternatives: (id, logprob) of each position's likeliest ids in falling order, under the
            distribution that the frame's step drew from, temperature and controls included; fewer
            where the controls leave fewer. Only if the request asks for them.
        output: the finished answer, on "done" alone.
    """

    type: EventType
    index: int = 0
    t_ms: float = field(default=0.0, compare=False)
    canvas: int = 0
    attempt: int = 0
    step: int = 0
    ids: tuple[int, ...] = ()
    deltas: tuple[Delta, ...] = ()
    fields: tuple[Field, ...] = ()
    temperature: float = 0.0
    accepted: bytes = b""
    entropy: bytes = b""
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
    whole: bool = True
    reason: StopReason = ""
    scores: tuple[TokenScore, ...] = ()
    verdict: Verdict | None = None
    state: Literal["", "queued", "encoding"] = ""
    output: Output | None = None

    @property
    def text(self) -> str:
        """The text of the deltas."""
        return "".join(one.text for one in self.deltas if isinstance(one, TextDelta))
