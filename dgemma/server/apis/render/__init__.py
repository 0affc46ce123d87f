"""Markdown to safe HTML: schema, route."""
