"""Where weights come from: a local path, or the Hugging Face hub through its own cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from sparse_ga.network.errors import CheckpointDamaged, CheckpointNotFound, CheckpointUnavailable

DEFAULT_NAME = "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TIMEOUT_S = 10.0
_CHUNK = 1 << 22


def fetch_weights(source: str = DEFAULT_NAME, cache_dir: Path | None = None) -> Path:
    """The local file or folder of `source`: itself if it exists, else a hub repository, downloaded once.

    What is in the hub's cache is used without asking the hub. Raises `CheckpointNotFound` when there is no such path or
    repository, `CheckpointUnavailable` when the hub cannot be reached and nothing is cached. The download shows
    huggingface_hub's own progress bar.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.endswith((".pth", ".pt", ".safetensors")) or not _HUB_NAME.fullmatch(source):
        raise CheckpointNotFound(
            f"{source}: no such file or folder, and no hub name (owner/name). Give a .pth file, a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}, or a name such as {DEFAULT_NAME}"
        )
    names = (CONFIG_FILE, WEIGHTS_FILE)
    cached = [try_to_load_from_cache(source, name, cache_dir=cache_dir) for name in names]
    if not all(isinstance(file, str) for file in cached):  # one of the two could be of an older revision
        cached = [_download(source, name, cache_dir) for name in names]
    return Path(str(cached[-1])).parent


def check_hub_file(path: Path) -> bool:
    """Whether a file lies in the hub's cache under its own checksum, which then was verified.

    The cache names a file's content by its SHA-256, or by git's SHA-1 where the hub keeps it in git. Raises
    `CheckpointDamaged` when the content has another one.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return False
    digest = hashlib.sha256()
    if len(blob.name) == 40:
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        raise CheckpointDamaged(f"{path}: not what the hub sent (checksum); delete {blob} and fetch it again")
    return True


def _download(repository: str, name: str, cache_dir: Path | None) -> str:
    try:
        # asked once before: the download itself tries for half a minute to reach a hub that is not there
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=_TIMEOUT_S)
        return hf_hub_download(repository, name, cache_dir=cache_dir)
    except LocalEntryNotFoundError as error:
        raise CheckpointUnavailable(_offline(repository, name)) from error
    except RepositoryNotFoundError as error:
        raise CheckpointNotFound(
            f"{repository}: the hub has no such repository, or it is private (then log in with `hf auth login`)"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointNotFound(f"{repository}: the hub repository has no {name}") from error
    except Exception as error:  # the hub's client raises errors of its HTTP library, which changed between versions
        raise CheckpointUnavailable(f"{_offline(repository, name)} ({type(error).__name__}: {error})") from error


def _offline(repository: str, name: str) -> str:
    return (
        f"{repository}: {name} is not in the cache and the hub cannot be reached. Run `sparse-ga weights fetch "
        f"{repository}` where there is a network, or download the files and give their folder"
    )
