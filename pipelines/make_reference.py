"""Write the API reference, from the docstrings, as HTML (needs the docs extra)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import sparse_ga
import sparse_ga.config

MODULES = (
    "sparse_ga",
    "sparse_ga.config",
    "sparse_ga.products",
    "sparse_ga.pipeline",
    "sparse_ga.objects",
    "sparse_ga.match_pair",
    "sparse_ga.evaluation",
    "sparse_ga.inspection",
    "sparse_ga.status",
    "sparse_ga.store",
    "sparse_ga.progress",
    "sparse_ga.errors",
    "sparse_ga.geometry",
    "sparse_ga.matching",
    "sparse_ga.alignment",
    "sparse_ga.triangulation",
    "sparse_ga.network",
    "sparse_ga.predictors",
    "sparse_ga.stages",
    "sparse_ga.io",
    "sparse_ga.report",
    "sparse_ga.synthetic",
    "sparse_ga.training",
)


def main(folder: str) -> int:
    """Write the pages of the public modules and everything below them."""
    try:
        import pdoc
    except ImportError:
        sys.exit("make_reference.py: needs pdoc; install it with: pip install '.[docs]'")
    for name in sparse_ga.__all__:  # public names are imported when first used, and pdoc looks only at what is there
        setattr(sparse_ga, name, getattr(sparse_ga, name))
    for kind in vars(sparse_ga.config).values():  # pydantic's own annotation cannot be resolved outside pydantic
        if dataclasses.is_dataclass(kind):
            getattr(vars(kind).get("__init__"), "__annotations__", {}).pop("__dataclass_self__", None)
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*MODULES, output_directory=Path(folder))
    print(f"{folder}/index.html")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="out-reference", help="where to write (default: out-reference)")
    sys.exit(main(parser.parse_args().folder))
