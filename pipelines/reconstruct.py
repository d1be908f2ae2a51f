"""Reconstruct a masked object from photographs, as a program on the public API.

    reconstruct.py IMAGES MASKS OUT [section.field=value ...]

`sparse-ga run` does the same and more; copy this one to build your own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sparse_ga
from sparse_ga.commands.jobs import parse_settings
from sparse_ga.io.export import export
from sparse_ga.progress import Reporter


def main(images: str, masks: str, out: str, *settings: str) -> int:
    """Reconstruct, export a cloud and a COLMAP model, and say which photographs were left out."""
    config = sparse_ga.load_config(overrides=parse_settings(list(settings)))
    result = sparse_ga.reconstruct(images, masks, cache=Path(out) / "cache", config=config, reporter=Reporter())
    result.save(out)
    export(result, out, ["ply", "colmap"])
    print(f"{int(result.registered.sum())} of {len(result.names)} registered, {len(result.points)} points in {out}")
    for name, registered, reason in zip(result.names, result.registered, result.reasons, strict=True):
        if not registered:
            print(f"{name} left out: {reason}")
    return 0 if result.registered.any() else 1


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except (sparse_ga.InputError, sparse_ga.OutputError, ValueError) as error:
        sys.exit(f"reconstruct.py: {error}")
