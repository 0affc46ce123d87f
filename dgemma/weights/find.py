"""Finds a model by its name, without the network and without torch.

A name is a bundled model ("nano"), a directory, a GGUF file, or a hub name ("org/name", or
"org/name:file.gguf") in the local hub cache. What is found is a directory with a config.json, or
a GGUF file: of several splits the first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from dgemma.errors import ModelNotFound, nearest
from dgemma.files.gguf import SPLIT, GgufError, is_gguf, split_files
from dgemma.files.read import read_text

CONFIG = "config.json"
MOST_REF_BYTES = 1024
"""Of the file that says which commit a revision is."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"

GGUF = ".gguf"
VISION = "mmproj"
"""How the names of GGUF files begin that hold only the vision part."""

Origin = Literal["bundled", "directory", "file", "hub cache"]


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
    """The directory or GGUF file of a model, and how it was found.

    Args:
        name: a bundled name, a directory, a file, or a hub name in the local cache, tried in this
            order.
        revision: branch, tag or commit of a hub name; None means "main".

    Raises:
        ModelNotFound: none of these; the message says what was looked for where. Or a directory
            with several GGUF files, or a set of them that is not whole.
    """
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)], "bundled"
    path = Path(os.path.expanduser(name))
    # Unlike those of Path, these take names that no file could have.
    if str(name) and os.path.isdir(path):
        return _within(path, str(name)), "directory"
    if str(name) and os.path.isfile(path):
        if not is_gguf(path):
            raise ModelNotFound(f"{name} is a file; name its directory, {path.absolute().parent}")
        return _first(path), "file"
    looked = [
        f"bundled models: {', '.join(bundled) or 'none'}{nearest(str(name), bundled)}",
        f"directory or file: {path.absolute()} is not there",
    ]
    remedy = "Give a directory, a GGUF file or a hub name of the form 'org/name'"
    hub_name, colon, file = str(name).partition(":")
    if _is_hub_name(hub_name):
        snapshot, reason = _cached_snapshot(hub_name, revision or "main")
        found = snapshot if snapshot is None or not colon else _file(snapshot, file)
        if found is not None:
            return _within(found, str(name)), "hub cache"
        if snapshot is not None:
            reason = f"{snapshot} has no file {file!r}{_listed(snapshot)}"
        looked.append(f"hub cache: {reason}")
        remedy = f"Download it with `dgemma pull {hub_name}`"
        if colon:
            remedy = f"Download it with `hf download {hub_name} {file}`"
    lines = "\n  ".join(looked)
    raise ModelNotFound(f"no model named {str(name)!r}. Looked for it among\n  {lines}\n{remedy}.")


def _within(path: Path, name: str) -> Path:
    """The one GGUF file of a directory that has no other weights; else the path as it is.

    Raises:
        ModelNotFound: it has several.
    """
    if os.path.isfile(path):
        return _first(path)
    if next(path.glob("*.safetensors*"), None) is not None:
        return path
    found = _gguf_files(path)
    if len(found) > 1:
        parted = f"{name}:FILE" if not os.path.isdir(name) else str(path / "FILE")
        raise ModelNotFound(f"{path} holds several models{_listed(path)}. Name one: {parted}")
    return _first(found[0]) if found else path


def _gguf_files(directory: Path) -> list[Path]:
    """The GGUF files of a directory, else of its folders; of each set of splits one."""
    for places in ("*", "*/*"):
        found = sorted(path for path in directory.glob(places) if path.suffix.lower() == GGUF)
        models = [path for path in found if not path.name.lower().startswith(VISION)]
        if models:
            return list({SPLIT.sub("", str(path)): path for path in reversed(models)}.values())[
                ::-1
            ]
    return []


def _listed(directory: Path, most: int = 30) -> str:
    """The GGUF files of a directory, for a message."""
    names = [path.relative_to(directory).as_posix() for path in _gguf_files(directory)]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ": " + ", ".join(names[:most] + more) if names else ""


def _first(path: Path) -> Path:
    """The first of the splits of a GGUF file, or the file itself.

    Raises:
        ModelNotFound: a split is missing.
    """
    try:
        return split_files(path)[0]
    except GgufError as error:
        raise ModelNotFound(str(error)) from error


def _file(snapshot: Path, name: str) -> Path | None:
    """A file of a snapshot; None if it has no such file."""
    inside = snapshot / name
    plain = bool(name) and ".." not in inside.parts and snapshot in inside.parents
    return inside if plain and os.path.isfile(inside) else None


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
    inside = snapshot.parent.name == "snapshots"
    if not inside or not (os.path.isfile(snapshot / CONFIG) or _gguf_files(snapshot)):
        return None, f"{root} has no complete snapshot of revision {revision!r}"
    return snapshot, ""
