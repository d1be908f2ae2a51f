"""Where weights come from: a local path, or the Hugging Face hub through its own cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from sparse_ga.network.errors import CheckpointNotFound, CheckpointUnavailable

DEFAULT_NAME = "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def fetch_weights(source: str = DEFAULT_NAME, cache_dir: Path | None = None) -> Path:
    """The local file or folder of `source`: itself if it exists, else a hub repository, downloaded once.

    Raises `CheckpointNotFound` when there is no such path or repository, `CheckpointUnavailable` when the hub cannot be
    reached and nothing is cached. The download shows huggingface_hub's own progress bar.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.endswith((".pth", ".pt", ".safetensors")) or not _HUB_NAME.fullmatch(source):
        raise CheckpointNotFound(
            f"{source}: no such file or folder, and no hub name (owner/name). Give a .pth file, a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}, or a name such as {DEFAULT_NAME}"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        downloaded = _download(source, name, cache_dir)
    return downloaded.parent


def _download(repository: str, name: str, cache_dir: Path | None) -> Path:
    try:
        return Path(hf_hub_download(repository, name, cache_dir=cache_dir))
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
