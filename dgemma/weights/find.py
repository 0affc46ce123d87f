"""Finds the directory of a model by its name, without the network and without torch.

A name is a bundled model ("nano"), a directory, or a hub name ("org/name") in the local hub cache.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from dgemma.errors import ModelNotFound, nearest
from dgemma.files.read import read_text

CONFIG = "config.json"
MOST_REF_BYTES = 1024
"""Of the file that says which commit a revision is."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"

Origin = Literal["bundled", "directory", "hub cache"]


def hub_cache() -> Path:
    """The local hub cache, found as huggingface-hub does."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(name):
            return Path(os.path.expanduser(os.path.expandvars(value)))
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    return Path(os.path.expanduser(os.path.expandvars(home))) / "hub"


def bundled_models() -> dict[str, Path]:
    """Name and directory of every model inside the package."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob(f"*/{CONFIG}"))}


def find_model(name: str | Path, revision: str | None = None) -> tuple[Path, Origin]:
    """The directory of a model, and how it was found.

    Args:
        name: a bundled name, a directory, or a hub name in the local cache, tried in this order.
        revision: branch, tag or commit of a hub name; None means "main".

    Raises:
        ModelNotFound: none of the three; the message says what was looked for where.
    """
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)], "bundled"
    directory = Path(os.path.expanduser(name))
    if str(name) and os.path.isdir(
        directory
    ):  # unlike Path.is_dir, also for names no file could have
        return directory, "directory"
    looked = [
        f"bundled models: {', '.join(bundled) or 'none'}{nearest(str(name), bundled)}",
        f"directory: {directory.absolute()} is not there",
    ]
    remedy = "Give a directory or a hub name of the form 'org/name'"
    if _is_hub_name(str(name)):
        snapshot, reason = _cached_snapshot(str(name), revision or "main")
        if snapshot is not None:
            return snapshot, "hub cache"
        looked.append(f"hub cache: {reason}")
        remedy = f"Download it with `dgemma pull {name}`"
    lines = "\n  ".join(looked)
    raise ModelNotFound(f"no model named {str(name)!r}. Looked for it among\n  {lines}\n{remedy}.")


def _is_hub_name(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner.strip(".~") and model) and "/" not in model and "\\" not in name


def _cached_snapshot(name: str, revision: str) -> tuple[Path | None, str]:
    """The snapshot of a hub name in the cache, or None and what is not there."""
    root = hub_cache() / f"models--{name.replace('/', '--')}"
    if not os.path.isdir(root):
        return None, f"{root} is not there"
    ref = root / "refs" / revision
    commit = revision
    if os.path.isfile(ref):
        try:
            commit = read_text(ref, MOST_REF_BYTES).strip()
        except (OSError, ValueError):
            return None, f"{ref} cannot be read"
    snapshot = root / "snapshots" / commit
    if snapshot.parent.name != "snapshots" or not os.path.isfile(snapshot / CONFIG):
        return None, f"{root} has no complete snapshot of revision {revision!r}"
    return snapshot, ""
