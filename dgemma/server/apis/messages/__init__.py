"""Anthropic's API: schema, route, reply."""
