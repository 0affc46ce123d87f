"""From ids to an answer: stop strings across pushes, thoughts apart, nothing lost."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from dgemma.text.answer import AnswerReader, first_stop, held
from dgemma.text.tokenizer import Tokenizer
from dgemma.types import Delta, TextDelta, ThoughtDelta, ToolCallDelta
from dgemma.weights.find import bundled_models


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Nano's."""
    return Tokenizer.from_directory(bundled_models()["nano"])


def read(reader: AnswerReader, ids: list[int], size: int) -> str:
    """The text of ids pushed in pieces, as a stream of commits would give it."""
    parts = [reader.push(ids[low : low + size]) for low in range(0, len(ids), size)]
    return text_of(sum(parts, ()) + reader.finish())


def text_of(deltas: Sequence[Delta]) -> str:
    """Their text."""
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pieces(tokenizer: Tokenizer, size: int) -> None:
    """A character or a word is lost where two canvases meet."""
    text = "Zwölf Boxkämpfer 🥊 say <stop> twice: <stop>"
    ids = tokenizer.encode(text)
    reader = AnswerReader(tokenizer)
    assert read(reader, ids, size) == reader.text == text
    assert reader.kept == len(ids) and not reader.stopped


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("chat", [False, True])
def test_stop(tokenizer: Tokenizer, size: int, chat: bool) -> None:
    """A stop string that begins in one canvas and ends in the next is missed, or half shown."""
    before, after = "One, two, ST and ", "STOP, three STOP"
    ids = tokenizer.encode(before + after)
    reader = AnswerReader(tokenizer, stop=["three", "STOP"], chat=chat)
    assert read(reader, ids, size) == reader.text == before
    assert reader.stopped and reader.push(ids) == () and reader.finish() == ()
    kept = tokenizer.decode(ids[: reader.kept])
    assert before.startswith(kept) and len(before) - len(kept) < 8


def test_half_a_stop_string_at_the_end(tokenizer: Tokenizer) -> None:
    """Text held back because it might become a stop string is never given."""
    reader = AnswerReader(tokenizer, stop=["STOP"])
    assert read(reader, tokenizer.encode("to be ST"), 1) == "to be ST"
    assert not reader.stopped


def test_thought(tokenizer: Tokenizer) -> None:
    """A stop string within a thought ends the answer, or the thought is part of the text."""
    text = "<|channel>thought\nSTOP here?\n<channel|>No. STOP"
    ids = tokenizer.encode(text, control=True)
    reader = AnswerReader(tokenizer, stop=["STOP"], chat=True)
    assert read(reader, ids, 2) == "No. "
    assert reader.thinking == "STOP here?" and reader.stopped
    plain = AnswerReader(tokenizer, chat=True, thought_open=True)
    assert read(plain, tokenizer.encode("so be it\n<channel|>Yes", control=True), 3) == "Yes"
    assert plain.thinking == "so be it"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("stop, text, which", [
    (["b", "bc"], "a", "b"), (["bc", "b"], "a", "b"), (["bcd", "c"], "ab", "c"),
    (["c", "bc"], "a", "bc"), (["zz", "e", "d"], "abc", "d"),
    (["zz"], "abcde", None), (["a"], "", "a"),
])  # fmt: skip
def test_which_stop_string(
    tokenizer: Tokenizer, stop: list[str], text: str, which: str | None, size: int
) -> None:
    """The one that is complete first ends an answer, however its canvases are cut."""
    reader = AnswerReader(tokenizer, stop=stop)
    assert read(reader, tokenizer.encode("abcde"), size) == text
    assert reader.stopped_by == which and reader.stopped is (which is not None)
    assert first_stop("abcde", stop) == (None if which is None else (len(text), which))


def test_held_back_is_the_longest_beginning() -> None:
    """Text that may begin a stop string is told, or text that cannot is held back."""
    draw = random.Random(3)
    for _ in range(500):
        text = "".join(draw.choices("ab", k=draw.randint(0, 12)))
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 9))) for _ in range(3)]
        if first_stop(text, stops):
            continue
        sizes = [n for s in stops for n in range(len(s)) if text.endswith(s[:n])]
        assert held(text, stops) == max(sizes), (text, stops)


def test_a_long_stop_string_costs_no_more_than_the_text() -> None:
    """A long stop string is cut into all its beginnings while every other request waits."""

    class Counted(str):
        cuts = 0

        def __getitem__(self, key: object) -> str:
            Counted.cuts += 1
            return str.__getitem__(self, key)  # type: ignore[index]

    assert held("aaaa", [Counted("a" * 100_000)]) == 4
    assert Counted.cuts <= 4


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_unfinished_call(tokenizer: Tokenizer, size: int) -> None:
    """A call that the context's end has cut off is told as the answer's text, or not at all."""
    ids = tokenizer.encode("<|tool_call>call:f{n:4399", control=True)
    cut = AnswerReader(tokenizer, chat=True)
    assert read(cut, ids, size) == "" == cut.text and not cut.tool_calls
    [begun] = cut.invalid_tool_calls
    assert (begun.name, begun.text) == ("f", "call:f{n:4399")
    whole = AnswerReader(tokenizer, chat=True)
    ids = tokenizer.encode("<|tool_call>call:f{n:4399}<tool_call|>", control=True)
    assert read(whole, ids, size) == "" and whole.tool_calls[0].arguments == {"n": 4399}


