"""A run, and a second one where the first leaves photographs out: with the descriptor network beside SIFT.

The network costs as much time again, and helps only where SIFT finds too little. So a job of the classical predictor
with `forward.descriptors` auto begins without it, and asks it when of the photographs that show the object one in
twenty or more are not tied in, or so loosely that their rotation is uncertain by more than half a degree: a chain of
weak pairs drifts. Both attempts go through the same cache, as far as the refined alignment; what ties in more
photographs, or as many more firmly on the whole, stands and is finished. Which one that is stays in the cache: the
same job again goes straight to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.config import AUTO, OFF, PACKAGED, make_config
from sparse_ga.errors import InputError
from sparse_ga.pipeline import Pipeline, RunResult
from sparse_ga.predictors.classical import ClassicalPredictor
from sparse_ga.predictors.loading import load_describer
from sparse_ga.products import Array
from sparse_ga.progress import Reporter
from sparse_ga.stages import calibrate, ingest, pairs
from sparse_ga.stages.base import Stage, versions_digest
from sparse_ga.stages.job import STAGE_NAMES, STAGES, Job, stage_position
from sparse_ga.store import Key, Store, digest_of

_ONE_IN = 20  # one photograph in this many, or more, left out or loose: a second attempt
_LOOSE_DEG = 0.5  # standard deviation of a photograph's rotation
_FIRMER = 0.9  # share of another attempt's looseness that is less than that

_DECIDES, _LAST = "refine2d", STAGE_NAMES[-1]
_BEFORE = (*STAGES[: stage_position(_DECIDES) + 1], calibrate.FROM_RECONSTRUCTION)
_DECISION = Stage(  # raise the version when another attempt would stand
    "attempts", 2, "run", tuple(stage.name for stage in _BEFORE), tuple(path for s in _BEFORE for path in s.config)
)


def is_worth_another(doubtful: int, photographs: int) -> bool:
    """Whether as many as one in twenty of the photographs are doubtful: left out, or loosely tied in."""
    return doubtful > 0 and doubtful * _ONE_IN >= photographs


@dataclass(frozen=True, eq=False)
class Attempt:
    """A job as it was run, and what came out."""

    job: Job
    result: RunResult

    @property
    def left_out(self) -> int:
        """Number of photographs that show the object and are not tied in; 0 before an alignment says so."""
        return int((self._shows & ~self._registered).sum())

    @property
    def loose(self) -> int:
        """Number of photographs whose rotation is uncertain by more than half a degree."""
        alignment = self.result.alignment
        return 0 if alignment is None else int((alignment.rotation_sigma_deg > _LOOSE_DEG).sum())

    @property
    def suffices(self) -> bool:
        """Whether fewer than one in twenty of the photographs that show the object are left out or loose."""
        return not is_worth_another(self.left_out + self.loose, int(self._shows.sum()))

    @property
    def looseness_deg(self) -> float:
        """Root mean square of the registered rotations' standard deviations, degrees; 0 where nothing is known of them
        yet, infinite where they could not be refined."""
        alignment = self.result.alignment
        if alignment is None:
            return 0.0
        if not alignment.status.startswith("ok") or not alignment.registered.any():
            return float("inf")
        return float(np.sqrt((alignment.rotation_sigma_deg**2).mean()))

    def is_better(self, other: Attempt) -> bool:
        """Whether fewer photographs are left out than in another attempt, or as few and they are tied in more firmly.

        How many of them are loose would not tell: where all are, one result may be sound and the other folded.
        """
        if self.left_out != other.left_out:
            return self.left_out < other.left_out
        return self.looseness_deg < _FIRMER * other.looseness_deg

    @property
    def _shows(self) -> Array:
        """Photographs (N,) bool that show the object."""
        return np.array([view.mask.any() for view in self.result.views], bool)

    @property
    def _registered(self) -> Array:
        """Photographs (N,) bool that are tied in, all of them where that is not known yet."""
        alignment = self.result.alignment
        return np.ones(len(self.result.views), bool) if alignment is None else alignment.registered


class Attempts:
    """Runs a job on a store, once or twice; `seconds` is how long each stage took that computed anything."""

    def __init__(self, store: Store, reporter: Reporter, begin: Callable[[Job], None] = lambda job: None) -> None:
        """`begin` is told the job of every attempt before it starts, and of the one that stands before it goes on."""
        self.store, self.reporter, self.begin = store, reporter, begin
        self.seconds: dict[str, float] = {}

    def run(self, job: Job, first: str | None = None, last: str | None = None) -> Attempt:
        """The better attempt at stages `first` to `last`; in its job `forward.descriptors` is no longer auto.

        A predictor that is not `ClassicalPredictor` itself, or has a descriptor network, runs once and as it is.
        Raises as `Pipeline.run` does.
        """
        if not _is_open(job):
            return self._attempt(job, first, last)
        standing = self._recorded(job) if first in (None, _LAST) else None
        if standing is not None:
            return self._attempt(standing, first, last)
        alone = self._attempt(_decided(job, OFF), first, last, lambda attempt: attempt.suffices)
        if alone.suffices:
            return alone
        return self._finish(self._better(job, alone, first, last), first, last)

    def _better(self, job: Job, alone: Attempt, first: str | None, last: str | None) -> Attempt:
        """What stands of the attempt without the descriptor network and one with it, which goes no further than needed
        to decide; the decision is recorded."""
        try:
            job = _decided(job, PACKAGED)
        except InputError as error:
            self.reporter.warn(f"no second attempt with the descriptor network, the first result stands: {error}")
            return alone
        self.reporter.info(
            f"of {len(job.sources)} photographs {alone.left_out} are left out and {alone.loose} loosely tied in; once "
            "more, with the descriptor network where SIFT finds little"
        )
        until = _DECIDES if last in (None, _LAST) else last
        both = self._attempt(job, None if first == _LAST else first, until, spared=alone.job)
        better = both.is_better(alone)
        if until == _DECIDES:
            self.store.put(_key(job), PACKAGED if better else OFF)
        if not better:
            self.reporter.info("the descriptor network does no better; the first result stands")
        return both if better else alone

    def _finish(self, attempt: Attempt, first: str | None, last: str | None) -> Attempt:
        """The attempt that stands, with the last stage if that is asked for."""
        if last not in (None, _LAST):
            self.begin(attempt.job)
            return attempt
        result = self._attempt(attempt.job, None if first is None else _LAST, last).result
        counts = attempt.result.counts | {_LAST: result.counts[_LAST]}
        return Attempt(attempt.job, replace(result, counts=counts))

    def _recorded(self, job: Job) -> Job | None:
        """The attempt that stands, where an earlier run of the same job has found out."""
        if not any(self.store.entries(_DECISION.name)):
            return None  # without loading the descriptor network
        try:
            both = _decided(job, PACKAGED)
        except InputError:
            return None
        choice = self.store.get(_key(both))
        return both if choice == PACKAGED else _decided(job, OFF) if choice == OFF else None

    def _attempt(
        self,
        job: Job,
        first: str | None,
        last: str | None,
        go_on: Callable[[Attempt], bool] = lambda attempt: True,
        spared: Job | None = None,
    ) -> Attempt:
        """An attempt, which ends with the refined alignment unless it is to `go_on`; see `Pipeline` for `spared`."""
        self.begin(job)
        pipeline = Pipeline(job, self.store, self.reporter, spared=spared)
        result = pipeline.run(first, last, lambda found: go_on(Attempt(job, found)))
        for name, count in result.counts.items():
            if count.computed:
                self.seconds[name] = self.seconds.get(name, 0.0) + count.seconds
        return Attempt(job, result)


def _is_open(job: Job) -> bool:
    """Whether it is still open if a descriptor network is asked; nobody else's predictor is replaced."""
    predictor = job.predictor
    plain = type(predictor) is ClassicalPredictor and predictor.describer is None
    return plain and job.config.forward.descriptors == AUTO


def _decided(job: Job, descriptors: str) -> Job:
    """The job of a `ClassicalPredictor` with that descriptor network; raises `InputError` where it cannot be loaded."""
    assert isinstance(job.predictor, ClassicalPredictor)
    config = make_config({"forward": {"descriptors": descriptors}}, job.config)
    predictor = ClassicalPredictor(job.predictor.settings, load_describer(config.forward))
    return replace(job, predictor=predictor, config=config)


def _key(job: Job) -> Key:
    """Key of the decision for or against `job`, the attempt with the descriptor network.

    It is made of all that both attempts start from, and of none of their artifacts: these may be gone.
    """
    inputs = {
        "photographs": digest_of(*(ingest.key(source, job.config).digest for source in job.sources)),
        "pairs": pairs.key((), job.config).digest,
        "predictor": job.predictor.fingerprint,
        "stages": versions_digest(_BEFORE),
    }
    return _DECISION.key("decision", job.config, inputs)
