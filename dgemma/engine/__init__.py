"""Runs requests: sequences in any phase share one forward per step."""
