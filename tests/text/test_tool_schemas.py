"""What a template drops of a tool's schema is put where it shows it; the rest stays as it is."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.tasks.tool_calls import TOOLS, declaration
from dgemma.text.chat import ChatTemplate
from dgemma.text.messages import clean_tools
from dgemma.text.tokenizer import Tokenizer
from dgemma.text.tool_schemas import LONGEST, MOST_EXPANDED, shown_tools

USER = [{"role": "user", "content": "x"}]


def tool(parameter: Any, **more: Any) -> dict[str, Any]:
    """A tool whose only parameter has this schema."""
    parameters = {"type": "object", "properties": {"mode": parameter}, **more}
    return {"function": {"name": "heat_kettle", "description": "Heats.", "parameters": parameters}}


def shown(parameter: Any, **more: Any) -> Any:
    """The parameter's schema as templates get it."""
    given = clean_tools([tool(parameter, **more)])
    assert given is not None
    before = copy.deepcopy(given)
    [found] = shown_tools(given)
    assert given == before, "the grammar of a call is made of the same values"
    return found["function"]["parameters"]["properties"]["mode"]


DEFS = {"$defs": {"Mode": {"type": "string", "enum": ["soft", "hard"], "description": "How."},
                  "Node": {"type": "object", "properties": {
                      "next": {"$ref": "#/$defs/Node"}, "n": {"type": "integer", "minimum": 0}}}},
        }  # fmt: skip
SOFT = {"type": "string", "enum": ["soft", "hard"]}


@pytest.mark.fault("P D10")
@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"$ref": "#/$defs/Mode"}, {**SOFT, "description": "How."}),
        ({"$ref": "#/$defs/Mode", "description": "Own."}, {**SOFT, "description": "Own."}),
        ({"allOf": [{"$ref": "#/$defs/Mode"}], "title": "M"},
         {**SOFT, "description": "How.", "title": "M"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "string", "nullable": True}),
        ({"type": ["integer", "null"]}, {"type": "integer", "nullable": True}),
        ({"const": "soft"}, {"type": "string", "enum": ["soft"]}),
        ({"oneOf": [{"const": "soft"}, {"const": "hard", "title": "H"}]}, SOFT),
        ({"enum": ["soft", "hard"]}, SOFT),
        ({"enum": ["soft", None]}, {"type": "string", "enum": ["soft"], "nullable": True}),
        ({"type": "STRING", "enum": ["x"]}, {"type": "STRING", "enum": ["x"]}),
        ({"properties": {"a": SOFT}}, {"type": "object", "properties": {"a": SOFT}}),
        ({"type": "object"}, {"type": "object", "properties": {}}),
        ({"type": "array", "items": {"$ref": "#/$defs/Mode"}},
         {"type": "array", "items": {**SOFT, "description": "How."}}),
        ({"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/Mode"}, {"type": "integer"}]}},
         {"type": "array", "items": {"anyOf": [{**SOFT, "description": "How."},
                                               {"type": "integer"}]}}),
    ],
)  # fmt: skip
def test_what_can_be_shown(schema: Any, wanted: Any) -> None:
    """Catches choices and types that the model is never told of."""
    assert shown(schema, **DEFS) == wanted


@pytest.mark.fault("P D10")
@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"anyOf": [SOFT, {"type": "integer"}]}, 'one of "soft", "hard", or an integer'),
        ({"type": "integer", "minimum": 0, "maximum": 5, "default": 2},
         "at least 0; at most 5; default 2"),
        ({"type": "string", "pattern": "^a+$", "minLength": 2, "format": "date"},
         "matches ^a+$; format date; at least 2 character(s)"),
        ({"type": "integer", "enum": [1, 2]}, "one of 1, 2"),
        ({"type": "object", "additionalProperties": {"type": "integer", "exclusiveMinimum": 0}},
         "values of other keys: an integer, above 0"),
        ({"type": "array", "prefixItems": [{"type": "string"}, SOFT], "maxItems": 2},
         'its items begin with a string, one of "soft", "hard"; at most 2 item(s)'),
        ({"type": "string", "not": {"const": "x"}}, 'not "x"'),
        ({"oneOf": [{"type": "object", "properties": {"kind": {"const": "tea"},
                                                      "n": {"type": "integer"}}},
                    {"type": "array", "items": {"type": "number"}}]},
         'an object with kind ("tea"), n (an integer), or a list; each item a number'),
        ({"$ref": "https://example.org/x"}, "as x"),
        ({"$ref": "#/$defs/Nowhere"}, "as Nowhere"),
    ],
)  # fmt: skip
def test_what_can_only_be_said(schema: Any, said: str) -> None:
    """Catches bounds and branches that the model is never told of."""
    assert shown(schema, **DEFS)["description"] == said
    if "$ref" not in schema:
        described = shown({**schema, "description": "How."}, **DEFS)["description"]
        assert described == f"How. ({said})"


def test_the_schema_as_a_whole_is_said_of_the_function() -> None:
    """Catches bounds on the arguments as a whole that nobody is told of."""
    given = clean_tools([tool(SOFT, minProperties=1)])
    assert given is not None
    function = shown_tools(given)[0]["function"]
    assert function["description"] == "Heats. (at least 1 key(s))"


