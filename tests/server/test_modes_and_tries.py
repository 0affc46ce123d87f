"""Token by token over HTTP, restarts and races, and verdicts in replies and streams."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dgemma.errors import Overloaded
from dgemma.params import DEFAULT_TRIES
from dgemma.server.frames import FrameWriter, progress
from dgemma.server.pieces import Frame, Progress
from dgemma.server.sampling_fields import Diffusion
from dgemma.server.settings import ServerLimits
from dgemma.server.verdict import LEAST, verdict_reply
from dgemma.types import Event, Output, Request, Usage, Verdict
from tests.support.client import (
    ASK,
    QUESTION,
    Recorder,
    Written,
    deltas,
    events,
    numbers,
    serve,
)
from tests.support.nano import nano

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
OPINION = Verdict(logprobs=(-0.5, -math.inf, -0.1), disagreements=(1,), steps=7, converged=False,
                  below=1)  # fmt: skip
SAID = {"mean": LEAST, "minimum": LEAST, "score": LEAST, "disagreements": [1], "steps": 7,
        "converged": False, "below": 1}  # fmt: skip


def full(request: Request) -> Any:
    """A model that takes nothing on, so that what it is asked is all that happens."""
    raise Overloaded("tried")


def judged(request: Request) -> Written:
    """Two canvases, each with its verdict, the second one of a third try."""
    parts = [nano().frontend.tokenizer.encode(text) for text in ("One two", " three")]
    commits = [
        Event(type="commit", canvas=number, attempt=2 * number, ids=tuple(ids), step=3,
              verdict=Verdict(logprobs=(-1.0 - number,) * len(ids), steps=3), reason="converged")
        for number, ids in enumerate(parts)
    ]  # fmt: skip
    usage = Usage(prompt_tokens=4, completion_tokens=5, canvases=2, steps=9, discarded_steps=3)
    ids = tuple(one for part in parts for one in part)
    output = Output(
        text="One two three", token_ids=ids, restart_after=8, usage=usage, verdict=OPINION
    )
    return Written([*commits, Event(type="done", output=output)])


# -- the forms, without a model --------------------------------------------------------------------


def test_the_form_of_a_verdict() -> None:
    """Catches numbers that JSON cannot hold, and log-probabilities that nobody asked for."""
    assert verdict_reply(OPINION) == SAID
    assert verdict_reply(OPINION, each=True) == SAID | {"logprobs": [-0.5, LEAST, -0.1]}
    json.dumps(verdict_reply(OPINION, each=True), allow_nan=False)


def test_side_events_name_their_try() -> None:
    """Catches drafts of a canvas that was begun anew shown as if the old one went on."""
    frame = Event(type="frame", canvas=1, attempt=2, step=3)
    writer = FrameWriter(Diffusion(stream="text"), nano().frontend.tokenizer)
    assert writer.draft(Frame(frame, "", "", ""))["diffusion"]["try"] == 2
    commit = Event(type="commit", attempt=3, verdict=OPINION)
    assert progress(Progress(commit, 1))["try"] == 3
    assert progress(Progress(commit, 1))["verdict"] == SAID
    assert "verdict" not in progress(Progress(replace(commit, verdict=None), 1))


# -- replies ---------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize(
    "path, scored", [(CHAT, {"logprobs": True}), (COMPLETIONS, {"logprobs": 0})]
)
def test_verdicts_in_openais_form(path: str, scored: dict[str, Any]) -> None:
    """Catches a verdict at another answer, without its commit, or with a number for each token
    where none was asked for; and discarded steps that are not told."""
    client = serve(Recorder(judged))
    body = {"messages": QUESTION} if path == CHAT else {"prompt": "Hello"}
    body |= {"diffusion": {"verdict": True, "restart_after": 3}}
    reply = client.post(path, body | {"n": 2}).json()
    assert [choice["diffusion"] for choice in reply["choices"]] == [{"verdict": SAID}] * 2
    assert reply["diffusion_usage"]["discarded_steps"] == 2 * 3
    assert reply["restart_after"] == [8, 8]
    found = events(client.post(path, body | {"stream": True}))
    sides = [event["diffusion"] for event in found if "diffusion" in event]
    assert [(side["type"], side["canvas"], side["try"]) for side in sides] == [
        ("commit", 0, 0), ("commit", 1, 2),
    ]  # fmt: skip
    assert [side["verdict"]["mean"] for side in sides] == [-1.0, -2.0]
    [last] = [one for event in found for one in event["choices"] if one["finish_reason"]]
    assert last["diffusion"] == {"verdict": SAID}
    assert found[-1]["restart_after"] == [8]
    reply = client.post(path, body | scored).json()
    assert len(reply["choices"][0]["diffusion"]["verdict"]["logprobs"]) == 3
    found = events(client.post(path, body | scored | {"stream": True}))
    [first, _] = [event["diffusion"] for event in found if "diffusion" in event]
    assert set(first["verdict"]["logprobs"]) == {-1.0}


@pytest.mark.model
def test_the_verdict_of_messages() -> None:
    """Catches a field that this API accepts and does not answer."""
    client = serve(Recorder(judged))
    body = {"messages": QUESTION, "max_tokens": 9, "diffusion": {"verdict": True}}
    reply = client.post(MESSAGES, body).json()
    assert (reply["verdict"], reply["restart_after"]) == (SAID, 8)
    assert json.dumps(SAID, separators=(",", ":")) in client.post(
        MESSAGES, body | {"stream": True}
    ).text.replace(": ", ":").replace(", ", ",")


@pytest.mark.model
def test_the_engines_verdict() -> None:
    """Catches a verdict that is another than Python's, and one that nobody asked for."""
    llm = nano()
    client = serve()
    reply = client.ask(diffusion={"verdict": True}, logprobs=True).json()["choices"][0]
    output = llm.chat(QUESTION, seed=1, verdict=True)
    assert output.verdict is not None
    assert reply["diffusion"]["verdict"] == verdict_reply(output.verdict, each=True)
    assert "diffusion" not in client.ask(diffusion={}).json()["choices"][0]
    best = client.post(COMPLETIONS, {"prompt": "Hello", "best_of": 2, "max_tokens": 4, "seed": 1})
    assert "diffusion" not in best.json()["choices"][0]
    best = client.post(
        COMPLETIONS,
        {"prompt": "Hello", "best_of": 2, "max_tokens": 4, "seed": 1, "diffusion_verdict": True},
    )
    assert best.json()["choices"][0]["diffusion"]["verdict"]["steps"] > 0


