"""The stages in order: run and resume."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from sparse_ga.config import Config
from sparse_ga.errors import InputError
from sparse_ga.pairs import Pair
from sparse_ga.predictors.base import Calibrator
from sparse_ga.products import Alignment, PairPrediction, Reconstruction, View
from sparse_ga.progress import Bar, Reporter
from sparse_ga.stages import align3d, calibrate, ingest, pairs, refine2d, triangulate
from sparse_ga.stages.align3d import AlignedViews
from sparse_ga.stages.calibrate import Calibration, Reconstructed
from sparse_ga.stages.job import STAGE_NAMES, STAGES, Job, stage_position
from sparse_ga.stages.pairwise import PairStages
from sparse_ga.stages.remarks import remarks
from sparse_ga.status import keep_within_budget
from sparse_ga.store import Key, Store
from sparse_ga.work import watched_by

_TRIM_EVERY = 256  # artifacts of a stage, after each of which a full cache is looked after


@dataclass
class StageCount:
    """What a run did in one stage."""

    computed: int = 0
    reused: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run produced: products of the stages it went through, and what it did in each."""

    views: tuple[View, ...]
    pairs: tuple[Pair, ...]
    alignment: Alignment | None
    reconstruction: Reconstruction | None
    counts: dict[str, StageCount]
    damaged: tuple[str, ...]


