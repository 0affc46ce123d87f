"""`bench.serving`: its arithmetic by hand, and a small run against a real server, untimed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import serving
from bench.serving import Load, LoadPoint
from bench.stats import percentile
from bench.traffic import EventReader, TrafficMix, TrafficSample, arrivals, conversations
from dgemma.errors import EngineError, InvalidRequest

Ran = tuple[int, str, str]


# -- arithmetic ------------------------------------------------------------------------------------


def test_percentiles() -> None:
    """Catches an index that is off by one: a 99th percentile of the wrong answer."""
    draw = random.Random(1)
    for size in (1, 2, 3, 10, 101):
        values = [draw.random() for _ in range(size)]
        for percent in (0, 1, 50, 90, 99, 100):
            found = percentile(values, percent)
            assert found == pytest.approx(float(np.percentile(values, percent)), abs=1e-12)
    assert math.isnan(percentile([], 50))


def test_arrivals_are_poisson() -> None:
    """Catches evenly spaced requests, another rate, and a run that cannot be repeated.

    The mean of 4,000 gaps is off by 1.6 % (one standard deviation), so are the shares below; the
    seed is fixed, so nothing here changes from run to run.
    """
    at = arrivals(5.0, 4000, seed=1)
    gaps = np.diff([0.0, *at])
    assert gaps.min() >= 0 and gaps.mean() == pytest.approx(0.2, rel=0.05)
    for times in (0.5, 1.0, 2.0):  # of gaps longer than so many means
        assert (gaps > 0.2 * times).mean() == pytest.approx(math.exp(-times), abs=0.03)
    assert at == arrivals(5.0, 4000, seed=1) != arrivals(5.0, 4000, seed=2)


STREAM = (
    b": still here\n\n"
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
    + 'data: {"text":"Žofie 🙂"}\n\n'.encode()
    + b"event: x\rdata:one\rdata: two\r\r"
    b"data: [DONE]\n\ndata: never ended"
)


def test_events_are_read_however_the_bytes_are_cut() -> None:
    """Catches an event that is lost, doubled or garbled where a packet ends within it."""
    expected = list(EventReader().feed(STREAM))
    assert expected == [
        '{"choices":[{"delta":{"role":"assistant","content":""}}]}', '{"text":"Žofie 🙂"}',
        "one\ntwo", "[DONE]",
    ]  # fmt: skip
    for cut in range(len(STREAM) + 1):
        reader = EventReader()
        pieces = (STREAM[:cut], b"", STREAM[cut:])
        assert [event for piece in pieces for event in reader.feed(piece)] == expected, cut
    reader = EventReader()
    single = [event for k in range(len(STREAM)) for event in reader.feed(STREAM[k : k + 1])]
    assert single == expected


def test_a_sample_notes_what_came_first() -> None:
    """Catches a draft that counts as text, an empty first delta that does, and lost usage."""
    sample = TrafficSample()
    for now_s, chunk in enumerate([
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {}}], "type": "diffusion_frame", "text": "draft"},
        {"choices": [{"delta": {"content": "draft"}}],
         "diffusion_meta": {"diffusion_content": True}},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"content": "text"}}], "usage": None},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},
    ]):  # fmt: skip
        sample.read(json.dumps(chunk), now_s)
    assert sample.end_s is None
    sample.read("[DONE]", 9.0)
    assert (sample.frame_s, sample.text_s, sample.end_s) == (1, 3, 9)
    assert (sample.prompt_tokens, sample.completion_tokens, sample.failure) == (7, 3, "")
    sample.read('{"error": {"message": "x"}}', 10)
    assert sample.failure == "error event"


def test_a_point_counts_answers_alone() -> None:
    """Catches failed requests in a rate, and times of the wrong unit."""
    answered = [
        TrafficSample(due_s=k, text_s=0.5 + k, end_s=1.0 + k, completion_tokens=10)
        for k in range(3)
    ]
    lost = [
        TrafficSample(due_s=0.0, failure="status 429"),
        TrafficSample(due_s=9.0, failure="time-out"),
    ]
    point = LoadPoint(Load(2, None), [*answered, *lost])
    assert (
        point.seconds == 5.0
        and point.requests_per_s == 3 / 5
        and point.completion_tokens_per_s == 6
    )
    assert point.ms("text_s", 50) == 1500 and math.isnan(point.ms("frame_s", 50))
    assert point.failures == {"status 429": 1, "time-out": 1}
    silent = LoadPoint(Load(None, 2.0), [*answered, TrafficSample(end_s=1.0)])
    assert math.isnan(silent.completion_tokens_per_s) and silent.load.name == "2 a second"
    nothing = LoadPoint(Load(1, None), lost)
    assert math.isnan(nothing.requests_per_s) and math.isnan(nothing.completion_tokens_per_s)
    points = [point, silent, nothing]
    tables, charts = serving.tables(points), serving.charts(points)
    assert [table.title for table in tables][2] == "What failed"
    assert len(charts) == 4 and all(chart.draw() for chart in charts)


def test_the_mix_is_mixed_and_repeatable(tmp_path: Path) -> None:
    """Catches one prompt sent again and again, which a server with a cache answers at once."""
    mix = TrafficMix(3, (16, 64))
    first, more = mix.take(20), mix.take(20)
    again, other = TrafficMix(3, (16, 64)), TrafficMix(4, (16, 64))
    assert again.take(20) + again.take(20) == first + more
    assert other.take(20) != first
    assert [ask.max_tokens for ask in first] == [ask.max_tokens for ask in more]
    assert len({json.dumps(ask.messages) for ask in first + more}) == 40
    assert {ask.max_tokens for ask in first} == {16, 64}
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "Hello"}\n\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    told = TrafficMix(1, (8,), conversations(file)).take(3)
    assert [ask.messages[0]["content"] for ask in told] == ["Hello", "Hi", "Hello"]
    for wrong in ("", "no json", '{"text": "x"}', '{"prompt": 1}'):
        file.write_text(wrong)
        with pytest.raises(InvalidRequest, match="own.jsonl"):
            conversations(file)


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.process
def test_a_small_run_against_a_server_of_its_own(
    run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a server that cannot be driven, a load that is not all sent, and text or a key in
    the report."""
    monkeypatch.setenv("DGEMMA_API_KEYS", "sk-of-the-user-not-ours")
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Parity: {n} quokka"}) for n in range(6)))
    json_, svg = tmp_path / "r.json", tmp_path / "r.svg"
    code, out, err = run(
        "serving", "nano", "--concurrency", "1,2", "--requests", "4", "--rates", "50",
        "--lengths", "4,8", "--threads", "1", "--prompts-file", str(file), "--json", str(json_),
        "--svg", str(svg),
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(json_.read_text())
    loads = report["values"]["loads"]
    assert [(one["load"]["concurrency"], one["load"]["rate_per_s"]) for one in loads] == [
        (1, None), (2, None), (None, 50.0)
    ]  # fmt: skip
    for one in loads:
        assert len(one["samples"]) == 4 and one["failures"] == {}
        for sample in one["samples"]:
            assert 0 < sample["frame_s"] <= sample["end_s"] and sample["prompt_tokens"] > 0
            assert 0 < sample["completion_tokens"] <= 8
    ElementTree.fromstring(svg.read_text())
    assert svg.read_text().count("<circle") == 3 * (1 + 6)  # loads, each a rate and six times
    for told in (out, json_.read_text(), svg.read_text()):
        assert "quokka" not in told and "sk-" not in told
    assert "--rates 50" in report["command"] and report["subject"]["device"] == "cpu"


def test_a_server_of_our_own_takes_the_options(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of another attention path than the one that was asked for."""

    def told(_: str, words: list[str], threads: int | None) -> None:
        raise InvalidRequest(" ".join(words))

    monkeypatch.setattr(serving, "serving", told)
    code, _, err = run("serving", "--device", "cpu", "--attention", "paged")
    assert code == 2 and "--device cpu --dtype auto --attention paged" in err


class OtherServer(BaseHTTPRequestHandler):
    """A server that is not ours: no usage, no drafts, and not always in the mood."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str | None, dict[str, Any]]]

    def do_GET(self) -> None:
        self._reply(200, json.dumps({"data": [{"id": "theirs"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.headers["authorization"], body))
        number = len(self.asked) - serving.WARM_UP
        if number == 1:
            self._reply(429, b"{}")
        elif number == 2:
            self._reply(200, b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n')
        elif number == 3:
            self._reply(200, b"data: oops\n\n")
        else:
            told = b'data: {"choices": [{"delta": {"content": "all"}}]}\n\ndata: [DONE]\n\n'
            self._reply(200, told)

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def other_server() -> Iterator[tuple[str, list[tuple[str | None, dict[str, Any]]]]]:
    asked: list[tuple[str | None, dict[str, Any]]] = []
    handler = type("Handler", (OtherServer,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.process
def test_any_server_may_be_driven(
    run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches failures that count as answers, drafts asked of a server that has none, a key that
    is not sent, and one that is shown."""
    monkeypatch.setenv("THEIR_KEY", "sk-secret")
    file = tmp_path / "r.json"
    with other_server() as (url, asked):
        code, out, err = run(
            "serving", "theirs", "--url", f"{url}/v1/", "--key-env", "THEIR_KEY", "--concurrency",
            "1", "--requests", "6", "--json", str(file),
        )  # fmt: skip
        assert code == 0, err
        wrong = run("serving", "others", "--url", url)
        assert wrong[0] == 2 and "known: theirs" in wrong[2]
    assert len(asked) == 6 + serving.WARM_UP
    assert {key for key, _ in asked} == {"Bearer sk-secret"} and "sk-secret" not in out + err
    assert not [body for _, body in asked if "diffusion" in body or "diffusing" in body]
    assert all(body["model"] == "theirs" and body["stream"] for _, body in asked)
    [load] = json.loads(file.read_text())["values"]["loads"]
    assert load["failures"] == {
        "status 429": 1, "stream without an end": 1, "malformed event": 1
    }  # fmt: skip
    assert load["completion_tokens_per_s"] is None and load["waits_ms"]["frame_p50"] is None
    assert load["waits_ms"]["text_p50"] > 0 and load["requests_per_s"] > 0


@pytest.mark.process
def test_a_server_that_does_not_start_says_why() -> None:
    """Catches a benchmark that waits for ever, and a child that stays behind."""
    with (
        pytest.raises(EngineError, match="did not start.*no-such-model"),
        serving.serving("no-such-model", [], None),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--url", "localhost:8000"), "http://host:port"),
        (("--url", "http://me:secret@host"), "--key-env"),
        (("--url", "http://127.0.0.1:9"), "no server answers"),
        (("--url", "http://127.0.0.1:9", "--key-env", "NOT_SET"), "NOT_SET"),
        (("--url", "http://127.0.0.1:9", "--device", "cpu"), "where it is started"),
        (("--key-env", "HOME"), "belongs to --url"),
        (("--rates", "1,fast"), "numbers above 0"),
        (("--rates", "0"), "numbers above 0"),
        (("--concurrency", "0"), "numbers above 0"),
        (("--lengths", "some"), "numbers above 0"),
        (("--drafts", "on"), "choose from 'off', 'text', 'mercury'"),
        (("--prompts-file", "none.jsonl"), "cannot read none.jsonl"),
        (("--steps", "3"), "unrecognized arguments: --steps"),
    ],
)
def test_wrong_use(words: tuple[str, ...], remedy: str, run: Callable[..., Ran]) -> None:
    """Catches a mistake that ends in a traceback, or in minutes of measuring something else."""
    code, out, err = run("serving", "nano", *words)
    assert code == 2 and out == "" and "secret" not in err
    assert remedy in err and "Traceback" not in err, err


def test_target_address() -> None:
    """Catches /v1 twice in a path."""
    for url in ("http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"):
        assert serving.base_url(url) == "http://a:1"
