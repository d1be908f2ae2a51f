"""Two photographs: their correspondences on the object, in one call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparse_ga.config import AUTO, PACKAGED, Config, make_config
from sparse_ga.io.cameras_file import GivenCamera
from sparse_ga.matching import verify_matches
from sparse_ga.matching.coarse_to_fine import Photograph, refine_matches
from sparse_ga.predictors.base import Calibrator, FeaturePredictor, Features, PairPredictor
from sparse_ga.predictors.classical import ClassicalPredictor
from sparse_ga.predictors.loading import load_describer, load_predictor
from sparse_ga.products import Array, PairMatches, VerifiedMatches, View
from sparse_ga.stages import calibrate, forward, ingest, match


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """Two views and their verified matches, working px; `source_matches` has them in the photographs' pixels."""

    view_i: View
    view_j: View
    verified: VerifiedMatches
    sift_alone: str | None = None  # why SIFT alone was refused, where the matches are a second attempt's

    @property
    def source_matches(self) -> PairMatches:
        """The matches in source px."""
        matches = self.verified.matches
        return PairMatches(
            _to_source(self.view_i, matches.xy_i), _to_source(self.view_j, matches.xy_j), matches.confidence
        )

    def save(self, path: Path) -> None:
        """Write an NPZ: xy_i, xy_j (M, 2) in source px, confidence (M,), score, names, and why it was dropped if so."""
        matches = self.source_matches
        np.savez(
            path,
            xy_i=matches.xy_i,
            xy_j=matches.xy_j,
            confidence=matches.confidence,
            score=np.float64(self.verified.score),
            names=np.array([self.view_i.name, self.view_j.name]),
            rejected=np.array(self.verified.rejected or ""),
        )


def _to_source(view: View, xy: Array) -> Array:
    source_from_working = np.linalg.inv(view.working_from_source)
    return (xy @ source_from_working[:2, :2].T + source_from_working[:2, 2]).astype(np.float32)


def match_pair(
    images: tuple[str | Path, str | Path],
    masks: tuple[str | Path, str | Path] | None = None,
    predictor: str | PairPredictor | None = None,
    config: Config | None = None,
    intrinsics: tuple[Array | None, Array | None] = (None, None),
    fine: bool = False,
) -> MatchedPair:
    """Foreground correspondences of two photographs, verified as a pair of the pipeline would be.

    `masks` None uses alpha channels, or everything. `intrinsics` (3, 3) are in source px; a predictor that needs them
    guesses where they are unknown. `fine` matches again at the photographs' resolution, in windows that the first
    matches choose. As in a run, `forward.descriptors` auto has the classical predictor begin without its descriptor
    network, and ask it once that is refused. Nothing is cached. Raises `InputError` for files that cannot be used.
    """
    settings = config or make_config({})
    chosen = settings.predictor if predictor is None else predictor
    loaded = load_predictor(chosen, settings.forward) if isinstance(chosen, str) else chosen
    mask_paths = (None, None) if masks is None else (Path(masks[0]), Path(masks[1]))
    sources = []
    for image, mask, known in zip(images, mask_paths, intrinsics, strict=True):
        camera = None if known is None else GivenCamera(intrinsics=np.asarray(known, float))
        sources.append(ingest.make_source(Path(image), mask, camera))
    views = [ingest.run(source, settings) for source in sources]
    views = ingest.name_cameras(views, settings.ingest.shared_intrinsics)
    pair = _matched(sources, views, loaded, settings, fine)
    second = None if pair.verified.rejected is None else _with_network(loaded, settings)
    if second is None:
        return pair
    return replace(_matched(sources, views, second, settings, fine), sift_alone=pair.verified.rejected)


def _with_network(predictor: PairPredictor, config: Config) -> ClassicalPredictor | None:
    """The predictor of the second attempt, with the descriptor network; None where a run would make none."""
    if config.forward.descriptors != AUTO or type(predictor) is not ClassicalPredictor:
        return None
    if predictor.describer is not None:
        return None
    packaged = replace(config.forward, descriptors=PACKAGED)
    return ClassicalPredictor(predictor.settings, load_describer(packaged))


def _matched(
    sources: list[ingest.Source], views: list[View], predictor: PairPredictor, config: Config, fine: bool
) -> MatchedPair:
    """Verified matches of two views that may lack a focal length."""
    views = _with_focal(views, predictor, config)
    features = _Features(views, predictor)
    prediction = forward.run(views[0], views[1], predictor, lambda: features(0), lambda: features(1))
    verified = match.run(prediction, views[0], views[1], config)
    if fine and prediction.rejected is None:
        verified = _refined(verified, sources, views, predictor, config)
    return MatchedPair(views[0], views[1], verified)


def _refined(
    coarse: VerifiedMatches, sources: list[ingest.Source], views: list[View], predictor: PairPredictor, config: Config
) -> VerifiedMatches:
    """Matches at source resolution near the coarse ones, verified as those were."""
    photos = [
        Photograph(view, *ingest.load_source(source, config.ingest.object_id))
        for view, source in zip(views, sources, strict=True)
    ]
    matches = refine_matches(predictor, photos[0], photos[1], coarse.matches, config.match)
    return verify_matches(matches, views[0], views[1], config.match)


class _Features:
    """Features of both views, each computed once."""

    def __init__(self, views: list[View], predictor: PairPredictor) -> None:
        self._views, self._predictor = views, predictor
        self._found: dict[int, Features] = {}

    def __call__(self, n: int) -> Features:
        if n not in self._found:
            assert isinstance(self._predictor, FeaturePredictor)
            self._found[n] = self._predictor.encode(self._views[n])
        return self._found[n]


def _with_focal(views: list[View], predictor: PairPredictor, config: Config) -> list[View]:
    """The views with focal lengths, where the predictor needs them: voted for, or guessed."""
    if not (calibrate.is_needed(views, predictor) and isinstance(predictor, Calibrator)):
        return views
    voted = calibrate.run(views, [(0, 1)], predictor, _Features(views, predictor), config)
    return calibrate.apply(views, calibrate.first_guess(views, voted))
