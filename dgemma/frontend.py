"""The text side of a model: prompts to ids, the text and the grammar of answers, facts for plans.

It must not know networks or engines (no torch), so that another process can load it from the
checkpoint's directory and a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any

from dgemma.constrain.cache import GrammarCache
from dgemma.errors import ContextOverflow, InvalidRequest, TemplateError, TokenizerError, bad_field
from dgemma.interfaces import Reader
from dgemma.matcher import Matcher
from dgemma.params import SamplingParams
from dgemma.request_parts import ThoughtIds
from dgemma.text.answer import AnswerReader
from dgemma.text.chat import ChatTemplate
from dgemma.text.parse import MarkerIds, thought_is_open
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import PAGE, Request

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]

REFERENCE_SHARE = 4
"""At most one part in that many of the context goes to text that is only shown for reference."""


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
    """

    tokenizer: Tokenizer
    canvas: int
    context: int
    end_id: int
    end_ids: tuple[int, ...]
    fill_id: int
    ask: Callable[[str], list[int]]
    constraint: Callable[[SamplingParams], tuple[Matcher, str] | None]

    def prompt(self, message: str, head: Sequence[int], room: int) -> tuple[int, ...]:
        """The prompt of a message and of the text that the answer has begun with.

        If the text is too long, its beginning is left out.

        Args:
            message: the user's.
            head: ids of the answer's text so far.
            room: positions that stay free.

        Raises:
            ContextOverflow: the message alone is too long.
        """
        asked = self.ask(message)
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
        ids = self.tokenizer.encode(text)
        if len(ids) <= most:
            return text
        return self.tokenizer.decode(ids[-most:] if last else ids[:most]).strip("\ufffd")


class Frontend:
    """Makes ids, and reads answers, for one checkpoint; a `TextSide`."""

    def __init__(
        self, source: Path, tokenizer: Tokenizer | None, template: ChatTemplate | None, *,
        end_ids: Sequence[int], canvas: int, context: int,
    ) -> None:  # fmt: skip
        """
        Args:
            source: the checkpoint's directory, for messages.
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
                f"{self._source} has no tokenizer.json, so text cannot be read or "
                "written; prompt with a list of token ids, or add the file"
            )
        return self._tokenizer

    # -- prompts -------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of a plain prompt: BOS and text without control tokens, or the ids given.

        Raises:
            InvalidRequest: it is empty, or neither text nor ids.
            TokenizerError: text, but no tokenizer.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidRequest("the prompt is empty; give some text", field="prompt")
            return self.tokenizer.encode(prompt, bos=True)
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
    ) -> list[int]:
        """Ids of a conversation under the checkpoint's chat template.

        Raises:
            InvalidRequest: no messages, or one that is malformed.
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
        return self._template.encode(messages, tools=tools, thinking=thinking)

    def ids(
        self,
        prompt: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
    ) -> tuple[list[int], bool]:
        """Ids of a prompt or a conversation, and whether it is a conversation.

        Raises:
            InvalidRequest, TokenizerError, TemplateError: as above.
        """
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            return self.chat_ids(prompt, tools, thinking), True
        if tools or thinking:
            raise InvalidRequest(
                "tools and thinking need messages, not a plain prompt", field="tools"
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
            must_call=bool(calls and calls.required),
        )  # fmt: skip

    def matcher(self, request: Request) -> tuple[Matcher, str] | None:
        """See `TextSide`; compiles the grammar, unless it was asked for lately.

        Raises:
            InvalidRequest: the grammar is broken, or two are asked for at once.
            MissingExtra: llguidance is not installed.
        """
        if not request.needs_text:
            return None
        thought, asked = request.thought, self.tokenizer.id_of("<|think|>")
        if not (request.chat and thought and (thought.is_open or asked in request.token_ids)):
            thought = None
        return self._grammars.matcher_for(
            request.params, calls=request.tool_use, thought=thought, owner=request.owner
        )

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
        )  # fmt: skip


def read_text_files(directory: Path) -> tuple[Tokenizer | None, ChatTemplate | None]:
    """The tokenizer and the chat template of a checkpoint; None for a file that is not there.

    Raises:
        TokenizerError, TemplateError: a file that cannot be used.
    """
    if not (directory / "tokenizer.json").exists():
        return None, None
    tokenizer = Tokenizer.from_directory(directory)
    if not (directory / "chat_template.jinja").exists():
        return tokenizer, None
    return tokenizer, ChatTemplate.from_directory(directory, tokenizer)
