"""Weight files from the Hugging Face Hub, pinned: which repository, which revision, which bytes."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import re
from typing import NamedTuple

from launch import flags
from perturb.types import Record

__all__ = ["Fetched", "fetch", "local", "source"]

_FORM = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@]+))?(:(?P<file>[^:@]+))?")


class Fetched(NamedTuple):
    """A weight file in the local cache.

    Attributes:
      path: of the file.
      source: for records: `repo`, `file`, `revision` (the commit, whatever branch was asked for)
        and `sha256` of the file.
    """

    path: str
    source: Record


@functools.cache
def fetch(weights: str) -> Fetched:
    """Returns the file that `hf:OWNER/NAME[@REVISION][:FILE]` names, from the cache or the network.

    Args:
      weights: FILE is `model.safetensors` if not given, REVISION (a branch, tag or commit) `main`.
    Raises:
      ValueError: one line: the form is wrong, `huggingface_hub` is missing, the Hub has no such
        file, or it cannot be reached and the cache does not have it.
    """
    parts = _FORM.fullmatch(weights)
    if parts is None:
        raise ValueError(f"--weights={weights}: expected hf:OWNER/NAME[@REVISION][:FILE]")
    repo, revision = parts["repo"], parts["revision"]
    name = parts["file"] or "model.safetensors"
    # Other formats from the network may be programs.
    if not name.endswith(".safetensors"):
        raise ValueError(
            f"--weights={weights}: {name} is no .safetensors file, nothing else is read"
        )
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ValueError(
            f"--weights={weights} needs huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        path = pathlib.Path(hub.hf_hub_download(repo, name, revision=revision))
    except hub.errors.LocalEntryNotFoundError as error:
        raise ValueError(
            f"--weights={weights}: the Hub cannot be reached and the local cache has no such file; "
            f"where there is a network: hf download {repo} {name}"
            + (f" --revision {revision}" if revision else "")
        ) from error
    except (hub.errors.HfHubHTTPError, hub.errors.EntryNotFoundError, OSError) as error:
        raise ValueError(f"--weights={weights}: {flags.one_line(error)}") from error
    # The cache keeps a file under snapshots/COMMIT, whatever branch led there.
    folders = path.parts
    commit = folders[folders.index("snapshots") + 1] if "snapshots" in folders else revision
    with path.open("rb") as file:
        # Recorded beside the commit: the bytes are what a result depends on.
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fetched(str(path), {"repo": repo, "file": name, "revision": commit, "sha256": digest})


def local(weights: str | None) -> str | None:
    """Returns the path of a weight file that may be on the Hub; others as they are given."""
    return fetch(weights).path if weights and weights.startswith("hf:") else weights


def source(weights: str | None) -> Record | None:
    """Returns what is recorded of a weight file from the Hub, see `Fetched`; None for others."""
    return fetch(weights).source if weights and weights.startswith("hf:") else None
