"""Runs requests: rows in any phase, one forward per step."""
