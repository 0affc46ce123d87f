"""The keywords of JSON schemas that say nothing, and what to do instead of those not supported.

Source: JSON Schema Draft 2020-12 and its predecessors to draft 4; OpenAPI 3.1.
"""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
NOTES = {
    "$comment", "title", "description", "default", "examples", "example", "deprecated", "readOnly",
    "writeOnly", "contentMediaType", "contentEncoding", "$anchor", "strict",
    # of OpenAPI; beside oneOf, whose branches are proved disjoint, a discriminator adds nothing
    "discriminator", "externalDocs", "xml",
    # of editors
    "markdownDescription", "enumDescriptions", "markdownEnumDescriptions", "deprecationMessage",
    "errorMessage", "patternErrorMessage", "defaultSnippets", "doNotSuggest", "enumNames",
}  # fmt: skip
"""Keywords that say nothing about what is valid."""
DRAFT_4 = "draft-04/"
DIALECTS = ("draft/2020-12/", "draft/2019-09/", "draft-07/", "draft-06/", DRAFT_4)
REMEDIES = {
    "not": "name what is allowed instead, with enum or anyOf",
    **dict.fromkeys(("if", "then", "else"), "use anyOf with a const in each branch"),
    "uniqueItems": "leave it out and check the list yourself",
    "contains": "use prefixItems, or check the list yourself",
    "propertyNames": "use patternProperties with additionalProperties false",
    "dependentRequired": "use anyOf with required in each branch",
    **dict.fromkeys(("dependentSchemas", "dependencies"), "use anyOf"),
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), "use $ref"),
    "$id": "use references of the form #/$defs/name",
    "x-guidance": "leave it out",
    "additionalItems": "use items after prefixItems",
}
