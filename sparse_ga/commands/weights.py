"""`sparse-ga weights`: fetch, describe and convert network weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_ga.errors import InputError, OutputError
from sparse_ga.progress import Reporter

if TYPE_CHECKING:
    from sparse_ga.network.architecture import Architecture


def weights(args: argparse.Namespace, reporter: Reporter) -> int:
    """Fetch weights into the local hub cache, tell what a checkpoint holds, or convert it to safetensors."""
    from sparse_ga.network.checkpoint import convert_weights, describe_weights

    if args.action == "convert":
        if args.out is None:
            raise InputError("weights convert: name the folder to write with --out")
        try:
            info = convert_weights(args.source, Path(args.out), half=args.half)
        except FileExistsError:
            raise InputError(f"{args.out}: already there; choose another folder with --out") from None
        except OSError as error:
            raise OutputError(f"{args.out}: cannot be written ({error.strerror})") from None
    else:
        info = describe_weights(args.source)
    values = {
        "source": info.source,
        "container": info.container,
        "network": _network(info.architecture),
        "parameters": info.parameters,
        "size_bytes": info.size_bytes,
        "dtype": info.dtype,
        "digest": info.digest,
        "licence": info.licence,
        "checksum": info.checksum,
    }
    reporter.event("summary", **values)
    if reporter.mode != "json":
        for name, value in values.items():
            print(f"{name:<11} {value}")
    return 0


def _network(arch: Architecture) -> str:
    """A network in one line: class, head, depth x width of its transformers, image size it was trained at."""
    descriptors = f", {arch.descriptor_dim}-dimensional descriptors" if arch.descriptor_dim else ", no descriptors"
    return (
        f"{arch.model}, {arch.head_type} head{descriptors}, encoder {arch.enc_depth}x{arch.enc_embed_dim}, "
        f"decoders {arch.dec_depth}x{arch.dec_embed_dim}, {arch.img_size[1]}x{arch.img_size[0]} px"
    )
