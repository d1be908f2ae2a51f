"""Reciprocal matching of one pair against the plain algorithm, in one run.

The plain algorithm follows nearest neighbours back and forth from the same seeds over all pixels of both images; every
search is a full similarity matrix in blocks of 8,192 by 8,192 with row and column maxima, as the original's brute-force
matcher computes it. Queries that have converged leave there too, so what is compared is the search, not the schedule.
Both directions and both decode orders are matched, as for a pair of the pipeline.

    python pipelines/benchmark_matching.py [--seed 0] [--height 384] [--width 512] [--repeats 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch

from sparse_ga.config import MatchConfig
from sparse_ga.matching.reciprocal import PixelFeatures, reciprocal_matches, seed_pixels
from sparse_ga.products import Array

BLOCK = 8192
Pairs = set[tuple[int, int]]


@dataclass(frozen=True)
class MatchingBenchmark:
    """Seconds, ratios and agreement; "foreground" is the case with an object on `foreground_share` of the pixels.

    The plain algorithm takes no mask, so `speedup_foreground` compares with it on all pixels, as a user of the original
    would run it; `speedup_same_foreground` compares with it on the foreground's pixels alone. Identical means that the
    set of matches equals that of the plain algorithm in double precision, from the same seeds on the same pixels.
    """

    height: int
    width: int
    threads: int
    foreground_share: float
    plain_s: float
    everything_s: float
    foreground_s: float
    plain_foreground_s: float
    speedup_everything: float
    speedup_foreground: float
    speedup_same_foreground: float
    matches_everything: int
    matches_foreground: int
    identical_everything: bool
    identical_foreground: bool


def make_descriptors(height: int, width: int, seed: int, noise: float = 0.3) -> tuple[Array, Array]:
    """Unit descriptors (H, W, 24) float32 of two images of one textured plane, the second turned and enlarged."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(2, 24)) * np.geomspace(0.01, 0.7, 24)  # radians per px
    phases = rng.uniform(0, 2 * np.pi, 24)
    y, x = np.mgrid[:height, :width]
    grid = np.stack([x, y], -1).astype(float)
    turn = 1.1 * np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]])
    described = []
    for pixels in (grid, grid @ turn.T):
        d = np.cos(pixels @ waves + phases)
        d /= np.linalg.norm(d, axis=2, keepdims=True)
        d += noise / np.sqrt(24) * rng.normal(size=d.shape)
        described.append((d / np.linalg.norm(d, axis=2, keepdims=True)).astype(np.float32))
    return described[0], described[1]


def object_mask(height: int, width: int, share: float = 0.25) -> Array:
    """An ellipse in the middle that covers `share` of the pixels, (H, W) bool."""
    y, x = np.mgrid[:height, :width]
    radius2 = ((x - (width - 1) / 2) / width) ** 2 + ((y - (height - 1) / 2) / height) ** 2
    return radius2 <= np.quantile(radius2, share)


