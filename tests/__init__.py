"""A package, so that `tests.support.fakes` is ours and not that of some other installed `tests`."""