@dataclass
class Pipeline:
    """One job on one store. Every stage computes what is missing, and only that.

    The cache's budget costs nothing that a job to be `spared`, which waits to be finished, still needs.
    """

    job: Job
    store: Store
    reporter: Reporter = field(default_factory=lambda: Reporter("silent"))
    counts: dict[str, StageCount] = field(default_factory=dict)
    spared: Job | None = None
    _first: int = len(STAGES)
    _done: set[str] = field(default_factory=set)
    _exhausted: bool = False

    def run(
        self,
        first: str | None = None,
        last: str | None = None,
        go_on: Callable[[RunResult], bool] = lambda result: True,
    ) -> RunResult:
        """Bring every artifact up to stage `last` into being, computing those from stage `first` on again.

        `go_on` is asked once the alignment is refined, whether to triangulate; if not, the run ends there.
        Artifacts that later stages no longer need may be missing (after `clean`); they stay so. Raises `InputError`
        for bad photographs or masks and `OutputError` when the cache cannot be written.
        """
        self._first = len(STAGES) if first is None else stage_position(first)
        end = len(STAGES) - 1 if last is None else stage_position(last)
        if self._first < len(STAGES) and self._first > end:
            raise InputError(f"stage {first} comes after stage {last}; exchange --from and --until")
        self.counts = {name: StageCount() for name in STAGE_NAMES}
        self._done = set()
        self._exhausted = False
        views = self._ingest()
        if end == 0:
            return self._result(views, (), None, None)
        pair_list = self._pairs(views)
        if end == STAGE_NAMES.index("encode"):
            self._encode(self._pair_stages(views, pair_list), range(len(views)))
        if end < STAGE_NAMES.index("calibrate"):
            return self._result(views, pair_list, None, None)
        views = self._calibrate(views, pair_list)
        if end == STAGE_NAMES.index("calibrate"):
            return self._result(views, pair_list, None, None)
        solver = _Solver(self, views, pair_list, self._pair_stages(views, pair_list), end, go_on)
        alignment, reconstruction = solver.run()
        return self._result(views, pair_list, alignment, reconstruction)

    def _result(
        self,
        views: Sequence[View],
        pair_list: Sequence[Pair],
        alignment: Alignment | None,
        reconstruction: Reconstruction | None,
    ) -> RunResult:
        for text in self.store.damaged:
            self.reporter.warn(f"damaged in the cache, computed again: {text}")
        damaged = tuple(self.store.damaged)
        return RunResult(tuple(views), tuple(pair_list), alignment, reconstruction, self.counts, damaged)

    def _pair_stages(self, views: Sequence[View], pair_list: Sequence[Pair]) -> PairStages:
        return PairStages(self.store, views, pair_list, self.job.predictor, self.job.config)

    def is_present(self, key: Key) -> bool:
        """Whether an artifact is there, undamaged, and not to be computed again in this run."""
        if key.stage in STAGE_NAMES and STAGE_NAMES.index(key.stage) >= self._first and key.digest not in self._done:
            return False
        return self.store.verify(key)

    def ensure(self, key: Key, compute: Callable[[], Any]) -> Any:
        """The artifact from the store, or computed and stored."""
        count = self.counts[key.stage]
        found = self.store.get(key) if self.is_present(key) else None
        if found is not None:
            count.reused += 1
            return found
        value = compute()
        self.store.put(key, value)
        self._done.add(key.digest)
        count.computed += 1
        return value

    def trim(self) -> None:
        """Keep the cache within its budget, if there is one."""
        freed, over = keep_within_budget(self.job, self.store, self.spared)
        self._tell_freed(freed)
        if over > 0:
            self.reporter.warn(f"cache: {over / 1e6:.0f} MB above cache.budget_gb; all of it is still needed")

    def trim_early(self) -> None:
        """As `trim` amid a stage: only what is not of this job goes, and once that is too little none is left."""
        if not self._exhausted:
            freed, over = keep_within_budget(self.job, self.store, self.spared, amid_stage=True)
            self._exhausted = over > 0
            self._tell_freed(freed)

    def _tell_freed(self, freed: int) -> None:
        if freed:
            self.reporter.detail(f"cache: {freed / 1e6:.0f} MB removed to stay within cache.budget_gb")

    def _stage(self, name: str, total: int, unit: str) -> Any:
        return self.reporter.stage(name, total, unit)

    def _finish(self, bar: Bar) -> None:
        self.counts[bar.stage].seconds += bar.seconds

    def _ingest(self) -> list[View]:
        config = self.job.config
        views = []
        with self._stage("ingest", len(self.job.sources), "image") as bar:
            for source in self.job.sources:
                views.append(self.ensure(ingest.key(source, config), partial(ingest.run, source, config)))
                bar.advance()
            self._finish(bar)
        for view in views:
            if view.intrinsics_source == "exif":
                self.reporter.detail(f"{view.name}: focal length {view.intrinsics[0, 0]:.0f} working px from EXIF")
        _check_object(self.job, views)
        for text in remarks(views, self.job.sources):
            self.reporter.warn(text)
        return ingest.name_cameras(views, config.ingest.shared_intrinsics)

    def _pairs(self, views: Sequence[View]) -> list[Pair]:
        config = self.job.config
        found = self.ensure(pairs.key(views, config), lambda: pairs.run(views, config))
        return found.as_tuples()

    def _encode(self, pair_stages: PairStages, wanted: Sequence[int] | range) -> None:
        """Make sure of the features of the `wanted` views, if the predictor has an encoder."""
        keys = pair_stages.features.keys
        missing = [n for n in wanted if keys and not self.is_present(keys[n])]
        present = {keys[n].digest for n in wanted if keys and n not in missing}
        self.counts["encode"].reused = max(self.counts["encode"].reused, len(present - self._done))
        if not missing:
            return
        with self._stage("encode", len(missing), "image") as bar:
            for n in missing:
                pair_stages.features.compute(n)
                self._done.add(keys[n].digest)
                self.counts["encode"].computed += 1
                bar.advance()
            self._finish(bar)

    def _calibrate(self, views: list[View], pair_list: list[Pair]) -> list[View]:
        """The views with estimated intrinsics, if the predictor needs them and nobody knows them."""
        job = self.job
        if not calibrate.is_needed(views, job.predictor):
            return views
        key = calibrate.key(views, pair_list, job.predictor, job.config)
        with self._stage("calibrate", 1, "trial") as bar, watched_by(bar):
            calibration = self.ensure(key, lambda: self._vote(views, pair_list))
            bar.finish()
            self._finish(bar)
        for note in calibration.notes:
            self.reporter.detail(note)
        if not calibration.sufficient.all():
            key = calibrate.key_from_reconstruction(views, pair_list, job.predictor, job.config)
            calibration = self.ensure(key, lambda: self._calibrate_by_reconstruction(views, pair_list, calibration))
        if warning := calibrate.warning_of(calibration):
            self.reporter.warn(warning)
        return calibrate.apply(views, calibration)

    def _vote(self, views: Sequence[View], pair_list: Sequence[Pair]) -> Calibration:
        predictor = self.job.predictor
        assert isinstance(predictor, Calibrator)
        pair_stages = self._pair_stages(views, pair_list)
        self._encode(pair_stages, [n for n, view in enumerate(views) if view.mask.any()])
        return calibrate.run(views, pair_list, predictor, pair_stages.features, self.job.config)

    def _calibrate_by_reconstruction(self, views: list[View], pair_list: list[Pair], voted: Calibration) -> Calibration:
        """Reconstruct from several guesses, and again from what they found; a plain guess where that tells nothing."""
        if not calibrate.can_be_reconstructed(views):
            return calibrate.first_guess(views, voted)
        self.reporter.info(
            "calibrate: too few photographs agree on a focal length; reconstructing from several guesses instead"
        )
        starts: list[Key] = []

        def reconstruct(start: Calibration) -> Reconstructed:
            starts.append(calibrate.key_from_start(views, pair_list, self.job.predictor, self.job.config, start))
            return self._reconstructed(views, pair_list, start, starts[-1])

        found = calibrate.best_reconstruction(calibrate.starts(views, voted), reconstruct).decided()
        for key in starts:
            self.store.remove(key)
        for n in np.flatnonzero(found.sufficient & ~voted.sufficient)[:1]:
            focal_px = found.focal_px[n] / views[n].working_from_source[0, 0]
            self.reporter.info(f"calibrate: focal length {focal_px:.0f} px of {views[n].name}")
        return calibrate.first_guess(views, found)

    def _reconstructed(self, views: list[View], pair_list: list[Pair], start: Calibration, key: Key) -> Reconstructed:
        """What a reconstruction makes of the focal lengths it starts from; its pairs' artifacts are removed again."""
        found = self.store.get(key) if self.is_present(key) else None
        if found is not None:
            return found
        placed = calibrate.apply(views, start)
        pair_stages = self._pair_stages(placed, pair_list)
        with self._stage("calibrate", len(pair_list), "pair") as bar:
            for k, pair_key in enumerate(pair_stages.match_keys):
                if not self.store.verify(pair_key):
                    pair_stages.compute_forward(k, True)
                bar.advance()
            alignment = self._quick_alignment(placed, pair_list, pair_stages)
            self._finish(bar)
        matches = _matches_between(alignment, pair_list, pair_stages)
        found = calibrate.from_alignment(views, start, alignment, matches, self.job.config)
        self.store.put(key, found)
        self._done.add(key.digest)
        for pair_key in (*pair_stages.forward_keys, *pair_stages.match_keys):
            self.store.remove(pair_key)
        return found

    def _quick_alignment(self, views: list[View], pair_list: list[Pair], pair_stages: PairStages) -> Alignment:
        config = self.job.config
        aligned = align3d.run(views, pair_list, pair_stages.load_prediction, pair_stages.load_matches, config)
        return refine2d.run(views, aligned, pair_list, pair_stages.load_matches, config)