def plain_nearest(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Nearest row (Q,) of every query by full blocks of similarities, with the maxima of rows and of columns."""
    best, best_column = (torch.full((count,), -torch.inf, dtype=rows.dtype) for count in (len(queries), len(rows)))
    nearest, nearest_column = (torch.zeros(count, dtype=torch.long) for count in (len(queries), len(rows)))
    for q in range(0, len(queries), BLOCK):
        for r in range(0, len(rows), BLOCK):
            similarity = queries[q : q + BLOCK] @ rows[r : r + BLOCK].T
            top, where = similarity.max(1)
            better = top > best[q : q + BLOCK]
            best[q : q + BLOCK][better], nearest[q : q + BLOCK][better] = top[better], where[better] + r
            top, where = similarity.max(0)
            better = top > best_column[r : r + BLOCK]
            best_column[r : r + BLOCK][better] = top[better]
            nearest_column[r : r + BLOCK][better] = where[better] + q
    return nearest


def plain_cycles(start: Array, near: torch.Tensor, far: torch.Tensor, rounds: int) -> list[tuple[int, int]]:
    """Closed cycles from the rows `start` of `near` (N, D) through `far` (M, D): pairs (near row, far row)."""
    here, there = torch.from_numpy(start).clone(), torch.full((len(start),), -1)
    active, closed = torch.arange(len(start)), []
    for _ in range(rounds):
        new = plain_nearest(near[here[active]], far)
        converged = new == there[active]
        there[active] = new
        closed.append(active[converged])
        active = active[~converged]
        new = plain_nearest(far[there[active]], near)
        converged = new == here[active]
        here[active] = new
        closed.append(active[converged])
        active = active[~converged]
        if len(active) == 0:
            break
    done = torch.cat(closed)
    return list(zip(here[done].tolist(), there[done].tolist(), strict=True))


def plain_reciprocal(image_i: PixelFeatures, image_j: PixelFeatures, config: MatchConfig, dtype: torch.dtype) -> Pairs:
    """The plain algorithm on the usable pixels of both images: pairs of raster indices."""
    rows = [np.flatnonzero(image.usable) for image in (image_i, image_j)]
    vectors = [torch.from_numpy(image.vectors[r]).to(dtype) for image, r in zip((image_i, image_j), rows, strict=True)]
    seeds = [
        np.searchsorted(r, seed_pixels(image.usable, config.subsample))
        for image, r in zip((image_i, image_j), rows, strict=True)
    ]
    pairs = plain_cycles(seeds[0], vectors[0], vectors[1], config.max_rounds)
    pairs += [(i, j) for j, i in plain_cycles(seeds[1], vectors[1], vectors[0], config.max_rounds)]
    return {(int(rows[0][i]), int(rows[1][j])) for i, j in pairs}


def fast_reciprocal(image_i: PixelFeatures, image_j: PixelFeatures, config: MatchConfig) -> Pairs:
    """`sparse_ga.matching` on the same input."""
    found = reciprocal_matches(image_i, image_j, config)
    return set(zip(found.pixel_i.tolist(), found.pixel_j.tolist(), strict=True))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def benchmark_matching(
    seed: int = 0, height: int = 384, width: int = 512, subsample: int = 8, repeats: int = 3
) -> MatchingBenchmark:
    """Match one pair, everything and the foreground alone, with the plain algorithm and with ours.

    Two decode orders of `height` x `width` x 24 descriptors; `repeats` runs of ours before the plain algorithm runs
    once, and as many after it. The fastest counts: other work on the machine only adds time, at times for seconds.
    Takes about a minute and a half on two idle cores at the default size.
    """
    config = MatchConfig(subsample=subsample, device="cpu")
    orders = [make_descriptors(height, width, 2 * seed + n) for n in range(2)]
    masks = np.ones((height, width), bool), object_mask(height, width)
    everything, foreground = ([[PixelFeatures.of(d, mask) for d in order] for order in orders] for mask in masks)

    def plain(images: list[list[PixelFeatures]], dtype: torch.dtype) -> list[Pairs]:
        return [plain_reciprocal(i, j, config, dtype) for i, j in images]

    def fast(mask: Array) -> list[Pairs]:
        images = [[PixelFeatures.of(d, mask) for d in order] for order in orders]
        return [fast_reciprocal(i, j, config) for i, j in images]

    def fast_seconds() -> list[list[float]]:
        return [[seconds(partial(fast, mask)) for mask in masks] for _ in range(repeats)]

    found_everything, found_foreground = fast(masks[0]), fast(masks[1])  # the first call also loads libraries
    before = fast_seconds()
    plain_foreground_s = seconds(lambda: plain(foreground, torch.float32))
    plain_s = seconds(lambda: plain(everything, torch.float32))
    everything_s, foreground_s = np.min(before + fast_seconds(), axis=0).tolist()
    return MatchingBenchmark(
        height=height,
        width=width,
        threads=torch.get_num_threads(),
        foreground_share=float(masks[1].mean()),
        plain_s=plain_s,
        everything_s=everything_s,
        foreground_s=foreground_s,
        plain_foreground_s=plain_foreground_s,
        speedup_everything=plain_s / everything_s,
        speedup_foreground=plain_s / foreground_s,
        speedup_same_foreground=plain_foreground_s / foreground_s,
        matches_everything=len(set.union(*found_everything)),
        matches_foreground=len(set.union(*found_foreground)),
        identical_everything=found_everything == plain(everything, torch.float64),
        identical_foreground=found_foreground == plain(foreground, torch.float64),
    )


def main() -> None:
    """Print every figure on a line of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    result = benchmark_matching(arguments.seed, arguments.height, arguments.width, repeats=arguments.repeats)
    for field in fields(result):
        value = getattr(result, field.name)
        print(f"{field.name:24} {value:.3f}" if isinstance(value, float) else f"{field.name:24} {value}")


if __name__ == "__main__":
    main()
