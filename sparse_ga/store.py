"""Artifact store: one file per artifact, named by the hash of everything that went into it.

A file appears under its name only when it is complete (temporary name, sync, rename), carries a checksum over every
byte, and is verified whenever it is read; a damaged one counts as missing. Several processes may share a store: they
write the same bytes under the same name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ga import codec
from sparse_ga.errors import OutputError

_SUFFIX = ".safetensors"
TEMPORARY = ".*.tmp"  # pattern of the files that `write_atomically` has not finished
_TEMPORARY = re.compile(r"^\.(?P<host>[^~]*)~(?P<pid>\d+)~[0-9a-f]+\.tmp$")
_FOREIGN_TEMPORARY_S = 24 * 3600.0


def digest_of(*parts: str | bytes | np.ndarray | None) -> str:
    """Hex digest of a sequence of strings, bytes and arrays (with shape and dtype); None differs from every value."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head, body = f"array {part.dtype.str} {part.shape}", np.ascontiguousarray(part).tobytes()
        elif part is None:
            head, body = "none", b""
        else:
            body = part.encode() if isinstance(part, str) else part
            head = type(part).__name__
        digest.update(f"{head} {len(body)}\n".encode())
        digest.update(body)
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Key:
    """What an artifact is made of: stage, stage version, config values that affect it, digests of its inputs.

    `label` is the name people see (a view, a pair); it is not part of the digest.
    """

    stage: str
    version: int
    label: str
    config: dict[str, Any]
    inputs: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """Name of the artifact, 40 hex digits."""
        parts = {"stage": self.stage, "version": self.version, "config": self.config, "inputs": self.inputs}
        return digest_of(json.dumps(parts, sort_keys=True))[:40]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the artifact's header says of its origin."""
        return {"label": self.label, "version": self.version, "config": self.config, "inputs": self.inputs}


@dataclass(frozen=True)
class StageUsage:
    """How much of the disk the artifacts of one stage take."""

    stage: str
    entries: int
    size_bytes: int


class Store:
    """A folder of artifacts."""

    def __init__(self, root: Path) -> None:
        """Open the store at `root`, creating it, and remove what killed writers left; raises `OutputError`."""
        self.root = Path(root)
        self.damaged: list[str] = []
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{root}: cannot be used as cache folder ({error.strerror}); choose another with --cache"
            ) from None
        self._sweep()

    def path(self, key: Key) -> Path:
        """Where the artifact lives, whether it exists or not."""
        return self.root / key.stage / f"{key.digest}{_SUFFIX}"

    def has(self, key: Key) -> bool:
        """Whether there is a file for the artifact; its content is not looked at."""
        return self.path(key).is_file()

    def verify(self, key: Key) -> bool:
        """Whether the artifact is there with every byte intact; a damaged one is removed and noted in `damaged`."""
        blob = self._read(key)
        return blob is not None and (codec.intact(blob) or self._discard(key, "checksum does not fit"))

    def get(self, key: Key) -> Any | None:
        """The artifact, or None if it is missing; a damaged one is removed and counts as missing."""
        blob = self._read(key)
        if blob is None:
            return None
        try:
            return codec.decode(blob)
        except codec.DamagedArtifact as error:
            self._discard(key, str(error))
            return None

    def put(self, key: Key, value: Any) -> int:
        """Write an artifact so that it is there completely or not at all, and return its size in bytes.

        Raises `OutputError` when the disk is full or cannot be written to; the store is as it was then.
        """
        blob, path = codec.encode(value, key.provenance), self.path(key)
        try:
            _write(path, blob)
        except OSError as error:
            # Windows does not replace what another process reads; what is there whole, under this name, is the same
            if not (isinstance(error, PermissionError) and self.verify(key)):
                raise OutputError(_explain(path, error)) from None
        return len(blob)

    def remove(self, key: Key) -> None:
        """Forget an artifact."""
        self.path(key).unlink(missing_ok=True)

    def entries(self, stage: str) -> Iterator[Path]:
        """Files of all artifacts of a stage, of this and of earlier runs, in order of name."""
        yield from sorted((self.root / stage).glob(f"*{_SUFFIX}"))

    def usage(self) -> list[StageUsage]:
        """Disk use of every stage that has artifacts."""
        result = []
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
            found = [stat.st_size for stat in map(stat_of, folder.glob(f"*{_SUFFIX}")) if stat is not None]
            if found:
                result.append(StageUsage(folder.name, len(found), sum(found)))
        return result

    def _read(self, key: Key) -> bytes | None:
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, PermissionError):
            return None  # on Windows another process may just be replacing or removing it
        except OSError as error:
            self._discard(key, f"cannot be read: {error.strerror}")
            return None

    def _discard(self, key: Key, why: str) -> bool:
        self.damaged.append(f"{key.stage} of {key.label}: {why}")
        with contextlib.suppress(OSError):
            self.path(key).unlink()
        return False

    def _sweep(self) -> None:
        for pattern in (TEMPORARY, f"*/{TEMPORARY}"):
            sweep(self.root.glob(pattern))


def stat_of(path: Path) -> os.stat_result | None:
    """Size and times of a file; None where another process has just removed it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def sweep(temporaries: Iterable[Path]) -> None:
    """Remove those of the temporary files whose writers were killed."""
    for path in temporaries:
        if _is_abandoned(path):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    match = _TEMPORARY.match(path.name)
    if match is None:
        return False
    if match["host"] == _host():
        return not _is_alive(int(match["pid"]))
    stat = stat_of(path)
    return stat is not None and time.time() - stat.st_mtime > _FOREIGN_TEMPORARY_S


def _host() -> str:
    """Name of what a process number means something in: the machine and, on Linux, its boot and the container."""
    place = ""
    with contextlib.suppress(OSError):
        place = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    mark = f"-{digest_of(place)[:8]}" if place else ""
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) + mark


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_atomically(path: Path, blob: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, whatever happens; raises `OutputError`."""
    try:
        _write(path, blob)
    except OSError as error:
        raise OutputError(_explain(path, error)) from None


def _write(path: Path, blob: bytes) -> None:
    """As `write_atomically`, but raises `OSError`."""
    temporary = path.parent / f".{_host()}~{os.getpid()}~{secrets.token_hex(6)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the error that led here says more
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name last; some network mounts refuse, and the file itself is synced already."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explain(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{path.parent}: the disk is full; what was computed before is intact: free some space "
            "(`sparse-ga clean`), or copy the cache to a larger disk, then run the same command again"
        )
    return f"{path}: cannot be written ({error.strerror}); check the folder's permissions or choose another"
