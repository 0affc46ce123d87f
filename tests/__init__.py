"""A package, so that `tests.fakes` is ours and not that of some other installed `tests`."""
