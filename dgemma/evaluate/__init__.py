"""Runs the tasks on a model and reports; the README's table is this output."""
