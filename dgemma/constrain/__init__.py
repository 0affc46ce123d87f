"""Constrained decoding: from a schema, expression, grammar or tools to a walk over token ids."""
