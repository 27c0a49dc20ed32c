"""Models of the Hugging Face Hub: found in its cache, fetched when they are not there.

    python -m aiosd.hub find hf:OWNER/NAME[@REVISION][:FILE]    # and fetch, unless HF_HUB_OFFLINE
    python -m aiosd.hub list
    python -m aiosd.hub remove hf:OWNER/NAME[:FILE]

A program of its own, since huggingface_hub waits for the network; models.py runs it. It prints one
JSON value, {"errno": N, "message": "..."} for a failure, and says on stderr what it fetches.

FILE is a file of the repository, or a part of its name such as Q4_K_M. Without it: the only GGUF
file there is, or the one of Q4_K_M.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiosd.child import die_with_parent
from aiosd.modelfile import HUB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

USUAL: Final = "Q4_K_M"
_REFERENCE: Final = re.compile(
    r"hf:(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,128}))?(:(?P<file>[^:]{1,256}))?"
)
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model of the hub. revision "": the main one; file "": the usual one."""

    repo: str
    revision: str
    file: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; raises OSError(EINVAL) that says how one is written."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            how = (
                "write it as hf:OWNER/NAME, hf:OWNER/NAME:Q8_0 or hf:OWNER/NAME@REVISION:FILE.gguf"
            )
            raise OSError(errno.EINVAL, f"model {text}: {how}")
        return cls(found["repo"], found["revision"] or "", found["file"] or "")

    def choose(self, files: Iterable[str]) -> list[str]:
        """Return the file of the repository that is meant, or the parts of it, in order.

        Raises OSError(ENOENT) with those there are when it is none, or not clear which.
        """
        models = sorted(name for name in files if name.endswith(".gguf"))
        firsts = [name for name in models if not (p := _PART.search(name)) or int(p[1]) == 1]
        found = self._among(firsts)
        if len(found) != 1:
            known = ", ".join(firsts[:20]) or "none"
            what = f"{len(found)} files match" if found else "no file matches"
            raise FileNotFoundError(
                errno.ENOENT,
                f"model hf:{self.repo}: {what} {self.file or USUAL!r}; its GGUF files: {known}",
            )
        part = _PART.search(found[0])
        stem = found[0][: part.start()] if part else ""
        return [name for name in models if name.startswith(f"{stem}-")] if part else found

    def _among(self, names: list[str]) -> list[str]:
        if not self.file and len(names) == 1:
            return names
        word = (self.file or USUAL).lower()
        exact = [name for name in names if name.lower() == word]
        return exact or [name for name in names if word in name.rpartition("/")[2].lower()]


def find(text: str) -> str:
    """Return the path of a model's file, fetching it when it is not in the cache."""
    reference = Reference.parse(text)
    try:
        return cached(reference)
    except FileNotFoundError as error:
        if _offline():
            raise FileNotFoundError(
                errno.ENOENT, f"{error.strerror} in the cache, and HF_HUB_OFFLINE is set"
            ) from None
    return _fetch(reference)


def cached(reference: Reference) -> str:
    """Return the path of a file that is in the cache whole; raises FileNotFoundError."""
    for revision in _revisions(reference):
        files = {_name(revision, file): file for file in revision.files}
        try:
            return str(files[reference.choose(files)[0]].file_path)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(
        errno.ENOENT, f"model hf:{reference.repo}: no file {reference.file or USUAL!r} of it is"
    )


def list_() -> list[dict[str, Any]]:
    """Return the GGUF files in the cache: reference, path, bytes, and when each was last read."""
    return [
        {
            "name": f"{HUB}{repo.repo_id}:{_name(revision, file)}",
            "path": str(file.file_path),
            "bytes": file.size_on_disk,
            "used": file.blob_last_accessed,
        }
        for repo in sorted(_cache().repos, key=lambda repo: repo.repo_id)
        for revision in sorted(repo.revisions, key=lambda revision: -revision.last_modified)[:1]
        for file in sorted(revision.files, key=lambda file: str(file.file_path))
        if file.file_name.endswith(".gguf")
    ]


def remove(text: str) -> int:
    """Delete a model's file from the cache, or with no FILE all of its repository; bytes freed."""
    reference = Reference.parse(text)
    cache = _cache()
    revisions = list(_revisions(reference))
    if not revisions:
        raise FileNotFoundError(errno.ENOENT, f"model hf:{reference.repo}: it is not in the cache")
    if not reference.file:
        plan = cache.delete_revisions(*(revision.commit_hash for revision in revisions))
        plan.execute()
        return int(plan.expected_freed_size)
    files = [
        file
        for revision in revisions
        if (names := {_name(revision, file): file for file in revision.files})
        for name, file in names.items()
        if name in reference.choose(names)
    ]
    plan = cache.delete_files(*files)
    plan.execute()
    return int(plan.expected_freed_size)


def _fetch(reference: Reference) -> str:
    """Download a model; raises OSError that says why it can't be had."""
    import huggingface_hub
    from huggingface_hub import errors

    revision = reference.revision or None
    try:
        names = huggingface_hub.HfApi().list_repo_files(reference.repo, revision=revision)
        paths = []
        for name in reference.choose(names):
            print(f"fetching {reference.repo} {name}", file=sys.stderr, flush=True)  # noqa: T201
            paths.append(huggingface_hub.hf_hub_download(reference.repo, name, revision=revision))
        return paths[0]
    except errors.GatedRepoError:
        cure = "accept its terms on the hub, and set HF_TOKEN for the daemon"
        raise PermissionError(errno.EACCES, f"model hf:{reference.repo}: {cure}") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        text = f"model hf:{reference.repo}: there is no such repository or revision, or HF_TOKEN "
        raise FileNotFoundError(errno.ENOENT, text + "may not read it") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.errno == errno.ENOENT:
            raise
        raise OSError(errno.EHOSTUNREACH, _unreachable(reference, error)) from error
    except Exception as error:  # the library's transport has exceptions of its own
        raise OSError(errno.EHOSTUNREACH, _unreachable(reference, error)) from error


def _unreachable(reference: Reference, error: Exception) -> str:
    why = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"model hf:{reference.repo}: it is not in the cache and can't be fetched: {why}; "
        "try again, or name a GGUF file by its path"
    )


def _revisions(reference: Reference) -> Iterator[Any]:
    """Give the cached revisions that are meant: the named one, else main, then the others."""
    for repo in _cache().repos:
        if repo.repo_type != "model" or repo.repo_id != reference.repo:
            continue
        wanted = reference.revision
        newest = sorted(repo.revisions, key=lambda r: ("main" not in r.refs, -r.last_modified))
        for revision in newest:
            if not wanted or wanted in revision.refs or revision.commit_hash.startswith(wanted):
                yield revision


def _cache() -> Any:
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        return huggingface_hub.scan_cache_dir()
    except CacheNotFound:
        nothing: frozenset[Any] = frozenset()
        return huggingface_hub.HFCacheInfo(0, nothing, nothing, [])


def _name(revision: Any, file: Any) -> str:
    """Return a cached file's name in its repository."""
    return str(Path(file.file_path).relative_to(revision.snapshot_path))


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def main() -> int:
    """Do what the command line says; return the exit status."""
    die_with_parent()
    command, *rest = sys.argv[1:] or ["list"]
    try:
        answer: Any = (
            list_() if command == "list" else {"find": find, "remove": remove}[command](*rest)
        )
    except ModuleNotFoundError as error:
        cure = "pip install 'aios[hub]' for models of the Hugging Face Hub"
        answer = {"errno": errno.ENOSYS, "message": f"{error.name} is not installed: {cure}"}
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO, "message": error.strerror or str(error)}
    print(json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