def _use_all(
    batch: Sequence[int], predictions: Sequence[PairPrediction], use: Callable[[int, PairPrediction], None], bar: Bar
) -> None:
    """`use` a batch of predictions, one after the other."""
    for k, prediction in zip(batch, predictions, strict=True):
        use(k, prediction)
        bar.advance()


def _matches_between(alignment: Alignment, pair_list: Sequence[Pair], pair_stages: PairStages) -> int:
    """Number of matches of the pairs that the alignment kept."""
    names = alignment.names
    dropped = alignment.dropped_names
    return sum(
        len(verified.matches)
        for k, (i, j) in enumerate(pair_list)
        if alignment.registered[i] and alignment.registered[j] and (names[i], names[j]) not in dropped
        if (verified := pair_stages.load_matches(k)).rejected is None
    )


def _check_object(job: Job, views: Sequence[View]) -> None:
    """Raise `InputError` when the object asked for is not in at least two images."""
    with_object = [view.name for view in views if view.mask.any()]
    object_id = job.config.ingest.object_id
    if len(with_object) >= 2 or object_id is None:
        return
    labels = ingest.explain_missing_object(job.sources[0], object_id)
    where = f"only in {with_object[0]}" if with_object else "in none of the masks"
    raise InputError(f"object {object_id} is {where}; {job.sources[0].name}: {labels}; choose another --object")


