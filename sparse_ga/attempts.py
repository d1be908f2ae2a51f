"""A run, and a second one where the first leaves photographs out: with the descriptor network beside SIFT.

The network costs as much time again, and helps only where SIFT finds too little. So a job of the classical predictor
with `forward.descriptors` auto begins without it, and asks it when of the photographs that show the object one in
twenty or more are not tied in, or so loosely that their rotation is uncertain by more than half a degree: a chain of
weak pairs drifts. Both attempts go through the same cache; what ties in more photographs, or as many more firmly, is
kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sparse_ga.config import make_config
from sparse_ga.pipeline import Pipeline, RunResult
from sparse_ga.predictors.classical import ClassicalPredictor, ClassicalSettings
from sparse_ga.predictors.loading import AUTO, OFF, PACKAGED, load_describer
from sparse_ga.products import Array
from sparse_ga.progress import Reporter
from sparse_ga.stages.job import Job
from sparse_ga.store import Store

_ONE_IN = 20  # one photograph in this many, or more, left out or loose: a second attempt
_LOOSE_DEG = 0.5  # standard deviation of a photograph's rotation


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
        if alignment is None or len(alignment.uncertainty_deg) == 0:
            return 0
        return int((self._registered & (alignment.uncertainty_deg > _LOOSE_DEG)).sum())

    @property
    def suffices(self) -> bool:
        """Whether fewer than one in twenty of the photographs that show the object are left out or loose."""
        return not is_worth_another(self.left_out + self.loose, int(self._shows.sum()))

    def is_better(self, other: Attempt) -> bool:
        """Whether fewer photographs are left out than in another attempt, or as few and fewer are loose."""
        return (self.left_out, self.loose) < (other.left_out, other.loose)

    @property
    def _shows(self) -> Array:
        """Photographs (N,) bool that show the object."""
        return np.array([view.mask.any() for view in self.result.views], bool)

    @property
    def _registered(self) -> Array:
        """Photographs (N,) bool that are tied in, all of them where that is not known yet."""
        for product in (self.result.reconstruction, self.result.alignment):
            if product is not None:
                return product.registered
        return np.ones(len(self.result.views), bool)


class Attempts:
    """Runs a job on a store, once or twice; `seconds` is how long each stage took that computed anything."""

    def __init__(self, store: Store, reporter: Reporter, begin: Callable[[Job], None] = lambda job: None) -> None:
        """`begin` is told the job of every attempt before it starts, and of the one that stands after a worse one."""
        self.store, self.reporter, self.begin = store, reporter, begin
        self.seconds: dict[str, float] = {}

    def run(self, job: Job, first: str | None = None, last: str | None = None) -> Attempt:
        """The better attempt at stages `first` to `last`; in its job `forward.descriptors` is no longer auto.

        Raises as `Pipeline.run` does.
        """
        predictor = job.predictor
        if job.config.forward.descriptors != AUTO or not isinstance(predictor, ClassicalPredictor):
            return self._attempt(job, first, last)
        if predictor.describer is not None:
            return self._attempt(job, first, last)
        alone = self._attempt(_decided(job, OFF, predictor.settings), first, last)
        if alone.suffices:
            return alone
        self.reporter.info(
            f"of {len(job.sources)} photographs {alone.left_out} are left out and {alone.loose} loosely tied in; once "
            "more, with the descriptor network where SIFT finds little"
        )
        both = self._attempt(_decided(job, PACKAGED, predictor.settings), first, last)
        if both.is_better(alone):
            return both
        self.reporter.info("the descriptor network does no better; the first result stands")
        self.begin(alone.job)
        return alone

    def _attempt(self, job: Job, first: str | None, last: str | None) -> Attempt:
        self.begin(job)
        result = Pipeline(job, self.store, self.reporter).run(first, last)
        for name, count in result.counts.items():
            if count.computed:
                self.seconds[name] = self.seconds.get(name, 0.0) + count.seconds
        return Attempt(job, result)


def _decided(job: Job, descriptors: str, settings: ClassicalSettings) -> Job:
    """The job with that descriptor network."""
    config = make_config({"forward": {"descriptors": descriptors}}, job.config)
    return replace(job, predictor=ClassicalPredictor(settings, load_describer(config.forward)), config=config)
