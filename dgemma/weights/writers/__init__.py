"""Writes the weights of a checkpoint in other formats, a matrix at a time."""
