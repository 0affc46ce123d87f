"""Builds nano's tokenizer: 1,024 tokens, byte fallback, Gemma 4's control ids.

Control tokens, the newline and the byte tokens have the ids of Gemma 4. The rest is plain byte-pair
encoding whose ties are settled by text order, so the same texts always give the same file. Letters
merge only with letters. A space, a digit, a point, a newline and every other mark stay single
tokens, so a Sudoku row is nine tokens, JSON is regular, and a name has the same tokens after a
space as after a quote.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from dgemma.constrain.schema_proofs import strings_in
from dgemma.tasks import TASKS, make_example
from dgemma.text.gemma_backend import gemma_backend
from dgemma.text.lossless import SPACE
from dgemma.weights.find import bundled_models

VOCAB_SIZE = 1024
CONTROL_IDS = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4,
    "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48, "<tool_call|>": 49,
    "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52, "<|think|>": 98,
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106,
    "<|image>": 1020, "<|image|>": 1021, "<image|>": 1022, "<|video|>": 1023,
}  # fmt: skip
"""As in Gemma 4, but for images and video, whose ids there lie beyond 1,024."""
NEWLINE_ID = 107
FIRST_BYTE_ID = 238
WORDS = r"[\p{L}\p{M}]+|[\s\S]"
"""A run of letters, or any one character: the pieces within which tokens may merge."""
EXAMPLES_PER_TASK = 1500
MOST_PER_WORD = 100
"""No word counts more often than this, so that a few busy ones do not crowd out the rest."""
FRAME_WORDS = (
    "system user model thought call response declaration description parameters properties "
    "required type STRING INTEGER NUMBER OBJECT value true false"
)
"""The words that the chat template itself writes around tools."""

TOKENIZER_CONFIG: Mapping[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "clean_up_tokenization_spaces": False,
}


def task_texts(examples: int = EXAMPLES_PER_TASK) -> Iterator[str]:
    """Every text of the first training examples of every task, tools' words included.

    Args:
        examples: how many of each task.
    """
    for task in TASKS:
        for index in range(examples):
            example = make_example(task, "train", 0, index)
            yield from (message["content"] for message in example.messages)
            yield from (example.answer, example.thinking or "")
            for tool in example.tools:
                yield from _declared_words(tool)
            if example.tool_call is not None:
                yield from strings_in(example.tool_call["name"])
                yield from strings_in(example.tool_call["arguments"])
    yield from [FRAME_WORDS] * examples


def _declared_words(tool: Mapping[str, Any]) -> Iterator[str]:
    """The part of a declaration that the chat template keeps: its names and its description."""
    function = tool["function"]
    yield from (function["name"], function["description"])
    yield from function["parameters"]["properties"]


def build_nano_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of exactly `VOCAB_SIZE` entries, learnt from `texts`; deterministic.

    Fixed ids are those of `CONTROL_IDS`, the newline's and the bytes'. The other ids hold, in
    rising order, the characters (printable ASCII and those of `texts`), then the merges, then
    `<unusedN>` if the texts give too few merges.
    """
    normalizer = normalizers.Replace(" ", SPACE)
    splitter = pre_tokenizers.Split(Regex(WORDS), "isolated")
    counts: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[piece] += times
    fixed = dict(CONTROL_IDS) | {"\n": NEWLINE_ID}
    fixed |= {f"<0x{byte:02X}>": FIRST_BYTE_ID + byte for byte in range(256)}
    characters = {chr(code) for code in range(33, 127)} | {SPACE} | set().union(*counts)
    order = sorted(characters - {"\n", "\t", "\r"}, key=ord)
    room = VOCAB_SIZE - len(fixed) - len(order)
    words = {word: min(n, MOST_PER_WORD) for word, n in counts.items() if len(word) > 1}
    merges = _learn_merges(words, room)
    joined = list(dict.fromkeys(left + right for left, right in merges))
    order += joined + [f"<unused{k}>" for k in range(room - len(joined))]
    taken = set(fixed.values())
    free = [k for k in range(VOCAB_SIZE) if k not in taken]
    vocab = fixed | dict(zip(order, free, strict=True))
    tokenizer = gemma_backend(vocab, merges, CONTROL_IDS)
    tokenizer.pre_tokenizer = splitter
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, "two tokens were given the same text"
    return tokenizer


def _learn_merges(counts: dict[str, int], most: int) -> list[tuple[str, str]]:
    """Merges that make at most `most` tokens, the most frequent pair first.

    A pair must occur twice or more; equal counts are settled by the pair's text. Two merges may
    make the same token.
    """
    words = [(list(word), n) for word, n in sorted(counts.items())]
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for k, (parts, n) in enumerate(words):
        for pair in pairwise(parts):
            pairs[pair] += n
            places[pair].add(k)
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(made) < most and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        for k in sorted(places[best]):
            parts, n = words[k]
            for pair in pairwise(parts):
                pairs[pair] -= n
                places[pair].discard(k)
            parts[:] = _joined(parts, best)
            for pair in pairwise(parts):
                pairs[pair] += n
                places[pair].add(k)
        pairs = +pairs
        merges.append(best)
        made.add("".join(best))
    return merges


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with each occurrence of the pair, from the left, made one."""
    out: list[str] = []
    k = 0
    while k < len(parts):
        if tuple(parts[k : k + 2]) == pair:
            out.append(parts[k] + parts[k + 1])
            k += 2
        else:
            out.append(parts[k])
            k += 1
    return out


def write_nano_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Writes tokenizer.json and tokenizer_config.json into a directory, in sorted, stable form.

    The chat template beside them is written by hand: `dgemma/assets/nano/chat_template.jinja`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    text = json.dumps(TOKENIZER_CONFIG, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_nano_tokenizer(bundled_models()["nano"], build_nano_tokenizer(task_texts()))
