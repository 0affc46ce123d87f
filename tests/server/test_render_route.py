"""`/ui/render` and `/props` over HTTP, and the processes that render."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from dgemma.errors import InvalidRequest
from dgemma.params import RELEASED
from dgemma.server.apis.render.schema import MOST_CHARACTERS
from dgemma.server.auth import Keys
from dgemma.server.render import render
from dgemma.server.renderer import RenderProcesses
from tests.support import bad_renderer as bad
from tests.support.client import Recorder, serve
from tests.support.nano import nano


@pytest.mark.model
def test_a_text_is_rendered_for_whoever_may_ask() -> None:
    """Catches an answer that a proxy keeps for others, and work for people without a key."""
    client = serve(keys=Keys.of(["some-secret"]))
    key = {"x-api-key": "some-secret"}
    found = client.post("/ui/render", {"markdown": "*a* $x$"}, headers=key)
    assert found.status_code == 200 and found.json() == {"html": render("*a* $x$")}
    assert found.headers["cache-control"] == "no-store"
    assert client.post("/ui/render", {"markdown": "a"}).status_code == 401
    assert client.get("/ui/render").status_code == 404
    assert client.post("/ui/render", {"markdown": ""}, headers=key).json() == {"html": ""}


@pytest.mark.model
def test_the_log_names_the_route(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a text that is counted as a file of the page, whose paths begin alike."""
    client = serve()
    with caplog.at_level(logging.INFO, "dgemma.server"):
        client.post("/ui/render", {"markdown": "a"})
        client.get("/ui/app.css")
        client.get("/ui/nowhere.css")
        client.get("/")
    routes = [json.loads(record.message)["route"] for record in caplog.records]
    assert routes == ["/ui/render", "/ui/{name:path}", "/ui/{name:path}", "/"]


@pytest.mark.model
@pytest.mark.parametrize("body", [
    {}, {"markdown": 1}, {"markdown": None}, {"markdown": "a" * (MOST_CHARACTERS + 1)},
    {"markdown": "a", "html": True},
])  # fmt: skip
def test_what_is_not_rendered(body: dict[str, object]) -> None:
    """Catches a text without a bound, and a field that does nothing."""
    refused = serve().post("/ui/render", body)
    assert refused.status_code == 400 and "code" in refused.json()["error"]


@pytest.mark.process
def test_a_text_takes_no_more_than_its_own_process() -> None:
    """Catches a text that ends the server, or that all others wait for."""

    async def scene() -> None:
        pages = RenderProcesses("tests.support.bad_renderer", seconds=2)
        try:
            assert await pages.render("a", "*a*") == render("*a*")
            endless = asyncio.create_task(pages.render("a", bad.ENDLESS))
            for number in range(20):
                assert await pages.render("b", f"*{number}*") == render(f"*{number}*")
            assert not endless.done()
            with pytest.raises(InvalidRequest, match="markdown takes more than 2 s to render"):
                await endless
            for text, why in ((bad.ABORT, "crashes the Markdown library"), (bad.BOMB, "MB to")):
                with pytest.raises(InvalidRequest, match=why):
                    await pages.render("a", text)
            assert await pages.render("a", "*b*") == render("*b*")
        finally:
            await pages.close()

    asyncio.run(scene())


@pytest.mark.model
def test_props_tell_what_is_there() -> None:
    """Catches a page that offers what is refused, and a number that is another's."""
    llm, client = nano(), serve(names=("small", "nano"))
    props = client.get("/props").json()
    assert (props["model"], props["names"]) == ("small", ["small", "nano"])
    assert props["parameters"] == sum(p.numel() for p in llm.model.parameters())
    assert (props["device"], props["dtype"]) == (str(llm.device), "float32")
    assert props["vocabulary"] == llm.frontend.tokenizer.vocab_size
    assert props["sampler"]["restart_after"] == llm.defaults.restart_after
    assert props["sampler"]["max_steps"] == (llm.defaults.max_steps or RELEASED.max_steps)
    assert props["tokens"]["end"] == list(llm.facts.end_ids)
    control = {one["id"] for one in props["tokens"]["control"]}
    assert control == set(llm.frontend.tokenizer.special_ids)
    assert props["limits"]["context"] == llm.facts.context and props["limits"]["n"] == 16
    assert props["can"] == {
        "chat": True, "turns": False, "tools": True, "thinking": True, "images": False,
        "constrain": True, "code": False,
    }  # fmt: skip
    assert props["total_slots"] == llm.engine.scheduler.max_running
    assert props["default_generation_settings"]["n_ctx"] == llm.facts.context
    assert props["chat_template"] == llm.template.source and "/" not in props["model_path"]
    for text in props["examples"]:
        ask = {"messages": [{"role": "user", "content": text}]}
        assert client.post("/tokenize", ask).status_code == 200
    assert serve(keys=Keys.of(["some-secret"])).get("/props").status_code == 401


@pytest.mark.model
def test_props_of_a_model_without_a_template() -> None:
    """Catches a chat that is offered, and prompts that the model's own checkpoint does not name."""
    model = Recorder()
    model.frontend = type(model.frontend)(
        nano().checkpoint.path, nano().tokenizer, None, end_ids=nano().facts.end_ids, canvas=96,
        context=512,
    )  # fmt: skip
    props = serve(model, page=False).get("/props").json()
    assert not any(props["can"][name] for name in ("chat", "tools", "thinking"))
    assert props["chat_template"] == "" and not props["page"]
