"""Text to ids and back on Gemma 4's vocabulary and on nano's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from dgemma.errors import InvalidRequest, TokenizerError
from dgemma.text.tokenizer import Detokenizer, Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"
THOUSAND = settings(max_examples=1000, deadline=None)
any_text = st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]))
control_like = st.lists(
    st.sampled_from(
        ["<bos>", "<|turn>", "<turn|>", "<0x41>", "<unused0>", "[multimodal]", " ", "a"]
    )
).map("".join)


def test_published_vectors(gemma: Tokenizer, vectors: tuple[str, str]) -> None:
    """Every published text gives the published ids: catches a wrong normaliser, merge order,
    byte fallback, or a control token made of text."""
    texts, lines = vectors[0].split(SEPARATOR), vectors[1].splitlines()
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = [int(word) for word in line.split()]
        assert gemma.encode(text) == ids, text
        assert gemma.decode(ids) == text


@pytest.mark.slow
@THOUSAND
@given(text=any_text | control_like)
@example("<0x41><0xF0>")
@example("\ufeff\x00\r\n\t\u200d\U0010ffff")
def test_round_trip(gemma: Tokenizer, nano: Tokenizer, text: str) -> None:
    """All Unicode comes back, and never as a control token.

    Two exceptions by the nature of the vocabulary: U+2581 is how it writes a space, and lone
    surrogates are no Unicode text. No false alarms: it holds for every other text.
    """
    for tokenizer in (gemma, nano):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.special_ids.isdisjoint(ids)


def test_the_two_exceptions(tokenizer: Tokenizer) -> None:
    """Stated, so that a change of either is noticed."""
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"
    with pytest.raises(InvalidRequest, match=r"lone surrogate .* at character 2"):
        tokenizer.encode("ab\ud800")


def test_control_tokens(tokenizer: Tokenizer) -> None:
    """Only `control=True` reads names as tokens; catches the wall being open by default."""
    text = '<bos>a<|turn>user\n<|"|><turn|>'
    ids = tokenizer.encode(text, control=True)
    assert [i for i in ids if i in tokenizer.special_ids] == [2, 105, 52, 106]
    assert tokenizer.decode(ids, control=True) == text
    assert tokenizer.decode(ids) == "auser\n"
    assert tokenizer.encode("a", bos=True) == [2, *tokenizer.encode("a")]
    assert tokenizer.pieces("") == [] and tokenizer.encode("", control=True) == []


def test_same_ids_as_gemma(gemma: Tokenizer, nano: Tokenizer) -> None:
    """The server, the parser and the engine's end ids count on the released model's ids."""
    names = [name for name in gemma.control_names() if (gemma.id_of(name) or 0) < 300]
    assert len(names) == 17
    for name in [*names, "\n", *(f"<0x{byte:02X}>" for byte in range(256))]:
        assert nano.id_of(name) == gemma.id_of(name), name
    assert (gemma.bos_id, gemma.eos_id, gemma.pad_id) == (2, 1, 0)
    assert (nano.bos_id, nano.eos_id, nano.pad_id) == (2, 1, 0)


def test_token_bytes(tokenizer: Tokenizer) -> None:
    """What grammars work on: bytes of spaces and of byte tokens; nothing for control tokens, or a
    grammar would take `<bos>` for five characters."""
    text = "a b🦙\x00"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert tokenizer.token_bytes(105) == b"" and tokenizer.token_text(105) == "<|turn>"
    assert tokenizer.token_bytes(tokenizer.id_of("<0xF0>") or 0) == b"\xf0"
    assert tokenizer.id_of("no such token") is None


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_outside(tokenizer: Tokenizer, bad: int) -> None:
    """Catches Python's negative indices, and a tokenizer of another model."""
    for action in (tokenizer.token_bytes, tokenizer.token_text, lambda i: tokenizer.decode([5, i])):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            action(bad)


def test_no_utf8_becomes_replacement(tokenizer: Tokenizer) -> None:
    """Byte tokens in any order are possible while a canvas is noisy."""
    lead, tail = tokenizer.id_of("<0xF0>"), tokenizer.id_of("<0x9F>")
    assert lead is not None and tail is not None
    a = tokenizer.encode("a")
    assert tokenizer.decode([lead, *a, tail]) == "\ufffda\ufffd"
    llama = tokenizer.encode("🦙")
    assert len(llama) == 4
    torn = [*llama[:2], tokenizer.eos_id, *llama[2:]]
    assert tokenizer.decode(torn) == "\ufffd\ufffd\ufffd", "bytes must not join over a token"


