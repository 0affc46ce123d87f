"""Downloads a model into the local hub cache: only the files needed, resumed, every hash checked.

huggingface-hub answers for names, revisions, log-in and the layout of the cache. Large files are
fetched here, with its own `http_get`, because its download of a whole file (1.33) starts afresh
after an interruption. Knows nothing about what is inside the files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

import httpx
from filelock import FileLock
from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from dgemma.errors import CheckpointError, ModelNotFound
from dgemma.weights.find import CONFIG, hub_cache

logger = logging.getLogger("dgemma")

ENDINGS = (".safetensors", ".json", ".jinja", ".md", ".model", ".txt")
BEGINNINGS = ("tokenizer", "LICENSE", "NOTICE")
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
SAFE = re.compile(r"[^\\\x00-\x1f]+")
MOST_SHOWN = 20
"""File names in an error."""
READ_BYTES = 1 << 22
"""Bytes hashed at a time."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: file name, with the folders that it is in.
        digest: sha256 of a large file, sha1 of a small one's git blob; its name in the cache.
        size: bytes.
        large: whether it is an LFS file.
    """

    name: str
    digest: str
    size: int
    large: bool


def download(
    name: str, revision: str | None, endpoint: str | None, include: Sequence[str] = ()
) -> Path:
    """See `hub.pull`."""
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    cache = hub_cache()
    with _translated(name, revision, endpoint):
        commit, files = _listing(name, revision, endpoint, include)
        if not include and CONFIG not in (file.name for file in files):
            raise ModelNotFound(f"{name} at {endpoint} has no {CONFIG}: there is no model to load")
        folder = repo_folder_name(repo_id=name, repo_type="model")
        blobs, locks = cache / folder / "blobs", cache / ".locks" / folder
        for path in (blobs, locks):
            path.mkdir(parents=True, exist_ok=True)
        for file in files:
            with FileLock(locks / f"{file.digest}.lock"):  # the one that the client takes, too
                _complete(name, commit, endpoint, file, blobs / file.digest)
        # The small files, the links to the blobs, and the note of what the revision means.
        found = snapshot_download(
            name,
            revision=revision,
            endpoint=endpoint,
            cache_dir=cache,
            allow_patterns=[escape(file.name) for file in files],
        )
    snapshot = Path(found)
    if snapshot.name != commit:
        raise CheckpointError(f"{name} changed at {endpoint} during the download; pull again")
    for file in files:
        if not file.large and _digest(snapshot / file.name, file) != file.digest:
            (snapshot / file.name).resolve().unlink(missing_ok=True)
            (snapshot / file.name).unlink(missing_ok=True)
            raise _wrong_hash(file, endpoint)
    logger.info("%s: %d files checked in %s", name, len(files), snapshot)
    return snapshot


def _wanted(file: str, include: Sequence[str]) -> bool:
    """Whether a file is taken: those that match, or those that a model needs."""
    if include:
        return any(fnmatchcase(file, pattern) for pattern in include)
    return "/" not in file and (file.endswith(ENDINGS) or file.startswith(BEGINNINGS))


def _listing(
    name: str, revision: str | None, endpoint: str, include: Sequence[str]
) -> tuple[str, list[RemoteFile]]:
    """The commit of a revision, and those of its files that are wanted."""
    info = HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True)
    there = [found.rfilename for found in info.siblings or ()]
    for pattern in include:
        if not any(fnmatchcase(file, pattern) for file in there):
            shown = ", ".join(there[:MOST_SHOWN]) + ", ..." * (len(there) > MOST_SHOWN)
            raise ModelNotFound(f"no file of {name} matches {pattern!r}; it has {shown}")
    files = []
    for found in info.siblings or ():
        file = found.rfilename
        if not _wanted(file, include):
            continue
        if not SAFE.fullmatch(file) or {"", ".", ".."} & set(file.split("/")):
            raise CheckpointError(f"{endpoint} has a file named {file!r}, which is not downloaded")
        if found.lfs is not None:
            files.append(RemoteFile(file, found.lfs.sha256, found.lfs.size, True))
        else:
            files.append(RemoteFile(file, found.blob_id or "", found.size or 0, False))
        if not HASH.fullmatch(files[-1].digest):  # it becomes the name of a file
            raise CheckpointError(
                f"{endpoint} gives no usable hash of {file}, so that it could not be checked; pull "
                "from another address"
            )
    return info.sha or "", files


def _complete(name: str, commit: str, endpoint: str, file: RemoteFile, blob: Path) -> None:
    """Remove a damaged blob; fetch a large one that is not there, going on from a part of it."""
    if blob.exists() and _digest(blob, file) != file.digest:
        logger.warning("%s in the cache is damaged; it is downloaded again", file.name)
        blob.unlink()
    if not file.large or blob.exists():
        return
    part = blob.with_name(f"{blob.name}.dgemma-part")
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as target:
        have = target.tell()
        if have:
            logger.info("%s: going on from %d of %d bytes", file.name, have, file.size)
        http_get(
            hf_hub_url(name, file.name, revision=commit, endpoint=endpoint),
            target,
            resume_size=have,
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.name,
        )
    if _digest(part, file) != file.digest:
        part.unlink()
        raise _wrong_hash(file, endpoint)
    part.replace(blob)


def _digest(path: Path, file: RemoteFile) -> str:
    """The hash of a local file in the hub's way for this kind of file."""
    digest = hashlib.sha256()
    if not file.large:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _wrong_hash(file: RemoteFile, endpoint: str) -> CheckpointError:
    return CheckpointError(
        f"{file.name} from {endpoint} has a wrong hash (wanted {file.digest}); what was downloaded "
        "is deleted: pull again, and if it comes back, do not trust the source"
    )


@contextmanager
def _translated(name: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Errors of the client as our own, each with a remedy."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{name} is gated: accept its terms at {endpoint}/{name}, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{endpoint} has no model {name!r}, or it is private: check the name, or log in with "
            "`hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{name} at {endpoint} has no revision {revision!r}") from error
    except HFValidationError as error:
        raise ModelNotFound(
            f"{name!r} is not a hub name of the form 'org/name': {error}"
        ) from error
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise CheckpointError(
            f"downloading {name} from {endpoint} failed: {error}. Is this machine offline? nano, "
            "directories and models in the cache need no network. What has arrived is kept: pull "
            "again to go on from there"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise CheckpointError(
            f"downloading {name} from {endpoint} failed: {error}. What has arrived is kept: pull "
            "again to go on from there"
        ) from error
