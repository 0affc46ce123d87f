"""The fewest tokens of a text, known before it is tokenized; and what else long texts cost."""

from __future__ import annotations

import copy
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from dgemma.errors import ContextOverflow
from dgemma.text.gemma_backend import gemma_backend
from dgemma.text.tokenizer import Tokenizer
from tests.support.tokenizers import NANO

pytestmark = pytest.mark.fault("R C3", "R H4")

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


def backend() -> Backend:
    """Bytes, "a", a space, and pairs of both up to eight."""
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, "a", "\u2581"]
    merges = []
    for letter in ("a", "\u2581"):
        for size in (1, 2, 4):
            texts.append(letter * 2 * size)
            merges.append((letter * size, letter * size))
    vocab = {text: number for number, text in enumerate(texts)}
    return gemma_backend(vocab, merges, ["<pad>", "<eos>", "<bos>", "<unk>"])


@given(st.text(st.sampled_from("a \u2581é漢🦙\n<>"), max_size=60) | st.text(max_size=60))
@example("\u2581" * 16)
@example(" " * 16)
def test_a_lower_bound(text: str) -> None:
    """Catches texts that are refused though they fit. No false alarms: the bound is proven."""
    for tokenizer in (SMALL, BUNDLED):
        if not any("\ud800" <= one <= "\udfff" for one in text):
            assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))


SMALL = Tokenizer(backend(), NAMES, "a test")
BUNDLED = Tokenizer.from_directory(NANO)


def test_it_is_the_best_one_of_the_vocabulary() -> None:
    """Catches a bound that refuses nothing."""
    assert SMALL.longest == 8 and BUNDLED.longest == 14
    for text in ("a" * 80, " " * 80, "\u2581" * 80):
        assert SMALL.least_tokens(text) == len(SMALL.encode(text)) == 10
    SMALL.check_length(["a" * 40, "a" * 40], 10)
    with pytest.raises(ContextOverflow, match="at least 11 tokens.* shorten it to 80 bytes"):
        SMALL.check_length(["a" * 40, "a" * 41], 10)


def _normalized(one: Backend) -> None:
    one.normalizer = normalizers.Sequence([normalizers.Strip(), one.normalizer])


def _split(one: Backend) -> None:
    one.pre_tokenizer = pre_tokenizers.Split("a", "removed")


def _swallowing(one: Backend) -> None:
    one.add_tokens([AddedToken("b", rstrip=True, special=False)])


@pytest.mark.parametrize("change", [_normalized, _split, _swallowing])
def test_no_bound_where_text_is_left_out(change: Any) -> None:
    """Catches a bound for a checkpoint that strips, removes or swallows parts of a text."""
    found = backend()
    change(found)
    tokenizer = Tokenizer(found, NAMES, "a test")
    assert tokenizer.longest is None and tokenizer.least_tokens("a" * 1000) == 0
    tokenizer.check_length(["a" * 1000], 1)


def test_other_threads_run_beside_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the interpreter lock being held for a long text: nothing else of a server runs then.

    Threads change here only where the lock is given up. A false alarm needs a thread that gets no
    time of a processor during the whole call.
    """
    text = "A line of some words, and another. " * 6000
    counted, inside, done = 0, threading.Event(), threading.Event()

    class Watched:
        """The library's tokenizer, which says when it is called."""

        def __getattr__(self, name: str) -> Any:
            inside.set()
            return getattr(BUNDLED._backend, name)

    def count() -> None:
        nonlocal counted
        inside.wait(20)
        while not done.is_set():
            counted += 1
            time.sleep(0.0001)

    watched = copy.copy(BUNDLED)
    monkeypatch.setattr(watched, "_backend", Watched())
    thread = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    thread.start()
    sys.setswitchinterval(100)
    try:
        ids = watched.encode(text)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert ids == BUNDLED._backend.encode(text, add_special_tokens=False).ids
    assert counted
