"""pairs: which pairs of views are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse_ga.config import Config
from sparse_ga.errors import InputError
from sparse_ga.pairs import Pair, build_pairs, read_pairs_file
from sparse_ga.products import Array, View, check
from sparse_ga.stages.base import Stage
from sparse_ga.store import Key, digest_of, digest_of_file

STAGE = Stage("pairs", 1, "run", ("ingest",), ("pairs.graph",))


@dataclass(frozen=True, eq=False)
class PairList:
    """Pairs of view indices, i < j, in order."""

    pairs: Array  # (P, 2) int32

    def __post_init__(self) -> None:
        check(self.pairs, "PairList.pairs", (None, 2), "i")

    def as_tuples(self) -> list[Pair]:
        """The pairs as a list of tuples."""
        return [(int(i), int(j)) for i, j in self.pairs]


def key(views: Sequence[View], config: Config) -> Key:
    """Key of the pair list: the views' names, which of them hold the object, and the graph."""
    file = config.pairs.pairs_file
    try:
        content = "" if file is None else digest_of_file(Path(file))
    except OSError as error:
        raise InputError(f"{file}: the pairs file cannot be read ({error.strerror}); check pairs.pairs_file") from None
    names = digest_of(*(f"{view.name} {bool(view.mask.any())}" for view in views))
    return STAGE.key("pairs", config, {"views": names, "pairs_file": content})


def run(views: Sequence[View], config: Config) -> PairList:
    """All pairs of the graph between views that hold the object; raises `InputError` for a bad graph or file."""
    if config.pairs.pairs_file is not None:
        pairs = read_pairs_file(Path(config.pairs.pairs_file), [view.name for view in views])
    else:
        pairs = build_pairs(len(views), config.pairs.graph)
    useful = [(i, j) for i, j in pairs if views[i].mask.any() and views[j].mask.any()]
    return PairList(np.array(useful, np.int32).reshape(-1, 2))