@dataclass
class _Solver:
    """The stages after calibration: which artifacts are wanted, and making them."""

    pipeline: Pipeline
    views: list[View]
    pairs: list[Pair]
    pair_stages: PairStages
    end: int
    go_on: Callable[[RunResult], bool]

    @property
    def config(self) -> Config:
        return self.pipeline.job.config

    @cached_property
    def keys(self) -> dict[str, Key]:
        """Keys of the stages that have one artifact a run."""
        aligned = align3d.key(self.views, self.pairs, self.pair_stages.match_keys, self.config)
        refined = refine2d.key(aligned, self.config)
        final = triangulate.key(refined, self.pipeline.job.sources, self.config)
        return {"align3d": aligned, "refine2d": refined, "triangulate": final}

    def run(self) -> tuple[Alignment | None, Reconstruction | None]:
        """Work through the stages up to the end; what exists further on makes what comes before unnecessary."""
        compute = self._to_compute()
        self._pair_work(compute)
        self.pair_stages.free_memory()
        if any(self.pipeline.counts[name].computed for name in ("forward", "match")):
            self.pipeline.trim()  # otherwise nothing has grown, and what is here may be another attempt, half done
        if self.end < STAGE_NAMES.index("align3d"):
            return None, None
        if "align3d" in compute:
            self._require_alignment()
        if self.end == STAGE_NAMES.index("align3d"):
            return self._explain(self.aligned.alignment), None
        refined = self._whole("refine2d", self._refine, 1, "round")
        if self.end == STAGE_NAMES.index("refine2d") or not self._goes_on(refined):
            return self._explain(refined), None
        self.pipeline.trim()
        final = self._whole("triangulate", partial(self._triangulate, refined), 1, "sweep")
        self.pipeline.trim()
        return self._explain(refined), self._explain(final)

    def _goes_on(self, refined: Alignment) -> bool:
        """Whether to triangulate."""
        return self.go_on(self.pipeline._result(self.views, self.pairs, self._explain(refined), None))

    @cached_property
    def aligned(self) -> AlignedViews:
        """What align3d made, read or computed when a later stage first asks for it."""
        return self._whole("align3d", self._align, 2 * len(self.pairs), "pair")

    def _align(self, bar: Bar) -> AlignedViews:
        def load_prediction(k: int) -> PairPrediction:
            bar.advance()  # every pair is read twice
            return self.pair_stages.load_prediction(k)

        return align3d.run(self.views, self.pairs, load_prediction, self.pair_stages.load_matches, self.config)

    def _refine(self, bar: Bar) -> Alignment:
        return refine2d.run(self.views, self.aligned, self.pairs, self.pair_stages.load_matches, self.config)

    def _require_alignment(self) -> AlignedViews:
        """`aligned`, now."""
        return self.aligned

    def _triangulate(self, refined: Alignment, bar: Bar) -> Reconstruction:
        job = self.pipeline.job
        found = triangulate.run(
            self.views, (self.aligned, refined), self.pairs, self.pair_stages.load_matches, job.load_source, self.config
        )
        pictures = (ingest.picture_digest(source, self.config.ingest.object_id) for source in job.sources)
        orientations = tuple(view.orientation for view in self.views)
        return replace(found, photographs=tuple(pictures), orientations=orientations)

    def _to_compute(self) -> set[str]:
        """Which of the last three stages have to be computed."""
        names = [name for name in ("align3d", "refine2d", "triangulate") if STAGE_NAMES.index(name) <= self.end]
        compute: set[str] = set()
        for name in reversed(names):
            wanted = name == names[-1] or bool(compute) or self.pipeline.store.has(self.keys[name])
            if wanted and not self.pipeline.is_present(self.keys[name]):
                compute.add(name)
        return compute

    def _whole(self, name: str, compute: Callable[[Bar], Any], total: int, unit: str) -> Any:
        """Artifact of a stage that has one a run; `compute` may move the bar."""
        with self.pipeline.reporter.stage(name, total, unit) as bar:
            with watched_by(bar):
                value = self.pipeline.ensure(self.keys[name], partial(compute, bar))
            bar.finish()
            self.pipeline._finish(bar)
        return value

    def _pair_work(self, compute: set[str]) -> None:
        """Predict and match what is missing of what the stages to `compute` read, the alignment's predictions and
        everybody's matches; what is there but damaged is always made again."""
        pipeline, work = self.pipeline, self.pair_stages
        every = range(len(self.pairs))
        predicting = "align3d" in compute or self.end <= STAGE_NAMES.index("match")
        matching = bool(compute) or self.end == STAGE_NAMES.index("match")

        def lacking(keys: Sequence[Key], wanted: Collection[int]) -> set[int]:
            return {
                k
                for k, key in enumerate(keys)
                if (k in wanted or pipeline.store.has(key)) and not pipeline.is_present(key)
            }

        no_match = lacking(work.match_keys, every if matching else ())
        no_forward = lacking(work.forward_keys, every if predicting else no_match)
        for name, keys, missing in (("forward", work.forward_keys, no_forward), ("match", work.match_keys, no_match)):
            present = sum(pipeline.store.has(key) for k, key in enumerate(keys) if k not in missing)
            pipeline.counts[name].reused += present
        if no_forward:
            pipeline._encode(work, sorted({n for k in no_forward for n in self.pairs[k]}))
            with pipeline.reporter.stage("forward", len(no_forward), "pair") as bar:
                matched: set[int] = set()
                self._predict(sorted(no_forward), partial(self._keep, no_match, matched), bar)
                pipeline._finish(bar)
            no_match -= matched
        if no_match:
            with pipeline.reporter.stage("match", len(no_match), "pair") as bar:
                again = [k for k in sorted(no_match) if not self._match_stored(k, bar)]
                self._predict(again, self._match_fresh, bar)
                pipeline._finish(bar)

    def _predict(self, missing: Sequence[int], use: Callable[[int, PairPrediction], None], bar: Bar) -> None:
        """Predict pairs and `use` each prediction.

        What comes in batches comes from an accelerator: one batch is packed, matched and written in the background
        while the next one is computed.
        """
        pending: Future[None] | None = None
        with ThreadPoolExecutor(1) as background:
            for batch in self.pair_stages.batches(missing):
                predictions = self.pair_stages.predict(batch)
                if pending is not None:
                    pending.result()
                    pending = None
                if len(batch) == 1:
                    _use_all(batch, predictions, use, bar)
                else:
                    pending = background.submit(_use_all, batch, predictions, use, bar)
            if pending is not None:
                pending.result()

    def _keep(self, wanted: set[int], matched: set[int], k: int, prediction: PairPrediction) -> None:
        """Store the prediction of pair k, and match it if it is of the `wanted` ones; `matched` grows by what was."""
        also_matched = self.pair_stages.keep(k, prediction, k in wanted)
        self._note("forward", self.pair_stages.forward_keys[k])
        if also_matched:
            self._note("match", self.pair_stages.match_keys[k])
            matched.add(k)

    def _match_stored(self, k: int, bar: Bar) -> bool:
        """Match pair k from what the cache keeps of its prediction; False where that is not enough."""
        if self.pair_stages.match_stored(k) is None:
            return False
        self._note("match", self.pair_stages.match_keys[k])
        bar.advance()
        return True

    def _match_fresh(self, k: int, prediction: PairPrediction) -> None:
        """Match a prediction that was made again for its descriptors; the stored one stays as it is."""
        self.pair_stages.match_fresh(k, prediction)
        self._note("match", self.pair_stages.match_keys[k])

    def _note(self, name: str, key: Key) -> None:
        count = self.pipeline.counts[name]
        count.computed += 1
        self.pipeline._done.add(key.digest)
        if count.computed % _TRIM_EVERY == 0:
            self.pipeline.trim_early()

    def _explain(self, result: Any) -> Any:
        """The result with a better reason for views that do not show the object asked for."""
        object_id = self.config.ingest.object_id
        empty = [n for n, view in enumerate(self.views) if not view.mask.any()]
        if not empty or object_id is None:
            return result
        reasons = list(result.reasons)
        for n in empty:
            reasons[n] = ingest.explain_missing_object(self.pipeline.job.sources[n], object_id)
        return replace(result, reasons=tuple(reasons))
