"""What the local hub cache holds that could be opened, and its removal. Never the network.

A repository is one directory of the cache, models--OWNER--NAME: `blobs` has the contents,
`snapshots/COMMIT` links to them under the names of the files.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dgemma.errors import CheckpointError, ModelNotFound
from dgemma.files.read import read_json
from dgemma.model.hf_config import MODEL_TYPE
from dgemma.weights.find import CONFIG, bundled_models, hub_cache

PART = "[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
NAME = re.compile(f"({PART})/({PART})", re.ASCII)
FOLDER = re.compile(f"models--({PART})", re.ASCII)
WEIGHTS = {".gguf": "GGUF", ".safetensors": "safetensors"}
"""Ending of a file of weights -> the name of the format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A repository in the cache, or one GGUF file of it.

    Attributes:
        name: as commands take it: OWNER/NAME, or OWNER/NAME:FILE.
        files: how many.
        size: bytes on the disk; a file that two revisions share counts once.
        format: GGUF, or safetensors with the way in which its config says they are packed.
    """

    name: str
    files: int
    size: int
    format: str


def cached_models() -> list[CachedModel]:
    """Every model of the local hub cache that this engine might open, by name.

    Of safetensors those whose config names this network; a GGUF file tells its network inside.
    """
    return [model for folder in _folders() for model in _models(folder)]


def _folders() -> list[Path]:
    try:
        found = sorted(hub_cache().iterdir())
    except OSError:
        return []
    return [path for path in found if FOLDER.fullmatch(path.name) and path.is_dir()]


def _models(folder: Path) -> Iterator[CachedModel]:
    name = folder.name.removeprefix("models--").replace("--", "/", 1)
    if not NAME.fullmatch(name):
        return
    files = _snapshot_files(folder)
    config = next((path for file, path in files.items() if file == CONFIG), None)
    if config is not None and (packing := _packing(config)) is not None:
        held = [path for file, path in files.items() if not file.endswith(".gguf")]
        if any(file.endswith(".safetensors") for file in files):
            yield CachedModel(name=name, files=len(held), size=_bytes(held), format=packing)
    for file, path in files.items():
        if file.endswith(".gguf"):
            size = _bytes([path])
            yield CachedModel(name=f"{name}:{file}", files=1, size=size, format=WEIGHTS[".gguf"])


def _snapshot_files(folder: Path) -> dict[str, Path]:
    """The files of all revisions by their names; of one name the newest."""
    found: dict[str, tuple[float, Path]] = {}
    for path in sorted((folder / "snapshots").glob("*/**/*")):
        try:
            about = path.stat()  # follows the link: a blob that is gone is no file
        except OSError:
            continue
        name = path.relative_to(folder / "snapshots").as_posix().partition("/")[2]
        if path.is_file() and about.st_mtime >= found.get(name, (0.0, path))[0]:
            found[name] = about.st_mtime, path
    return {name: path for name, (_, path) in sorted(found.items())}


def _bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in {path.resolve() for path in paths})


def _packing(config: Path) -> str | None:
    """The format that a config names; None: it is not of this network, or cannot be read."""
    try:
        values = read_json(config)
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
        return None
    packed = values.get("quantization_config") or values.get("quantization")
    if not isinstance(packed, dict):
        return WEIGHTS[".safetensors"]
    method = packed.get("quant_method")
    return f"{WEIGHTS['.safetensors']}, {method if isinstance(method, str) else 'packed'}"


def cached_folder(name: str) -> Path:
    """The directory of a repository in the cache.

    Raises:
        ModelNotFound: not a hub name, or not in the cache.
        CheckpointError: the cache has a link in its place.
    """
    if name in bundled_models():
        raise ModelNotFound(f"{name} comes with dgemma and is not in the hub cache")
    match = NAME.fullmatch(name)
    if match is None or "--" in name or ".." in name:
        raise ModelNotFound(f"{name!r} is not a hub name of the form 'org/name'; see `dgemma list`")
    folder = hub_cache() / f"models--{match[1]}--{match[2]}"
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a link, and what it leads to is not of the cache")
    if not folder.is_dir():
        raise ModelNotFound(f"{name} is not in the cache: {folder} is not there")
    return folder


def folder_size(folder: Path) -> tuple[int, int]:
    """Files and bytes of a directory; links count as nothing and are not followed."""
    paths = [Path(root) / file for root, _, files in os.walk(folder) for file in files]
    sizes = [path.lstat().st_size for path in paths if not path.is_symlink()]
    return len(sizes), sum(sizes)


def remove_cached(name: str) -> Path:
    """Delete a repository from the cache with all its revisions and locks, and nothing else.

    Raises:
        ModelNotFound, CheckpointError: see `cached_folder`; or it cannot be deleted.
    """
    folder = cached_folder(name)
    locks = folder.parent / ".locks" / folder.name
    try:
        shutil.rmtree(folder)  # refuses a link at the top, follows none below
        if locks.is_dir() and not locks.is_symlink() and not locks.parent.is_symlink():
            shutil.rmtree(locks)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be deleted: {error.strerror}") from error
    return folder
