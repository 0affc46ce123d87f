"""The text side of a model: prompts to ids, the text and the grammar of answers, facts for plans.

It must not know networks or engines (no torch), so that another process can load it from the
checkpoint's directory and a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any

from dgemma.constrain.cache import GrammarCache
from dgemma.constrain.precompiled import Precompiled
from dgemma.errors import ContextOverflow, InvalidRequest, TemplateError, TokenizerError, bad_field
from dgemma.interfaces import Reader
from dgemma.matcher import Matcher
from dgemma.param_rules import BYTES
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds, ToolUse
from dgemma.text.answer import AnswerReader
from dgemma.text.chat import ChatTemplate
from dgemma.text.parse import MarkerIds, thought_is_open
from dgemma.text.tokenizer import Tokenizer
from dgemma.text.turn import THINK, ModelTurn
from dgemma.types import PAGE, Request

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
Variables = Mapping[str, Any] | None
"""Further variables of the chat template, by name."""

REFERENCE_SHARE = 4
"""At most one part in that many of the context goes to text that is only shown for reference."""

SLACK = 64
"""Tokens more than those that count: where a text is cut, its tokens may change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The facts of a loaded model that a plan needs.

    Attributes:
        tokenizer: its vocabulary.
        canvas: tokens of its canvas.
        context: most positions of prompt and answer together.
        end_id: ends the model's turn.
        end_ids: all ids that end an answer.
        fill_id: follows the end on a canvas.
        ask: a user's message to prompt ids that end where the model's turn begins.
        constraint: the matcher and name of the grammar that parameters ask for, if they do.
        turn: how the model's turn begins, if the chat template leaves the thought to the model.
    """

    tokenizer: Tokenizer
    canvas: int
    context: int
    end_id: int
    end_ids: tuple[int, ...]
    fill_id: int
    ask: Callable[[str], list[int]]
    constraint: Callable[[SamplingParams], tuple[Matcher, str] | None]
    turn: ModelTurn | None = None

    def closed(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """See `ModelTurn.closed`."""
        return tuple(prompt) if self.turn is None else self.turn.closed(prompt)

    def is_closed(self, prompt: Sequence[int]) -> bool:
        """See `ModelTurn.is_closed`."""
        return self.turn is not None and self.turn.is_closed(prompt)

    def prompt(self, message: str, head: Sequence[int], room: int) -> tuple[int, ...]:
        """The prompt of a message and of the text that the answer has begun with, thought closed.

        If the text is too long, its beginning is left out.

        Args:
            message: the user's.
            head: ids of the answer's text so far.
            room: positions that stay free.

        Raises:
            ContextOverflow: the message alone is too long.
        """
        self.tokenizer.check_length((message,), self.context)
        asked = self.closed(self.ask(message))
        left = self.context - room - len(asked)
        if left < 0:
            raise ContextOverflow(
                f"a message of {len(asked)} tokens leaves no room for a canvas of {room} in the "
                f"model's context of {self.context}; shorten the context or the instruction",
                field="prompt",
            )
        kept = head[max(0, len(head) - left) :]
        return (*asked, *kept)

    def reference(self, text: str, *, last: bool = False) -> str:
        """As much of a text's beginning (or end) as may be shown for reference."""
        most = self.context // REFERENCE_SHARE
        text = self.ending(text, most) if last else self.beginning(text, most)
        ids = self.tokenizer.encode(text)
        if len(ids) <= most:
            return text
        return self.tokenizer.decode(ids[-most:] if last else ids[:most]).strip("\ufffd")

    def beginning(self, text: str, tokens: int) -> str:
        """As much of a text as can matter if no more than its first tokens count."""
        longest = self.tokenizer.longest
        return text if longest is None else text[: (tokens + SLACK) * longest]

    def ending(self, text: str, tokens: int) -> str:
        """The same of its last tokens."""
        longest = self.tokenizer.longest
        return text if longest is None else text[-(tokens + SLACK) * longest :]


