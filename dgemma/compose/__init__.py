"""Plans that work on a canvas: fill, infill, edit, revise, repair, decide, best-of.

Each is a generator that yields `Request`s and receives their `Output`s, so that it runs beside
everything else. Knows tokenizers and plain values; knows nothing about networks or engines.
"""
