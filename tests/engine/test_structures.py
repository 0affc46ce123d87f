"""Markdown by name in the engine: what is finished has the form, in little room, too."""

from __future__ import annotations

import pytest

from dgemma.params import SamplingParams
from tests.support.markdown import STRUCTURES, fenced, items, table
from tests.support.nano import nano
from tests.support.random_answers import answers, check_ends, random_engine

pytestmark = pytest.mark.model


@pytest.mark.parametrize("room", [10, 40, 90])
def test_structures_close_in_little_room(room: int) -> None:
    """A table's last row without its cells, a fence left open, an item without its text: on random
    weights, in canvases that are narrower than the answer."""
    tokenizer = nano().tokenizer
    assert tokenizer is not None
    cases = {name: {"structure": name} for name in STRUCTURES}
    found = answers(random_engine(1024, (1, 106, 50), 32), tokenizer, cases, 1, room)
    check_ends(found)
    stopped = {name for name, output, _ in found if output.finish_reason == "stop"}
    for name, output, text in found:
        assert len(output.token_ids) <= room
        if name in stopped:
            STRUCTURES[name](text)
    assert {"list", "numbered", "document"} <= stopped
    assert room == 10 or {"fence", "fence:python", "list:3"} <= stopped
    assert room < 90 or stopped == set(STRUCTURES)


@pytest.mark.parametrize("name", ["table:a,b", "fence:x", "list:2", "numbered:2"])
def test_structures_alone_in_a_batch_and_as_a_stream(name: str) -> None:
    """A closing that depends on the neighbours, or that a stream does not send; and one that throws
    away a whole canvas for its few tokens."""
    llm, judge = nano(), STRUCTURES | {"table:a,b": table, "fence:x": fenced}
    params = SamplingParams(seed=3, max_tokens=48, max_steps=6, structure=name)
    asked = [[{"role": "user", "content": text}] for text in ("Who are you?", "Parity: 3182")]
    alone = [llm.chat(one, params) for one in asked]
    assert [out.token_ids for out in llm.chat(asked, params)] == [out.token_ids for out in alone]
    for one, out in zip(asked, alone, strict=True):
        assert out.finish_reason == "stop" and out.constraint is not None
        assert out.constraint.mode == "structure" and out.constraint.complete
        judge.get(name, lambda text: items(text, numbered=name[0] == "n"))(out.text)
        assert len(out.token_ids) - out.constraint.closed >= 10, out.text
        with llm.stream(one, params) as events:
            assert "".join(event.text for event in events if event.type != "frame") == out.text
    best = llm.chat(asked[0], params, n=1, best_of=2)
    assert best.constraint is not None and best.constraint.complete
