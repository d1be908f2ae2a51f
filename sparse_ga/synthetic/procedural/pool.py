"""A folder of rendered objects, written in shards, for training where rendering is slower than learning."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_ga.synthetic.procedural.scene import SceneConfig, render_batch

_KEPT = ("image", "mask", "mask_imperfect", "depth", "intrinsics", "object_from_cam", "plain")


def shard_path(folder: Path, seed: int, index: int) -> Path:
    """File of shard `index` of stream `seed`."""
    return folder / f"{seed:04d}_{index:06d}.safetensors"


def write_shard(folder: Path, config: SceneConfig, seed: int, index: int, device: str = "cpu") -> Path:
    """Render batch `index` of stream `seed` into its shard, unless it is there; written aside and renamed.

    Raises `ValueError` when the shard that is there was rendered with other settings.
    """
    path, settings = shard_path(folder, seed, index), json.dumps(asdict(config), sort_keys=True)
    if path.is_file():
        with safe_open(path, framework="pt") as shard:
            if (shard.metadata() or {}).get("scene") != settings:
                raise ValueError(f"{path}: was rendered with other settings; use a new folder for these")
        return path
    batch = render_batch(config, seed, index, device)
    aside = path.with_suffix(f".tmp{os.getpid()}")
    save_file({name: getattr(batch, name).cpu().contiguous() for name in _KEPT}, aside, {"scene": settings})
    os.replace(aside, path)
    return path


@dataclass(frozen=True)
class Pool:
    """Objects of one stream, read from their shards; a shard that is not there yet is rendered when it is wanted."""

    folder: Path
    config: SceneConfig
    seed: int
    device: str = "cpu"

    @property
    def views(self) -> int:
        """Views of each object."""
        return self.config.views

    def rows(self, index: int) -> dict[str, Tensor]:
        """All views of object `index`: the tensors of `Batch` without their batch axis."""
        shard, row = divmod(index, self.config.objects)
        path = write_shard(self.folder, self.config, self.seed, shard, self.device)
        return {k: v[row] for k, v in load_file(path).items()}


def complete_shards(folder: Path, seed: int) -> int:
    """How many shards of stream `seed` are there, counted from the first without a gap."""
    count = 0
    while shard_path(folder, seed, count).is_file():
        count += 1
    return count