@pytest.mark.model
@pytest.mark.parametrize("path, body", [
    (COMPLETIONS, {"prompt": "Dear ", "suffix": "."}), ("/v1/fim/completions", {"prompt": "Dear "}),
    ("/infill", {"input_prefix": "Dear "}), ("/v1/canvas", {"segments": [{"text": "a"}, {}]}),
])  # fmt: skip
def test_a_plan_has_no_verdict(path: str, body: dict[str, Any]) -> None:
    """Catches a field that is accepted where no reply holds its answer."""
    reply = serve(Recorder(full)).post(path, body | {"diffusion": {"verdict": True}})
    assert reply.status_code == 400 and "diffusion.verdict" in reply.json()["error"]["message"]


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize("path, body, name", [
    (CHAT, {"messages": QUESTION, "diffusion": {"race": 5}}, "diffusion.race"),
    (CHAT, {"messages": QUESTION, "n": 2, "diffusion_race": 3}, "n"),
    (COMPLETIONS, {"prompt": "Hi", "n": 2, "diffusion": {"race": 3}}, "n"),
    (COMPLETIONS, {"prompt": "Hi", "best_of": 3, "diffusion": {"race": 2}}, "best_of"),
    (COMPLETIONS, {"prompt": ["Hi", "Ho", "Ha"], "diffusion": {"race": 2}}, "prompt"),
    (COMPLETIONS, {"prompt": "Hi", "suffix": ".", "n": 2, "diffusion": {"race": 3}}, "n"),
    ("/v1/fim/completions", {"prompt": "Hi", "diffusion_race": 5}, "diffusion_race"),
    (CHAT, {"messages": QUESTION, "diffusion": {"restart_after": 8}}, "diffusion.restart_after"),
    (CHAT, {"messages": QUESTION, "diffusion": {"restart_after": 4, "tries": 6}},
     "diffusion.restart_after"),
    (CHAT, {"messages": QUESTION, "diffusion_tries": 21}, "diffusion_tries"),
    (CHAT, {"messages": QUESTION, "diffusion_restart_after": "auto", "diffusion_tries": 21},
     "diffusion_restart_after"),
    (CHAT, {"messages": QUESTION, "diffusion": {"quality": "careful"}}, "diffusion.quality"),
    (CHAT, {"messages": QUESTION, "diffusion": {"quality": "careful", "max_steps": 6}},
     "diffusion.quality"),
])  # fmt: skip
def test_tries_and_races_are_bounded(path: str, body: dict[str, Any], name: str) -> None:
    """Catches one request that takes the rows of many, or a canvas that takes the steps of many."""
    client = serve(Recorder(full), limits=ServerLimits(n=4, max_steps=20))
    error = client.post(path, body).json()["error"]
    assert (error["param"], error["code"]) == (name, "limit"), error
    assert error["message"].startswith(name)


