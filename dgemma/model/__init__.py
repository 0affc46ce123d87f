"""The network and nothing else: sizes, layers, attention, cache, forward."""
