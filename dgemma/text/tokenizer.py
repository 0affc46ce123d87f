"""Text to token ids and back, with a wall between a user's text and the model's control tokens.

Knows the Gemma family's kind of vocabulary: byte-pair merges over characters, a space written as
U+2581, byte tokens `<0x00>`..`<0xFF>` for everything else, and control tokens that ordinary text
can never become. Reads it from a tokenizer.json or from a GGUF file. Knows nothing about chats,
models or images.
Source: the tokenizer of Gemma 4 (`tokenizer.ggml.*` of its GGUF vocabulary).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from dgemma.errors import ContextOverflow, InvalidRequest, TokenizerError
from dgemma.files.read import exists, parse_json, read_text, reason
from dgemma.text.byte_table import REMEDY, byte_table
from dgemma.text.gemma_backend import CONTROL_FORM
from dgemma.text.gguf import has_vocabulary, read_vocabulary
from dgemma.text.lossless import SPACE, keeps_all
from dgemma.text.tokenizer_json import read_backend

MOST_CONTROL = 100_000
"""Characters of all control tokens' names: a text is searched for each of them."""
SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


class Tokenizer:
    """A vocabulary of the Gemma family.

    Attributes:
        vocab_size: number of ids, control tokens included.
        bos_id, eos_id, pad_id: ids of the three named tokens.
        special_ids: ids of all control tokens.
        longest: most bytes of a text that one token stands for; None: there is no bound, because
            the tokenizer leaves out or joins parts of a text first.
    """

    def __init__(self, backend: Backend, names: Mapping[str, str], source: str) -> None:
        """Most callers use `from_directory` or `from_gguf`.

        Args:
            backend: a BPE with byte fallback; its special tokens become the control tokens.
            names: texts of "bos_token", "eos_token" and "pad_token".
            source: where it came from, for messages.

        Raises:
            TokenizerError: it is not of the Gemma family, or a named token is missing.
        """
        self._source = source
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._control = _control_tokens(backend, source)
        backend.add_special_tokens([t for t in self._control.values() if not t.special])
        backend.encode_special_tokens = True  # from here on, text alone never makes one
        self._control_by_name = {t.content.strip(): i for i, t in self._control.items()}
        self.special_ids = frozenset(self._control)
        self._pattern = _control_pattern(self._control.values())
        self._bytes = byte_table(backend, self.special_ids, self.vocab_size, source)
        self.longest = max(map(len, self._bytes)) if keeps_all(backend, self.special_ids) else None
        self.bos_id, self.eos_id, self.pad_id = (self._named(key, names) for key in _NAMES)
        for text in self.control_names():
            if not self.special_ids.isdisjoint(self._plain(text)):
                raise TokenizerError(f"{source}: plain text becomes control token {text}; {REMEDY}")

    @classmethod
    def find(cls, path: str | Path) -> Tokenizer | None:
        """The tokenizer of a checkpoint, or None if it has none; see `from_checkpoint`."""
        if Path(path).is_file():
            there = has_vocabulary(path)
        else:
            there = exists(Path(path) / "tokenizer.json")
        return cls.from_checkpoint(path) if there else None

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a checkpoint, which is a directory or a GGUF file.

        Raises:
            TokenizerError: it has none, or one that cannot be used.
        """
        return cls.from_gguf(path) if Path(path).is_file() else cls.from_directory(path)

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a checkpoint directory in Hugging Face's layout.

        Args:
            path: holds tokenizer.json and, for the names of bos, eos and pad,
                tokenizer_config.json or special_tokens_map.json.

        Raises:
            TokenizerError: tokenizer.json is absent, broken or of another family.
        """
        directory = Path(path)
        file = directory / "tokenizer.json"
        if not exists(file):
            raise TokenizerError(f"{directory} has no tokenizer.json; {REMEDY}")
        backend = read_backend(file)
        backend.no_padding()
        backend.no_truncation()
        names = dict(_NAMES)
        for other in ("special_tokens_map.json", "tokenizer_config.json"):
            names |= _token_names(directory / other)
        return cls(backend, names, str(file))

    @classmethod
    def from_gguf(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in a GGUF file's metadata; weights in the file are not looked at.

        Raises:
            TokenizerError: no GGUF file, or its vocabulary is not one of Gemma 4.
        """
        return cls(*read_vocabulary(path), str(path))

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text (a space written as U+2581), None where there is none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token stands for; b"" for a control token, which stands for no text.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        self._check((token_id,))
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """A control token's own name, such as `<turn|>`; for others the text of `token_bytes`."""
        self._check((token_id,))
        if token_id in self._control:
            return self._control[token_id].content
        return self._bytes[token_id].decode("utf-8", "replace")

    def encode(self, text: str, *, bos: bool = False, control: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: any Unicode text. U+2581 comes back as a space.
            bos: whether `bos_id` is put in front.
            control: whether names of control tokens in the text mean the tokens. Only for text
                that we wrote ourselves; a user's text never becomes a control token.

        Raises:
            InvalidRequest: the text holds a lone surrogate, which is not Unicode text.
        """
        ids = [self.bos_id] if bos else []
        for piece in self.pieces(text) if control else (text,):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._plain(piece)
        return ids

    def least_tokens(self, text: str) -> int:
        """Fewest tokens that a text can have, by its length alone."""
        if self.longest is None:
            return 0
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        return -(-(size - 2 * text.count(SPACE)) // self.longest)  # it is read as one byte, " "

    def check_length(self, texts: Iterable[str], most: int, *, field: str = "prompt") -> None:
        """Refuse texts that are too long by their length alone, before they are tokenized.

        Args:
            texts: that stand in one prompt.
            most: tokens of the model's context.
            field: for the error.

        Raises:
            ContextOverflow: together they have more tokens, whatever they say.
        """
        least = sum(map(self.least_tokens, texts))
        if least > most and self.longest is not None:
            raise ContextOverflow(
                f"a text of this length has at least {least} tokens, more than the model's context "
                f"of {most}; shorten it to {most * self.longest} bytes, better far less",
                field=field,
            )

    def check_text(self, text: str) -> None:
        """
        Raises:
            InvalidRequest: the text holds a lone surrogate, which is not Unicode text.
        """
        if not text.isascii() and (bad := SURROGATE.search(text)):
            raise InvalidRequest(
                f"the text has a lone surrogate ({bad.group()!a}) at character {bad.start()}; "
                "send valid Unicode"
            )

    def pieces(self, text: str) -> list[str | int]:
        """The text cut at the names of control tokens: ordinary texts, and ids between them."""
        out: list[str | int] = []
        at = 0
        for found in self._pattern.finditer(text):
            token_id = self._control_by_name[found.group()]
            before = text[at : found.start()]
            if self._control[token_id].lstrip:  # it swallows the blanks before it
                before = before.rstrip()
            if before:
                out.append(before)
            out.append(token_id)
            at = found.end()
            while self._control[token_id].rstrip and text[at : at + 1].isspace():
                at += 1
        if at < len(text):
            out.append(text[at:])
        return out

    def control_names(self) -> list[str]:
        """The names of all control tokens, sorted by id."""
        return [self._control[token_id].content for token_id in sorted(self._control)]

    def decode(self, ids: Sequence[int], *, control: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids. The bytes of a character never join over a control token.
            control: whether control tokens are shown by name; else they are dropped.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        detokenizer = Detokenizer(self, control=control)
        return detokenizer.push(ids) + detokenizer.flush()

    def _plain(self, text: str) -> list[int]:
        self.check_text(text)
        # Not `encode`, which holds the interpreter lock: a megabyte would stop all other threads.
        (found,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = found.ids
        return ids

    def _check(self, ids: Sequence[int]) -> None:
        for token_id in (min(ids), max(ids)):
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(
                    f"id {token_id} is outside the vocabulary of {self.vocab_size} tokens; "
                    "is this the tokenizer of the same model?"
                )

    def _named(self, key: str, names: Mapping[str, str]) -> int:
        token_id = self.id_of(names[key])
        if token_id is None:
            raise TokenizerError(
                f"{self._source}: {key} {names[key]!r} is not in the vocabulary; "
                "name an existing token in tokenizer_config.json"
            )
        return token_id


class Detokenizer:
    """Ids to text as they come, never splitting a character.

    The texts of all `push`es and of `flush` together are `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, control: bool = False) -> None:
        """`control` as in `Tokenizer.decode`."""
        self._tokenizer = tokenizer
        self._control = control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def copy(self) -> Detokenizer:
        """Another one that goes on from here."""
        other = Detokenizer(self._tokenizer, control=self._control)
        other._utf8.setstate(self._utf8.getstate())
        return other

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids complete; the bytes of an unfinished character are held back.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        if not len(ids):
            return ""
        tokenizer = self._tokenizer
        tokenizer._check(ids)
        special, table = tokenizer.special_ids, tokenizer._bytes
        if special.isdisjoint(ids):
            return self._utf8.decode(b"".join(table[token_id] for token_id in ids))
        out = []
        for token_id in ids:
            if token_id in special:
                out.append(self.flush())
                out.append(tokenizer.token_text(token_id) if self._control else "")
            else:
                out.append(self._utf8.decode(table[token_id]))
        return "".join(out)

    def flush(self) -> str:
        """What was held back, as U+FFFD; empty at a character's border."""
        return self._utf8.decode(b"", True)


def _control_tokens(backend: Backend, source: str) -> dict[int, AddedToken]:
    """The control tokens by id: those marked special, and those of the form `<|x>` or `<x|>`."""
    added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
    control = {}
    for token_id, token in added.items():
        if not (token.special or CONTROL_FORM.fullmatch(token.content)):
            continue
        if not token.content.strip() or token.single_word:
            raise TokenizerError(f"{source}: control token {token.content!r} is not supported")
        special = token
        if not token.special:
            special = AddedToken(token.content, normalized=False, special=False)
        control[token_id] = special
    if sum(len(token.content) for token in control.values()) > MOST_CONTROL:
        raise TokenizerError(
            f"{source}: the names of its control tokens have more than {MOST_CONTROL:,} "
            f"characters; {REMEDY}"
        )
    return control


def _control_pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Matches any control token's name, the longest first."""
    names = sorted((token.content.strip() for token in tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _token_names(file: Path) -> dict[str, str]:
    """The texts of bos, eos and pad that a JSON file names; nothing if there is no such file."""
    if not exists(file):
        return {}
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read ({reason(error)}); {REMEDY}") from error
    try:
        found: Any = parse_json(text)
    except ValueError as error:
        raise TokenizerError(f"{file} is not valid JSON ({error}); {REMEDY}") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{file} is not a JSON object; {REMEDY}")
    names = {}
    for key in _NAMES:
        value = found.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            names[key] = value
    return names
