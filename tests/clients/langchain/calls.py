"""LangChain's chat model for OpenAI's API against a running server.

python calls.py URL KEY
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field


@tool
def get_time(city: str) -> str:
    """Time in a city"""
    return f"12:30 in {city}"


class Animal(BaseModel):
    """An animal"""

    model_config = ConfigDict(extra="forbid")
    age: int = Field(description="in years")
    tame: bool


ASK = [SystemMessage("Be short."), HumanMessage("Who are you?")]


def plain_and_streamed(llm: Any) -> None:
    """The same answer twice; a batch of two."""
    reply = llm.invoke(ASK)
    assert reply.content and reply.response_metadata["finish_reason"] in ("stop", "length"), reply
    assert reply.usage_metadata["output_tokens"] > 0
    chunks = list(llm.stream(ASK))
    assert len(chunks) > 2 and "".join(chunk.content for chunk in chunks) == reply.content
    assert [one.content for one in llm.batch([ASK, ASK])] == [reply.content] * 2


def tools(llm: Any) -> None:
    """A call that must be made, run here, and told."""
    bound = llm.bind_tools([get_time], tool_choice="required")
    reply = bound.invoke(ASK)
    [call] = reply.tool_calls
    assert call["name"] == "get_time" and isinstance(call["args"]["city"], str), reply
    streamed = None
    for chunk in bound.stream(ASK):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None and streamed.tool_calls[0]["args"] == call["args"]
    told = get_time.invoke(call)
    assert isinstance(told, ToolMessage)
    assert llm.bind_tools([get_time]).invoke([*ASK, reply, told]) is not None


def structured(llm: Any) -> None:
    """An answer as an object, by a schema and by a tool."""
    for method in ("json_schema", "function_calling"):
        found = llm.with_structured_output(Animal, method=method).invoke(ASK)
        assert isinstance(found, Animal), (method, found)
    form = llm.with_structured_output(Animal.model_json_schema(), method="json_schema", strict=True)
    assert set(form.invoke(ASK)) == {"age", "tame"}


def main() -> None:
    """Everything, in order."""
    url, key = sys.argv[1:]
    llm = ChatOpenAI(
        model="nano", base_url=f"{url}/v1", api_key=key, seed=3, max_tokens=48, max_retries=0,
        timeout=60,
    )  # fmt: skip
    for part in (plain_and_streamed, tools, structured):
        part(llm)
    print(f"langchain-openai {version('langchain-openai')}: invoke, stream, batch, bind_tools, "
          "with_structured_output")  # fmt: skip


if __name__ == "__main__":
    main()
