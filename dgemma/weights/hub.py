"""`pull`: a model from the hub into the local cache. The work is in `hub_download.py`.

Knows that huggingface-hub is optional (extra `[hub]`) and says how to get it; nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dgemma.errors import MissingExtra


def pull(
    name: str, revision: str | None = None, endpoint: str | None = None,
    include: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Download a model, or complete and check one that is there.

    Every file is compared with the hash that the hub has for it; a damaged one is downloaded
    again. Interrupted downloads of large files go on where they stopped.

    Args:
        name: hub name, "org/name".
        revision: branch, tag or commit; None means "main".
        endpoint: address of the hub; None: `HF_ENDPOINT`, else huggingface.co.
        include: patterns such as "*Q4_K_M*.gguf"; only files that match one are taken, of whatever
            kind and in whatever folder they are. Empty: those that a model needs.

    Returns:
        The snapshot's directory, where `find_model(name)` finds it from now on.

    Raises:
        MissingExtra: huggingface-hub is not installed.
        ModelNotFound: the hub has no such model, revision or file, or not for this user.
        CheckpointError: a download failed or a hash is wrong.
    """
    try:
        from dgemma.weights.hub_download import download
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("huggingface_hub", "httpx"):
            raise
        raise MissingExtra(
            "downloading needs huggingface-hub: pip install 'dgemma[hub]'"
        ) from error
    return download(name, revision, endpoint, include)