@pytest.mark.model
def test_what_the_bounds_allow() -> None:
    """Catches a bound that is one too low, and the checkpoint's own race left out of the count."""
    model = Recorder(full)
    client = serve(model, limits=ServerLimits(n=4, max_steps=20))
    for more in ({"n": 2, "diffusion_race": 2}, {"diffusion": {"race": 4, "tries": 20}},
                 {"diffusion": {"restart_after": 20 // DEFAULT_TRIES}}):  # fmt: skip
        assert client.post(CHAT, {"messages": QUESTION} | more).status_code == 429
    model.defaults = replace(model.defaults, race=3)
    error = client.post(CHAT, {"messages": QUESTION, "n": 2}).json()["error"]
    assert error["param"] == "n" and "race of 3" in error["message"]
    asked = {"prompt": "Hi", "n": 2, "mode": "autoregressive"}  # where nothing races
    assert client.post(COMPLETIONS, asked).status_code == 429


@pytest.mark.model
@pytest.mark.parametrize("name, values", [
    ("restart_after", [-1, 10_001, 1.5, True, "soon"]), ("tries", [0, 65, "4"]),
    ("race", [0, 17, "two"]), ("verdict", ["yes", 1]), ("quality", ["careless", True]),
])  # fmt: skip
def test_values_that_are_none(name: str, values: Sequence[Any]) -> None:
    """Catches a value that is clipped, or refused under another name than it was sent under."""
    client = serve(Recorder(full))
    for value in values:
        for sent, body in ((f"diffusion.{name}", {"diffusion": {name: value}}),
                           (f"diffusion_{name}", {f"diffusion_{name}": value})):  # fmt: skip
            reply = client.post(CHAT, {"messages": QUESTION} | body)
            assert reply.status_code == 400 and sent in reply.json()["error"]["message"], value


# -- modes -----------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive", "exact"])
@pytest.mark.parametrize("path, body", [
    (CHAT, {"messages": QUESTION}), (COMPLETIONS, {"prompt": "Hello"}),
    (MESSAGES, {"messages": QUESTION, "max_tokens": 9}),
])  # fmt: skip
def test_the_mode_reaches_the_model(path: str, body: dict[str, Any], mode: str) -> None:
    """Catches a mode that is accepted and ignored."""
    model = Recorder(full)
    assert serve(model).post(path, body | {"mode": mode}).status_code == 429
    assert [request.mode for request in model.asked] == [mode]
    reply = serve(model).post(path, body | {"mode": "score"})
    assert reply.status_code == 400 and "mode" in reply.json()["error"]["message"]


@pytest.mark.model
def test_token_by_token_in_a_stream() -> None:
    """Catches an answer that comes at its end, another one than Python's, and positions of
    canvases counted where there are none."""
    output = nano().autoregress(QUESTION)
    body = {"messages": QUESTION, "mode": "autoregressive"}
    reply = serve().post(CHAT, body).json()
    assert reply["choices"][0]["message"]["content"] == output.text
    spent = reply["diffusion_usage"]
    assert (spent["canvases"], spent["steps"]) == (0, output.usage.steps)
    rates = reply["timings"]
    assert rates["step_tok_s"] == pytest.approx(
        rates["output_tok_s"] * output.usage.steps / output.usage.completion_tokens, rel=0.01
    )
    found = events(serve().post(CHAT, body | {"stream": True, "diffusion": {"stream": "text"}}))
    assert "".join(deltas(found, "content")) == output.text
    commits = [event["diffusion"] for event in found if "diffusion" in event]
    commits = [side for side in commits if side["type"] == "commit"]
    assert [side["tokens"] for side in commits if side["tokens"]] == [1] * len(output.token_ids)
    found = [json.loads(line.removeprefix("data: ")) for line in
             serve().post(MESSAGES, body | {"stream": True, "max_tokens": 30}).text.split("\n")
             if line.startswith("data: ")]  # fmt: skip
    text = "".join(e["delta"]["text"] for e in found if e["type"] == "content_block_delta")
    assert text == output.text


@pytest.mark.model
def test_the_exact_mode_in_a_stream() -> None:
    """Catches another answer than token by token, and one that takes as many passes."""
    plain = nano().autoregress(QUESTION)
    body = {"messages": QUESTION, "mode": "exact"}
    reply = serve().post(CHAT, body).json()
    assert reply["choices"][0]["message"]["content"] == plain.text
    assert reply["diffusion_usage"]["steps"] < plain.usage.steps
    found = events(serve().post(CHAT, body | {"stream": True, "diffusion": {"stream": "text"}}))
    assert "".join(deltas(found, "content")) == plain.text
    sides = [event["diffusion"] for event in found if "diffusion" in event]
    commits = [side["tokens"] for side in sides if side["type"] == "commit"]
    assert sum(commits) == len(plain.token_ids) > len(commits)
    assert all(side["type"] != "frame" for side in sides)


@pytest.mark.model
@pytest.mark.parametrize("more, name", [
    ({"seed": 1}, "seed"), ({"temperature": 0.5}, "temperature"), ({"suffix": "."}, "suffix"),
    ({"diffusion": {"restart_after": 3}}, "diffusion.restart_after"),
    ({"diffusion_race": 2}, "diffusion_race"), ({"best_of": 2}, "best_of"),
    ({"guided_choice": ["a", "b"]}, "guided_choice"), ({"logprobs": 1}, "logprobs"),
    ({"diffusion_read_only": True}, "diffusion_read_only"),
    ({"diffusion_seed_canvas": [300]}, "diffusion_seed_canvas"),
])  # fmt: skip
def test_what_steers_a_canvas_is_refused(more: dict[str, Any], name: str) -> None:
    """Catches a field that is ignored where answers are written token by token."""
    reply = serve().post(COMPLETIONS, {"prompt": "Hello", "mode": "autoregressive"} | more)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"].startswith(name)


@pytest.mark.model
def test_metrics_tell_of_what_was_thrown_away() -> None:
    """Catches restarts that cost steps which no counter shows apart."""
    client = serve(Recorder(judged))
    before = numbers(client)["dgemma_discarded_steps_total[]"]
    assert client.post(CHAT, ASK).status_code == 200
    assert numbers(client)["dgemma_discarded_steps_total[]"] == before + 3


@pytest.mark.model
def test_replies_say_what_auto_stood_for() -> None:
    """Catches an answer that cannot be had again, since its number is not told."""
    auto: dict[str, Any] = {"seed": 1, "diffusion": {"restart_after": "auto"}}
    measured = nano().calibration.restart_after
    client = serve()
    assert client.post(CHAT, ASK | auto).json()["restart_after"] == [measured]
    hole = {"prompt": "Mira has a ", "suffix": " that gives milk.", "max_tokens": 8}
    assert client.post("/v1/fim/completions", hole | auto).json()["restart_after"] == [measured]
