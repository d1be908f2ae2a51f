"""`sparse-ga match`: two photographs, their matches as a picture and as numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_ga.commands.jobs import parse_settings
from sparse_ga.config import load_config
from sparse_ga.errors import InputError, OutputError
from sparse_ga.io.drawing import draw_matches
from sparse_ga.io.masks import find_masks
from sparse_ga.match_pair import MatchedPair, match_pair
from sparse_ga.progress import Reporter

NO_MATCHES = 3


def match(args: argparse.Namespace, reporter: Reporter) -> int:
    """Match two photographs; the exit code is 3 when the pair would be dropped."""
    overrides = parse_settings(args.set or [])
    if args.object is not None:
        overrides.setdefault("ingest", {})["object_id"] = args.object
    config = load_config(args.preset, overrides)
    images = (Path(args.image_a), Path(args.image_b))
    for image in images:
        if not image.is_file():
            raise InputError(f"{image}: there is no such photograph")
    result = match_pair(images, _masks(args.masks, images), args.predictor, config, fine=args.fine)
    files = _write(result, Path(args.out), images)
    if result.sift_alone:
        reporter.info(
            f"SIFT alone: {result.sift_alone}; once more with the descriptor network, as a run does where SIFT leaves "
            "photographs out"
        )
    verified = result.verified
    reporter.event(
        "summary",
        matches=len(verified.matches),
        score=verified.score,
        rejected=verified.rejected,
        files=[str(path) for path in files],
    )
    if reporter.mode != "json":
        why = f"; a reconstruction would drop this pair: {verified.rejected}" if verified.rejected else ""
        reporter.info(f"{len(verified.matches)} matches, score {verified.score:.2f}{why}")
        reporter.info(f"files  {', '.join(str(path) for path in files)}")
    return NO_MATCHES if verified.rejected or not len(verified.matches) else 0


def _masks(given: list[str] | None, images: tuple[Path, Path]) -> tuple[Path, Path] | None:
    """The two masks: two files, or one folder."""
    if not given:
        return None
    if len(given) > 2:
        raise InputError(f"--masks: give a folder or two files, not {len(given)}")
    found = find_masks(images, given[0] if len(given) == 1 else given)
    first, second = found
    assert first is not None
    assert second is not None
    return first, second


def _write(result: MatchedPair, out: Path, images: tuple[Path, Path]) -> list[Path]:
    stem = f"{images[0].stem}_{images[1].stem}"
    picture, numbers = out / f"{stem}_matches.png", out / f"{stem}_matches.npz"
    caption = f"{images[0].name} | {images[1].name}: {len(result.verified.matches)} matches"
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw_matches(result.view_i, result.view_j, result.verified.matches, caption).save(picture)
        result.save(numbers)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from None
    return [picture, numbers]
