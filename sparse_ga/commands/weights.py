"""`sparse-ga weights`: fetch, describe and convert network weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_ga.errors import InputError, OutputError
from sparse_ga.progress import Reporter


def weights(args: argparse.Namespace, reporter: Reporter) -> int:
    """Fetch weights into the local hub cache, tell what a checkpoint holds, or convert it to safetensors."""
    from sparse_ga.network.checkpoint import WeightsInfo, convert_weights, describe_weights

    info: WeightsInfo
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