def test_every_split_of_multibyte_text(tokenizer: Tokenizer) -> None:
    """However the ids come, the pieces are whole characters and make up the whole text."""
    text = "né 🦙🧉\u200d \u1781x"
    ids = [tokenizer.id_of(f"<0x{byte:02X}>") or 0 for byte in text.encode()] + [105]
    ids += tokenizer.encode(text)
    for control in (False, True):
        whole = tokenizer.decode(ids, control=control)
        for size in range(1, len(ids) + 1):
            detokenizer = Detokenizer(tokenizer, control=control)
            pieces = [detokenizer.push(ids[k : k + size]) for k in range(0, len(ids), size)]
            assert "\ufffd" not in "".join(pieces)
            assert "".join(pieces) + detokenizer.flush() == whole


@pytest.mark.slow
@THOUSAND
@given(data=st.data())
def test_pieces_of_random_ids(nano: Tokenizer, data: st.DataObject) -> None:
    """Broken bytes too: `push`es and `flush` are `decode`. No false alarms: true for all ids."""
    ids = data.draw(st.lists(st.sampled_from([*range(360, 500), 100, 106, 600, 5]), max_size=20))
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(nano)
    assert detokenizer.push(ids[:cut]) + detokenizer.push(
        ids[cut:]
    ) + detokenizer.flush() == nano.decode(ids)


def test_directory_faults(tmp_path: Path, nano_directory: Path) -> None:
    """Each broken directory gives our error with a remedy, not a traceback of a library."""
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json; take the tokenizer files"):
        Tokenizer.from_directory(tmp_path)
    file, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    file.write_text("{}")
    with pytest.raises(TokenizerError, match="has no model"):
        Tokenizer.from_directory(tmp_path)
    shutil.copy(nano_directory / "tokenizer.json", file)
    assert Tokenizer.from_directory(tmp_path).bos_id == 2
    config.write_text(json.dumps({"bos_token": {"content": "<mask>"}}))
    assert Tokenizer.from_directory(tmp_path).bos_id == 4
    config.write_text(json.dumps({"bos_token": "<s>"}))
    with pytest.raises(TokenizerError, match="bos_token '<s>' is not in the vocabulary"):
        Tokenizer.from_directory(tmp_path)
    config.write_text("[]")
    with pytest.raises(TokenizerError, match="not a JSON object"):
        Tokenizer.from_directory(tmp_path)
    config.write_text("{")
    with pytest.raises(TokenizerError, match="not valid JSON"):
        Tokenizer.from_directory(tmp_path)


def test_another_family(tmp_path: Path) -> None:
    """A vocabulary without byte tokens would lose characters in silence."""
    Backend(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="256 byte tokens"):
        Tokenizer.from_directory(tmp_path)


def test_added_tokens_of_other_kinds(tmp_path: Path, nano_directory: Path) -> None:
    """Released files differ in flags: a marker that is not flagged special is control all the
    same, an added word that is no marker stays text, and blanks that a token swallows go."""
    backend = Backend.from_file(str(nano_directory / "tokenizer.json"))
    backend.add_tokens([AddedToken("<|late>", special=False, normalized=False)])
    backend.add_tokens([AddedToken("wordy", special=False)])
    backend.add_special_tokens([AddedToken("[gap]", special=True, lstrip=True)])
    backend.add_special_tokens([AddedToken("[gap]2", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.vocab_size == 1028
    assert tokenizer.special_ids >= {1024, 1026} and 1025 not in tokenizer.special_ids
    assert 1024 not in tokenizer.encode("<|late>")
    assert tokenizer.encode("<|late>", control=True) == [1024]
    assert tokenizer.encode("wordy") == [1025]
    assert tokenizer.encode("a \n[gap] b", control=True) == [
        *tokenizer.encode("a"), 1026, *tokenizer.encode(" b")
    ]  # fmt: skip
    assert tokenizer.encode("[gap]2", control=True) == [1027], "the longer of two names"
    assert tokenizer.decode([1025]) == "wordy"


def test_text_that_becomes_control_is_refused(tmp_path: Path, nano_directory: Path) -> None:
    """A file whose merges spell a control token has no wall; it must not load."""
    found = json.loads((nano_directory / "tokenizer.json").read_text())
    found["pre_tokenizer"] = None
    found["model"]["vocab"] |= {"<b": 1024, "<bo": 1025, "<bos": 1026}
    spelt = [["<", "b"], ["<b", "o"], ["<bo", "s"], ["<bos", ">"]]
    found["model"]["merges"] = spelt + found["model"]["merges"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(TokenizerError, match="becomes control token <bos>"):
        Tokenizer.from_directory(tmp_path)
