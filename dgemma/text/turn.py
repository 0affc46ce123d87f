"""Where the model's turn begins, and the empty thought that some templates leave to the model.

With thinking off one template writes an empty thought at the end of the prompt, and another leaves
it to the model, which then writes it first. What is pinned or constrained at the beginning of the
answer would stand in its place, where the model has never seen such text: so it is put behind the
prompt. Which of the two a template does is read from what it renders.
Knows ids and requests. Knows nothing about canvases or engines.
Source: the chat templates released with Gemma 4 and DiffusionGemma.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dgemma.errors import InvalidRequest, TemplateError
from dgemma.request_parts import CanvasControl
from dgemma.text.chat import THOUGHT_CLOSE, THOUGHT_OPEN, ChatTemplate
from dgemma.text.parse import CHANNEL_HEAD
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Request

THINK = "<|think|>"
"""The token by which a prompt asks for a thought."""

_USER = {"role": "user", "content": "x"}
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
_CALLED = {"role": "assistant", "content": "", "reasoning": "y", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": "1", "content": "z"}


@dataclass(frozen=True, slots=True)
class ModelTurn:
    """The beginning of the model's turn under a template that leaves the thought to the model.

    Attributes:
        opening: ids that a prompt then ends with.
        empty: ids of an empty thought.
        think_id: in a prompt that asks for a thought; None: the vocabulary has no such token.
    """

    opening: tuple[int, ...]
    empty: tuple[int, ...]
    think_id: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate) -> ModelTurn | None:
        """How a template begins it; None: it closes the thought itself, or knows no thoughts."""
        try:
            without = template.encode([_USER], add_generation_prompt=False)
            prompt = template.encode([_USER])
            thoughtful = template.encode([_USER, _CALLED, _RESULT], thinking=True)
        except (TemplateError, InvalidRequest):  # it takes no such conversation
            return None
        opening = tuple(prompt[len(without) :])
        open_id = tokenizer.id_of(THOUGHT_OPEN)
        if not opening or prompt[: len(without)] != without:
            return None
        if open_id is None or open_id in opening or open_id not in thoughtful:
            return None
        empty = tokenizer.encode(THOUGHT_OPEN + CHANNEL_HEAD + THOUGHT_CLOSE, control=True)
        return cls(opening, tuple(empty), tokenizer.id_of(THINK))

    def closed(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The prompt with the empty thought behind it, if it leaves one to the model.

        A prompt that asks for a thought, or ends elsewhere, comes back as it is.
        """
        ids = tuple(prompt)
        if ids[-len(self.opening) :] != self.opening or self.think_id in ids:
            return ids
        return ids + self.empty

    def closed_for(self, request: Request) -> tuple[int, ...]:
        """The same of a request's prompt, if the answer's beginning is not free."""
        return self.closed(request.token_ids) if self._bound(request) else request.token_ids

    def is_closed(self, prompt: Sequence[int]) -> bool:
        """Whether the last turn of a prompt begins with the empty thought."""
        ids, turn = tuple(prompt), self.opening
        back, at = ids[::-1], -1
        with suppress(ValueError):  # there is no such turn
            while True:
                at = back.index(turn[0], at + 1)
                begun = ids[len(ids) - 1 - at :][: len(turn) + len(self.empty)]
                if begun[: len(turn)] == turn:
                    return begun[len(turn) :] == self.empty
        return False

    def _bound(self, request: Request) -> bool:
        """Whether a request says how the answer begins, and leaves no room for a thought there."""
        params, calls, canvas = request.params, request.tool_use, request.canvas
        if request.mode == "score":
            return False
        if calls is not None and calls.required:
            return True
        if params.constraint_field is not None:  # a grammar may name the markers itself
            return params.grammar is None or THOUGHT_OPEN not in params.grammar
        allowed = params.allowed_token_ids
        if allowed is not None and self.empty[0] not in allowed:
            return True
        return canvas is not None and self._held(canvas)

    def _held(self, canvas: CanvasControl) -> bool:
        """Whether a canvas is given in part; positions then count from the answer's beginning."""
        open_id = self.empty[0]
        if open_id in canvas.ids:  # the caller has put a thought there
            return False
        if canvas.pinned or (canvas.strength < 1 and any(i >= 0 for i in canvas.ids)):
            return True
        first = canvas.masks[0] if canvas.masks else -1
        return first >= 0 and open_id not in canvas.allowed[first]
