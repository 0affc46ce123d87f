"""Typed questions answered by probabilities: schema, route, reply."""
