"""Everything that happens once a pair: predict, match, keep, and load again, one pair at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from sparse_ga.config import Config
from sparse_ga.pairs import Pair
from sparse_ga.predictors.base import BatchPredictor, FeaturePredictor, Features, MemoryPredictor, PairPredictor
from sparse_ga.products import PairPrediction, VerifiedMatches, View
from sparse_ga.stages import encode, forward, match
from sparse_ga.stages.packing import PackedPrediction, unpack_prediction
from sparse_ga.store import Store

_FEATURE_MEMORY_BYTES = 1 << 30
_MOST_AT_ONCE = 64


class FeatureCache:
    """Features of views: the most recent in memory, all in the store."""

    def __init__(self, store: Store, views: Sequence[View], predictor: PairPredictor, config: Config) -> None:
        self._store = store
        self._views = views
        self._predictor = predictor
        self._recent: OrderedDict[int, Features] = OrderedDict()
        self._size = 0
        self.keys = (
            [encode.key(view, predictor, config) for view in views] if isinstance(predictor, FeaturePredictor) else []
        )

    def __call__(self, n: int) -> Features:
        """Features of view n, computed if the store has none."""
        if n in self._recent:
            self._recent.move_to_end(n)
            return self._recent[n]
        features = self._store.get(self.keys[n])
        if features is None:
            features = self.compute(n)
        self._recent[n] = features
        self._size += _size(features)
        while self._size > _FEATURE_MEMORY_BYTES and len(self._recent) > 2:
            self._size -= _size(self._recent.popitem(last=False)[1])
        return features

    def forget(self) -> None:
        """Let go of what is in memory; the store keeps it."""
        self._recent.clear()
        self._size = 0

    def compute(self, n: int) -> Features:
        """Encode view n and store the result."""
        assert isinstance(self._predictor, FeaturePredictor)
        features = encode.run(self._views[n], self._predictor)
        self._store.put(self.keys[n], features)
        return features


def _size(features: Features) -> int:
    return sum(array.nbytes for array in features.values())


class PairStages:
    """The forward and match stages of one set of views; what is missing when it is loaded is computed then."""

    def __init__(
        self, store: Store, views: Sequence[View], pairs: Sequence[Pair], predictor: PairPredictor, config: Config
    ) -> None:
        self.views = views
        self.pairs = pairs
        self.features = FeatureCache(store, views, predictor, config)
        self.forward_keys = [forward.key(views[i], views[j], predictor, config) for i, j in pairs]
        self.match_keys = [match.key(key, config) for key in self.forward_keys]
        self._store = store
        self._predictor = predictor
        self._config = config

    def free_memory(self) -> None:
        """Let go of what is in memory to be faster; what is still asked for later is read or made again."""
        self.features.forget()
        if isinstance(self._predictor, MemoryPredictor):
            self._predictor.free_memory()

    def batches(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """The `chosen` pairs in the batches in which the predictor takes them; one at a time if it takes no batches."""
        rest = list(chosen)
        while rest:
            count = 1
            if isinstance(self._predictor, BatchPredictor):
                ahead = [self.pairs[k] for k in rest[:_MOST_AT_ONCE]]
                views_i, views_j = [self.views[i] for i, _ in ahead], [self.views[j] for _, j in ahead]
                count = self._predictor.pairs_at_once(views_i, views_j)
            yield rest[:count]
            rest = rest[count:]

    def predict(self, batch: Sequence[int]) -> list[PairPrediction]:
        """Predictions of a batch of pairs, made now."""
        if len(batch) == 1 or not isinstance(self._predictor, BatchPredictor):
            return [self._predict_one(k) for k in batch]
        left, right = [self.pairs[k][0] for k in batch], [self.pairs[k][1] for k in batch]
        return forward.run_batch(
            [self.views[n] for n in left],
            [self.views[n] for n in right],
            self._predictor,
            [self.features(n) for n in left],
            [self.features(n) for n in right],
        )

    def _predict_one(self, k: int) -> PairPrediction:
        i, j = self.pairs[k]
        view_i, view_j = self.views[i], self.views[j]
        return forward.run(view_i, view_j, self._predictor, lambda: self.features(i), lambda: self.features(j))

    def _pack(self, k: int, prediction: PairPrediction) -> PackedPrediction:
        i, j = self.pairs[k]
        return forward.pack(prediction, self.views[i], self.views[j], self._config)

    def _unpack(self, k: int, packed: PackedPrediction) -> PairPrediction:
        i, j = self.pairs[k]
        return unpack_prediction(packed, self.views[i], self.views[j])

    def compute_forward(self, k: int, also_match: bool) -> bool:
        """Predict pair k, and `keep` it."""
        return self.keep(k, self._predict_one(k), also_match)

    def keep(self, k: int, prediction: PairPrediction, also_match: bool) -> bool:
        """Store the prediction of pair k; whether it was matched, too: if asked, or if its descriptors are not kept."""
        packed = self._pack(k, prediction)
        also_match = also_match or not (packed.can_match or self._store.has(self.match_keys[k]))
        if also_match:
            self._match(k, packed, prediction)
        self._store.put(self.forward_keys[k], packed)
        return also_match

    def match_stored(self, k: int) -> VerifiedMatches | None:
        """Match pair k from the stored prediction and store the result; None where that needs a new prediction."""
        packed = self._store.get(self.forward_keys[k])
        return self._match(k, packed, None) if packed is not None and packed.can_match else None

    def match_fresh(self, k: int, prediction: PairPrediction) -> VerifiedMatches:
        """Match a `prediction` of pair k, made again for its descriptors, and store the result."""
        return self._match(k, self._pack(k, prediction), prediction)

    def compute_match(self, k: int) -> VerifiedMatches:
        """Match pair k and store the result, from the stored prediction where that is enough."""
        matches = self.match_stored(k)
        return matches if matches is not None else self.match_fresh(k, self._predict_one(k))

    def _match(self, k: int, packed: PackedPrediction, fresh: PairPrediction | None) -> VerifiedMatches:
        """Matches of pair k. What the cache keeps is matched in its packed form, so that it never matters whether the
        prediction was just made or read again; only descriptors that are not kept are matched fresh."""
        i, j = self.pairs[k]
        prediction = fresh if fresh is not None and not packed.can_match else self._unpack(k, packed)
        matches = match.run(prediction, self.views[i], self.views[j], self._config)
        self._store.put(self.match_keys[k], matches)
        return matches

    def load_prediction(self, k: int) -> PairPrediction:
        """The prediction of pair k, as the cache keeps it."""
        packed = self._store.get(self.forward_keys[k])
        if packed is None:
            packed = self._pack(k, self._predict_one(k))
            self._store.put(self.forward_keys[k], packed)
        return self._unpack(k, packed)

    def load_matches(self, k: int) -> VerifiedMatches:
        """The matches of pair k."""
        matches = self._store.get(self.match_keys[k])
        return matches if matches is not None else self.compute_match(k)
