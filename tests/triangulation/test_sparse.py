"""Which matches the triangulation is given: those of pairs that take part, in a time that does not depend on others."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from sparse_ga.products import Alignment, PairMatches, VerifiedMatches, View
from sparse_ga.triangulation.sparse import MatchedPairs, _match_loader

ONE = VerifiedMatches(
    PairMatches(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), np.ones(1, np.float32)), 1.0
)


def views_named(names: list[str]) -> tuple[list[View], Alignment]:
    """Views of four pixels, all foreground, all registered where they are."""
    image, mask = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool)
    views = [View(name, image, mask, None, np.eye(3), (2, 2), name) for name in names]
    count = len(names)
    poses, ones = np.tile(np.eye(4), (count, 1, 1)), np.tile(np.eye(3), (count, 1, 1))
    start = np.zeros(count + 1, np.int64)
    return views, Alignment(tuple(names), np.ones(count, bool), poses, ones, np.zeros(0), start, ("",) * count)


def loaded(names: list[str], pairs: list[tuple[int, int]], dropped: list[str], off: int | None = None) -> list[int]:
    """How many matches the triangulation is given of each pair."""
    views, alignment = views_named(names)
    registered = np.arange(len(names)) != (-1 if off is None else off)
    reasons = tuple("" if known else "lost" for known in registered)
    alignment = replace(alignment, registered=registered, reasons=reasons, dropped_pairs=tuple(dropped))
    load = _match_loader(views, alignment, MatchedPairs(pairs, lambda k: ONE))
    return [len(load(k)) for k in range(len(pairs))]


def test_dropped_pairs_and_pairs_of_unregistered_views_give_nothing() -> None:
    pairs = [(0, 1), (1, 0), (0, 2), (1, 2), (2, 3)]
    names = ["a", "b", "a b", "a bc"]
    assert loaded(names, pairs, []) == [1, 1, 1, 1, 1]
    assert loaded(names, pairs, ["a | b | too few | matches", "a b | a b | no pair"]) == [0, 1, 1, 1, 1]
    assert loaded(names, pairs, ["a | a b | no"], off=3) == [1, 1, 0, 1, 0]


@pytest.mark.slow
def test_two_hundred_views_with_most_pairs_dropped_are_read_in_a_moment() -> None:
    names = [f"IMG_{k:04d}.jpg" for k in range(200)]
    pairs = [(i, j) for i in range(200) for j in range(i + 1, 200)]
    dropped = [f"{names[i]} | {names[j]} | only 3 matches" for i, j in pairs if j - i > 20]
    before = time.process_time()
    assert sum(loaded(names, pairs, dropped)) == len(pairs) - len(dropped)
    assert time.process_time() - before < 5  # it took half a minute when every pair read all reasons
