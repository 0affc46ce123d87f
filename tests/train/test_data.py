"""What is learnt as prompt and what as answer."""

from __future__ import annotations

import pytest

from dgemma.tasks import TASKS, make_example
from dgemma.text.parse import MarkerIds, thought_is_open
from dgemma.train.data import to_sample
from tests.support.nano import nano
from tests.support.parsed import parse

pytestmark = pytest.mark.model

EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


@pytest.mark.parametrize("task", TASKS)
def test_the_empty_thought_belongs_to_the_prompt(task: str) -> None:
    """Trap 10: learnt as part of the answer, every answer without a thought would begin with it.

    The template writes it into the prompt when thinking is off, and leaves it out when on.
    """
    llm = nano()
    assert llm.tokenizer is not None and llm.template is not None
    markers = MarkerIds.of(llm.tokenizer)
    empty = llm.tokenizer.encode(EMPTY_THOUGHT, control=True)
    for index in range(5):
        example = make_example(task, "heldout", 0, index)
        sample = to_sample(example, llm.tokenizer, llm.template)
        thinks = example.thinking is not None
        assert (sample.prompt[-len(empty) :] == empty) is not thinks
        assert not thought_is_open(markers, sample.prompt)
        assert (markers.channel_open in sample.response) is thinks
        # The parser reads out of the answer what the example put in.
        said = parse(llm.tokenizer, sample.response)
        assert (said.thinking, said.text) == (example.thinking, example.answer)
        calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in said.tool_calls]
        assert calls == ([example.tool_call] if example.tool_call else [])
