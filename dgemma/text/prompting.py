"""From what a caller says to prompt ids: plain text, ids, or a conversation.

Knows a checkpoint's tokenizer and chat template. Knows nothing about models or answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgemma.errors import InvalidRequest, TemplateError, TokenizerError
from dgemma.text.chat import ChatTemplate
from dgemma.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


class Prompter:
    """Makes prompts for one checkpoint."""

    def __init__(
        self, source: Path, tokenizer: Tokenizer | None, template: ChatTemplate | None
    ) -> None:
        """`source` is the checkpoint's directory, for messages; it may lack either of the two."""
        self._source = source
        self._tokenizer = tokenizer
        self._template = template

    def text(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: there is none.
        """
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self._source} has no tokenizer.json, so text cannot be read or "
                "written; prompt with a list of token ids, or add the file"
            )
        return self._tokenizer

    def plain(self, prompt: Prompt) -> list[int]:
        """Ids of a plain prompt: BOS and text without control tokens, or the ids given.

        Raises:
            InvalidRequest: it is empty, or neither text nor ids.
            TokenizerError: text, but no tokenizer.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidRequest("the prompt is empty; give some text", field="prompt")
            return self.text().encode(prompt, bos=True)
        try:
            ids: list[int] = [*prompt]
        except TypeError as error:
            raise InvalidRequest(
                "a prompt is a string or a list of token ids", field="prompt"
            ) from error
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token", field="prompt")
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise InvalidRequest(
                "a prompt is a string or a list of token ids (integers)", field="prompt"
            )
        return ids

    def chat(
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
        if self._template is None:
            self.text()
            raise TemplateError(
                f"{self._source} has no chat template; use generate() with plain text"
            )
        return self._template.encode(messages, tools=tools, thinking=thinking)

    def either(
        self,
        prompt: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
    ) -> tuple[list[int], bool]:
        """Ids, and whether the prompt was a conversation.

        Raises:
            InvalidRequest, TokenizerError, TemplateError: as above.
        """
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            return self.chat(prompt, tools, thinking), True
        if tools or thinking:
            raise InvalidRequest(
                "tools and thinking need messages, not a plain prompt", field="tools"
            )
        return self.plain(prompt), False

    def asked(self, message: str) -> list[int]:
        """Ids of one user's message; plain text where there is no chat template."""
        if self._template is None:
            return self.plain(message + "\n\n")
        return self.chat([{"role": "user", "content": message}])