def test_a_schema_that_refers_to_itself() -> None:
    """Catches a recursion without end."""
    node = shown({"$ref": "#/$defs/Node"}, **DEFS)
    assert node["properties"]["next"] == {
        "type": "object", "description": "as Node", "properties": {},
    }  # fmt: skip
    assert node["properties"]["n"] == {
        "type": "integer", "minimum": 0, "description": "at least 0",
    }  # fmt: skip
    assert shown({"$ref": "#"}) == {"type": "object", "description": "as #", "properties": {}}
    ring = {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}
    assert shown({"$ref": "#/$defs/A"}, **ring)["description"] == "as A"


@pytest.mark.parametrize("form", ["properties", "anyOf", "items"])
def test_references_do_not_multiply(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a schema of a few lines that becomes a prompt of gigabytes: what is shown is
    bounded, and the log says so once."""
    defs: dict[str, Any] = {"D0": {"type": "string", "enum": ["x" * 50]}}
    for level in range(1, 40):
        ref = {"$ref": f"#/$defs/D{level - 1}"}
        defs[f"D{level}"] = {
            "properties": {"properties": {"a": ref, "b": ref}},
            "anyOf": {"anyOf": [ref, {"type": "array", "items": ref}]},
            "items": {"items": {"type": "object", "properties": {"a": ref, "b": ref}}},
        }[form]
    name = f"bomb_{form}"
    bomb = tool({"$ref": "#/$defs/D39"}, **{"$defs": defs})
    bomb["function"]["name"] = name
    with caplog.at_level("WARNING", logger="dgemma"):
        for _ in range(2):
            found = shown_tools(clean_tools([bomb]) or [])
    parameters = found[0]["function"]["parameters"]
    size = len(json.dumps(parameters["properties"]))
    assert size < 4 * MOST_EXPANDED
    assert len(caplog.messages) == 1 and "x" * 50 not in caplog.text


def test_long_words_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a description that is longer than the tool."""
    many = {"anyOf": [{"type": "integer", "minimum": n} for n in range(200)], "description": "D"}
    given = tool(many)
    given["function"]["name"] = "many"
    with caplog.at_level("WARNING", logger="dgemma"):
        [found] = shown_tools(clean_tools([given]) or [])
    description = found["function"]["parameters"]["properties"]["mode"]["description"]
    assert description == "D" and len(caplog.messages) == 1
    assert len(shown({"anyOf": [SOFT, *many["anyOf"][:9]]})["description"]) < LONGEST


@pytest.mark.parametrize("name", list(TOOLS))
def test_a_tool_that_is_shown_whole_stays(name: str) -> None:
    """Catches a prompt that changes although nothing was missing in it."""
    given = clean_tools([declaration(name)])
    assert given is not None and shown_tools(given) == given


@pytest.mark.fault("P D10")
def test_both_templates_show_it(
    nano_template: ChatTemplate, gemma_template: ChatTemplate, nano: Tokenizer, gemma: Tokenizer
) -> None:
    """The prompt itself, of the bundled template and of Gemma 4's."""
    union = tool({"anyOf": [SOFT, {"type": "integer"}]})
    for template, tokenizer in ((nano_template, nano), (gemma_template, gemma)):

        def prompt(given: Any, template: ChatTemplate = template, by: Tokenizer = tokenizer) -> str:
            return by.decode(template.encode(USER, tools=[given]), control=True)

        assert 'description:<|"|>one of "soft", "hard", or an integer<|"|>' in prompt(union)
        plain, referred = prompt(tool(SOFT)), prompt(tool({"$ref": "#/$defs/M"}, **{
            "$defs": {"M": SOFT}}))  # fmt: skip
        assert plain == referred and 'enum:[<|"|>soft<|"|>,<|"|>hard<|"|>]' in plain


def test_a_template_that_writes_whole_schemas_gets_them(nano: Tokenizer) -> None:
    """Catches words beside the very keywords that they repeat."""
    template = ChatTemplate("{{ tools | tojson }}", nano)
    given = tool({"type": "integer", "minimum": 1})
    text = nano.decode(template.encode(USER, tools=[given]), control=True)
    assert "at least" not in text and '"minimum": 1' in text


NAMES = ["a", "b"]
schemas = st.recursive(
    st.sampled_from([
        {}, True, False, {"type": "string"}, {"type": ["null", "string"]}, {"enum": [1, "a", None]},
        {"const": None}, {"$ref": "#"}, {"$ref": "#/properties/a"}, {"$ref": "#/anyOf/0"},
        {"$ref": "%"}, {"type": 5}, {"anyOf": 3}, {"properties": []}, {"items": True},
        {"minimum": 0}, {"enum": []},
    ]),
    lambda inner: st.fixed_dictionaries({}, optional={
        "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
        "anyOf": st.lists(inner, max_size=2), "oneOf": st.lists(inner, max_size=2),
        "allOf": st.lists(inner, max_size=2), "items": inner, "additionalProperties": inner,
        "not": inner, "prefixItems": st.lists(inner, max_size=2), "patternProperties":
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=1),
        "type": st.sampled_from(["object", "array", ["null", "object"]]),
    }),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(schemas)
def test_any_schema_can_be_shown(schema: Any) -> None:
    """Catches a traceback at a schema of an odd form, which another part refuses by name.

    No false alarms: it holds for all JSON values.
    """
    for parameters in (schema, {"type": "object", "properties": {"a": schema}}):
        if isinstance(parameters, dict):
            given = clean_tools([{"function": {"name": "f", "parameters": parameters}}])
            assert len(json.dumps(shown_tools(given or []))) < 4 * MOST_EXPANDED