CALL = "<|tool_call>call:f{n:1}<tool_call|>"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("text, kept", [
    (f"ab {CALL} STOP {CALL}c", f"ab {CALL} "), (f"ab S{CALL}TOP{CALL}", "ab "),
    (f"a{CALL}<|channel>thought\nSTOP<channel|>STOP", None),
])  # fmt: skip
def test_nothing_behind_a_stop_string_counts(
    tokenizer: Tokenizer, text: str, kept: str | None, size: int
) -> None:
    """Catches a call that counts only because its canvas also held the stop string, and deltas
    that change their order where text waits."""
    ids = tokenizer.encode(text, control=True)
    reader = AnswerReader(tokenizer, stop=["STOP"], chat=True)
    parts = [reader.push(ids[low : low + size]) for low in range(0, len(ids), size)]
    deltas = sum(parts, ()) + reader.finish()
    before = text.rpartition("STOP")[0] if kept is None else kept
    wanted = AnswerReader(tokenizer, chat=True)
    wanted.push(tokenizer.encode(before, control=True))
    assert reader.stopped and text_of(deltas) == reader.text == wanted.text
    assert reader.thinking == wanted.thinking and reader.tool_calls == wanted.tool_calls
    assert tokenizer.decode(ids[: reader.kept], control=True) == before


DRAFTED = "<|channel>thought\nhm é\n<channel|>Yes — 漢 ST" + CALL + "TO STOP it"


@pytest.mark.parametrize("stop", [(), ("STOP",), ("S",)])
def test_a_draft_is_what_would_come(tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
    """Catches a draft that changes the answer, that shows text twice or not at all, or that reads
    more than its own ids."""
    ids = tokenizer.encode(DRAFTED, control=True)
    for cut in range(len(ids) + 1):
        reader, again = (AnswerReader(tokenizer, stop=stop, chat=True) for _ in range(2))
        told, _ = reader.push(ids[:cut]), again.push(ids[:cut])
        drafts = [reader.draft(ids[cut:]) for _ in range(2)]
        assert drafts[0] == drafts[1]
        rest = again.push(ids[cut:]) + again.finish()
        assert folded(drafts[0]) == folded(rest), "the draft is what the commit then adds"
        assert folded(told + reader.push(ids[cut:]) + reader.finish()) == folded(told + rest)
        assert (reader.kept, list(reader.fields)) == (again.kept, list(again.fields))


def folded(deltas: Sequence[Delta]) -> tuple[str, str, list[ToolCallDelta]]:
    """Text, thought and calls."""
    thought = "".join(delta.text for delta in deltas if isinstance(delta, ThoughtDelta))
    return text_of(deltas), thought, [d for d in deltas if isinstance(d, ToolCallDelta)]


def test_a_draft_leaves_out_a_call_that_is_not_finished(tokenizer: Tokenizer) -> None:
    """Catches half a call that a draft shows as text, and one that is read again at each step."""
    begun = tokenizer.encode("One. <|tool_call>call:f{n:", control=True)
    reader = AnswerReader(tokenizer, chat=True)
    assert reader.draft(begun) == (TextDelta("One. "),)
    assert reader.push(begun) == (TextDelta("One. "),) and reader.draft([]) == ()
    rest = tokenizer.encode("7}<tool_call|>Two", control=True)
    assert [type(delta) for delta in reader.draft(rest)] == [ToolCallDelta, TextDelta]
    assert not reader.tool_calls


@pytest.mark.fault("R L3")
@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_stop_string_within_a_token(tokenizer: Tokenizer, size: int) -> None:
    """The token that it cuts counts or not, as docs/api.md says: its text stays, it does not."""
    ids = tokenizer.encode("JSON: Mira Kovar")
    texts = [tokenizer.token_text(i) for i in ids]
    at = next(k for k, text in enumerate(texts) if len(text.strip()) > 1 and k)
    whole = tokenizer.decode(ids)
    stop = whole[len(tokenizer.decode(ids[:at])) + 1 :]
    reader = AnswerReader(tokenizer, stop=[stop])
    text = read(reader, ids, size)
    assert reader.kept == at
    kept = tokenizer.decode(ids[: reader.kept])
    assert text == whole.removesuffix(stop) and text.startswith(kept) and text != kept