class Frontend:
    """Makes ids, and reads answers, for one checkpoint; a `TextSide`."""

    def __init__(
        self, source: Path, tokenizer: Tokenizer | None, template: ChatTemplate | None, *,
        end_ids: Sequence[int], canvas: int, context: int,
    ) -> None:  # fmt: skip
        """
        Args:
            source: the checkpoint's directory or GGUF file, for messages.
            tokenizer, template: None if the checkpoint has none.
            end_ids: ids that end an answer.
            canvas: tokens of the model's canvas.
            context: most positions of prompt and answer together.

        Raises:
            TokenizerError: the vocabulary lacks the markers of a chat.
        """
        self._source = source
        self._tokenizer = tokenizer
        self._template = template
        self._end_ids = tuple(end_ids)
        self._canvas = canvas
        self._context = context
        if tokenizer is not None:
            self._grammars = GrammarCache(tokenizer, end_ids)
            MarkerIds.of(tokenizer)  # refuses a vocabulary without them

    @classmethod
    def from_directory(
        cls, directory: Path, *, end_ids: Sequence[int], canvas: int, context: int
    ) -> Frontend:
        """The frontend of a checkpoint, from its text files and the numbers of its model.

        Raises:
            TokenizerError, TemplateError: a file that cannot be used.
        """
        tokenizer, template = read_text_files(directory)
        return cls(
            directory, tokenizer, template, end_ids=end_ids, canvas=canvas, context=context
        )  # fmt: skip

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            TokenizerError: it has none.
        """
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self._source} has no tokenizer (tokenizer.json), so text cannot be read or "
                "written; prompt with a list of token ids, or add the file"
            )
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate | None:
        """The checkpoint's chat template."""
        return self._template

    # -- prompts -------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of a plain prompt: BOS and text without control tokens, or the ids given.

        Raises:
            InvalidRequest: it is empty, or neither text nor ids.
            ContextOverflow: by its length alone it cannot fit.
            TokenizerError: text, but no tokenizer.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidRequest("the prompt is empty; give some text", field="prompt")
            self.tokenizer.check_length((prompt,), self._context)
            return self.tokenizer.encode(prompt, bos=True)
        if isinstance(prompt, BYTES):
            raise InvalidRequest(
                "a prompt of bytes may be text or ids; decode it, or give a list", field="prompt"
            )
        ids = list(prompt) if isinstance(prompt, Iterable) else None
        if ids is None or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise InvalidRequest(
                "a prompt is a string or a list of token ids (integers)", field="prompt"
            )
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token", field="prompt")
        return ids

    def chat_ids(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        chat_template_kwargs: Variables = None,
    ) -> list[int]:
        """Ids of a conversation under the checkpoint's chat template; see `ChatTemplate.encode`.

        Raises:
            InvalidRequest: no messages, or one that is malformed.
            ContextOverflow: by its length alone the conversation cannot fit.
            TemplateError: the checkpoint has no chat template.
        """
        if isinstance(messages, str):
            raise bad_field(
                "messages",
                "must be a list, not text; did you mean [{'role': 'user', 'content': ...}]?",
            )
        if self._template is None:
            _ = self.tokenizer  # if it is missing too, that is the error
            raise TemplateError(
                f"{self._source} has no chat template; use generate() with plain text"
            )
        return self._template.encode(
            messages, tools=tools, thinking=thinking, most=self._context,
            chat_template_kwargs=chat_template_kwargs,
        )  # fmt: skip

    def ids(
        self,
        prompt: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        chat_template_kwargs: Variables = None,
    ) -> tuple[list[int], bool]:
        """Ids of a prompt or a conversation, and whether it is a conversation.

        Raises:
            InvalidRequest, TokenizerError, TemplateError: as above.
        """
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            return self.chat_ids(prompt, tools, thinking, chat_template_kwargs), True
        if tools or thinking or chat_template_kwargs:
            raise InvalidRequest(
                "tools, thinking and chat_template_kwargs need messages, not a plain prompt",
                field="tools",
            )
        return self.prompt_ids(prompt), False

    @staticmethod
    def batch(prompt: Any) -> Sequence[Any] | None:
        """The members of a list of prompts or conversations; None: it is a single one."""
        if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
            return None
        return prompt if isinstance(prompt[0], Sequence) else None

    def message_ids(self, message: str) -> list[int]:
        """Ids of one user's message; plain text if there is no chat template."""
        if self._template is None:
            return self.prompt_ids(message + "\n\n")
        return self.chat_ids([{"role": "user", "content": message}])

    # -- requests ------------------------------------------------------------------------------

    @cached_property
    def _beginnings(self) -> list[tuple[int, ...]]:
        """What the template begins with, where that fills a page."""
        found = [] if self._template is None else self._template.beginnings()
        return [ids for ids in found if len(ids) >= PAGE]

    def common(self, request: Request) -> int:
        """See `TextSide`; 0 without an owner, since then there is nobody else."""
        ids, own = request.token_ids, self._beginnings if request.owner else []
        return max((len(commonprefix([ids, beginning])) for beginning in own), default=0)

    @cached_property
    def _turn(self) -> ModelTurn | None:
        """How the model's turn begins, if the template leaves the thought to the model."""
        if self._tokenizer is None or self._template is None:
            return None
        return ModelTurn.of(self._tokenizer, self._template)

    def closed(self, request: Request) -> tuple[Request, bool]:
        """See `TextSide`; what has been closed stays as it is."""
        turn = self._turn
        if turn is None:
            return request, False
        ids = turn.closed_for(request)
        if ids != request.token_ids:
            request = replace(request, token_ids=ids)
        return request, turn.is_closed(ids)

    def thought(self, request: Request) -> ThoughtIds | None:
        """See `TextSide`.

        Raises:
            TokenizerError: a chat, and the model has no tokenizer.
        """
        if not request.chat:
            return None
        markers = MarkerIds.of(self.tokenizer)
        is_open = thought_is_open(markers, request.token_ids)
        return ThoughtIds(markers.channel_open, markers.channel_close, is_open)

    def reader(self, request: Request) -> Reader:
        """See `TextSide`.

        Raises:
            TokenizerError: the request needs text, and the model has no tokenizer.
        """
        if self._tokenizer is None and not request.needs_text:
            return Reader()
        thought, calls = request.thought, request.tool_use
        return AnswerReader(
            self.tokenizer, stop=request.params.stop or (), chat=request.chat,
            thought_open=bool(request.chat and thought and thought.is_open),
            tools=calls.names if calls else (),
        )  # fmt: skip

    def matcher(self, request: Request) -> tuple[Matcher, str] | None:
        """See `TextSide`; compiles the grammar, unless it was asked for lately.

        Raises:
            InvalidRequest: the grammar is broken, or two are asked for at once.
            MissingExtra: llguidance is not installed.
        """
        if not request.needs_text:
            return None
        thought, asked = request.thought, self.tokenizer.id_of(THINK)
        if not (request.chat and thought and (thought.is_open or asked in request.token_ids)):
            thought = None
        return self._grammars.matcher_for(
            request.params, calls=_binding(request), thought=thought, owner=request.owner
        )

    @property
    def source(self) -> Path:
        """The checkpoint's directory or GGUF file."""
        return self._source

    def grammar(self, request: Request) -> tuple[str, Any] | None:
        """The kind and the value of the grammar that `matcher` would have to compile now; None:
        there is none, or it is kept from before.

        Raises:
            InvalidRequest: two are asked for at once.
        """
        if not request.needs_text:
            return None
        wanted = self._grammars.wanted(request.params, _binding(request))
        return None if wanted is None or self._grammars.has(request.owner, *wanted) else wanted

    def keep_grammar(self, owner: str, kind: str, value: Any, packed: dict[str, Any]) -> None:
        """Keep a grammar that another process has compiled; see `Precompiled.packed`."""
        self._grammars.keep(owner, kind, value, Precompiled.unpacked(packed))

    @cached_property
    def facts(self) -> ModelFacts:
        """The facts of this model for plans.

        Raises:
            TokenizerError: it has no tokenizer.
        """
        tokenizer, end_ids = self.tokenizer, self._end_ids
        turn = tokenizer.id_of("<turn|>")
        return ModelFacts(
            tokenizer=tokenizer, canvas=self._canvas, context=self._context,
            end_id=turn if turn in end_ids else end_ids[0], end_ids=end_ids,
            fill_id=tokenizer.eos_id, ask=self.message_ids, constraint=self._grammars.matcher_for,
            turn=self._turn,
        )  # fmt: skip


def _binding(request: Request) -> ToolUse | None:
    """The tools of a request, if a grammar keeps the answer to them."""
    return request.tool_use if request.tool_use and request.tool_use.binding else None


def read_text_files(path: Path) -> tuple[Tokenizer | None, ChatTemplate | None]:
    """The tokenizer and the chat template of a checkpoint, a directory or a GGUF file; None where
    it has none.

    Raises:
        TokenizerError, TemplateError: a file that cannot be used.
    """
    tokenizer = Tokenizer.find(path)
    return tokenizer, None if tokenizer is None else ChatTemplate.find(path, tokenizer)
