"""A pair predictor that knows the truth of a synthetic scene and errs as much as it is told to.

It behaves like a network that saw the whole photographs: the background comes with high confidence, descriptors that
match strongly, and the geometry of the background's own motion, which for a rotating object contradicts the object's.
`OracleNoise.background` = "masked" gives the minimal confidence there instead, as a predictor that honours masks does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from sparse_ga.geometry import cameras, transforms
from sparse_ga.products import Array, PairMatches, PairPrediction, Pointmap, View
from sparse_ga.synthetic.scene import SyntheticScene

_DESCRIPTOR_ERROR = 0.5  # px in space for each px that the nearest descriptor is off in the image; measured
_VIEWS_KEPT = 32
_ROOM_SHIFT = 40.0  # keeps descriptors of the room apart from those of the object


@dataclass(frozen=True)
class OracleNoise:
    """How a prediction departs from the truth; standard deviations, drawn anew for every pair and direction."""

    depth: float = 0.02
    """Smooth relative depth error over an image."""
    rotation_deg: float = 2.0
    """Rotation of the second view's points in the first's frame."""
    translation: float = 0.01
    """Shift of the second view's points in the first's frame, relative to their distance."""
    scale: float = 0.05
    """Relative scale of both point maps of a direction."""
    match_px: float = 0.7
    """Error of a match per coordinate."""
    pivot: Literal["object", "camera"] = "object"
    """What the rotation error turns the points about."""
    background: Literal["confident", "masked"] = "confident"
    """confident: the background is predicted as surely as the object; masked: minimal confidence, no matches."""
    wrong_share: float = 0.0
    """Share of the pairs that are predicted wrong."""
    wrong_kind: Literal["lookalike", "shuffled"] = "lookalike"
    """Both turn the object by 40 degrees or more; lookalike: matches agree with that; shuffled: with nothing."""


@dataclass(frozen=True, eq=False)
class _Truth:
    """What the oracle keeps of one view: exact points in both frames, flattened over pixels."""

    in_cam: Array  # (H * W, 3) float32, camera frame: object where there is one, background elsewhere
    mask: Array  # (H * W,) bool
    pixel: Array  # (H * W,) float32, size of a pixel at the point, scene units
    slant: Array  # (H * W,) float32, cosine between surface and ray, on the object
    room: Array  # (H * W,) bool, the pixel shows a textured background
    place: Array  # (H * W, 3) float32, what descriptors describe: the object's frame, or the room's moved aside
    height: int
    width: int


class OraclePredictor:
    """Implements `PairPredictor` on the views of a `SyntheticScene`; deterministic for each seed and pair of names.

    `matching` "descriptors" gives 24-channel unit descriptors for the match stage to match; "matches" gives noisy
    correspondences by reprojection with visibility instead, every `match_spacing` pixels, which is far cheaper.
    """

    def __init__(
        self,
        scene: SyntheticScene,
        seed: int = 0,
        noise: OracleNoise | None = None,
        matching: Literal["descriptors", "matches"] = "descriptors",
        match_spacing: int = 8,
    ) -> None:
        self.scene, self.seed, self.noise = scene, seed, noise or OracleNoise()
        self.matching, self.match_spacing = matching, match_spacing
        told = f"oracle 1|{scene.digest}|{seed}|{self.noise}|{matching}|{match_spacing}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:32]
        self._index = {name: n for n, name in enumerate(scene.names)}
        self._truth: dict[int, _Truth] = {}
        rng = np.random.default_rng([seed, 11])
        wavelength = np.geomspace(0.06, 1.5, 24)  # diameters; short ones locate, long ones tell sides apart
        directions = rng.normal(size=(24, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self._frequency = (2 * np.pi * directions / wavelength[:, None]).astype(np.float32)  # (24, 3)
        self._phase = rng.uniform(0, 2 * np.pi, 24).astype(np.float32)

    def is_wrong(self, name_i: str, name_j: str) -> bool:
        """Whether the prediction of this pair, in either order, is one of the wrong ones."""
        return bool(self._rng("wrong", *sorted((name_i, name_j))).random() < self.noise.wrong_share)

    def predict(self, view_i: View, view_j: View) -> PairPrediction:
        """The noisy truth of a pair; swapping the views swaps the prediction and changes nothing else.

        Raises `ValueError` for a view that is not of the scene, or not at the rendered resolution.
        """
        i, j = self._find(view_i), self._find(view_j)
        i_in_i, j_in_i = self._direction(i, j)
        j_in_j, i_in_j = self._direction(j, i)
        matches = self._matches(i, j) if self.matching == "matches" else None
        return PairPrediction(i_in_i, j_in_i, j_in_j, i_in_j, matches)

    def _find(self, view: View) -> int:
        if view.name not in self._index:
            raise ValueError(f"view {view.name!r} is not of this scene; its views are {', '.join(self._index)}")
        n = self._index[view.name]
        if view.image.shape != self.scene.images[n].shape:
            raise ValueError(
                f"view {view.name!r} is {view.width}x{view.height}, the oracle knows it at the rendered size "
                f"{self.scene.cameras.sizes[n]}; render the scene at the working size"
            )
        return n

    def _rng(self, *key: object) -> np.random.Generator:
        told = "|".join(map(str, (self.seed, *key)))
        return np.random.default_rng(np.frombuffer(hashlib.sha256(told.encode()).digest(), np.uint32))

    def _true(self, n: int) -> _Truth:
        if n not in self._truth:
            if len(self._truth) >= _VIEWS_KEPT:
                self._truth.pop(next(iter(self._truth)))
            self._truth[n] = _make_truth(self.scene, n)
        return self._truth[n]

    def _object_motion(self, i: int, j: int) -> Array:
        """i_from_j (4, 4) of the object, false for a wrong pair."""
        poses, names = self.scene.world_from_cam, self.scene.names
        turn = np.eye(4)
        if self.is_wrong(names[i], names[j]):
            first, second = sorted((names[i], names[j]))
            rng = self._rng("turn", first, second)
            axis = np.array([0, 0, 1.0]) + 0.2 * rng.normal(size=3)
            angle = np.radians(rng.uniform(40, 180)) * (1 if names[i] == first else -1)
            turn = transforms.make(transforms.exp_so3(angle * axis / np.linalg.norm(axis)), np.zeros(3))
        return transforms.inverse(poses[i]) @ turn @ poses[j]

    def _background_motion(self, i: int, j: int) -> Array:
        """i_from_j (4, 4) of the background."""
        poses = self.scene.room_from_cam
        return transforms.inverse(poses[i]) @ poses[j]

    def _direction(self, i: int, j: int) -> tuple[Pointmap, Pointmap]:
        """Point maps of views i and j in camera i's frame: what one pass of a two-headed decoder gives."""
        names = self.scene.names
        rng = self._rng("direction", names[i], names[j])
        scale = float(np.exp(self.noise.scale * rng.normal()))
        one, two = self._true(i), self._true(j)
        points_i = one.in_cam * self._depth_factor(one, rng)[:, None]  # (P, 3)
        points_j = two.in_cam * self._depth_factor(two, rng)[:, None]
        object_motion = self._pose_error(one, rng) @ self._object_motion(i, j)
        moved = transforms.apply(object_motion.astype(np.float32), points_j)
        back = transforms.apply(self._background_motion(i, j).astype(np.float32), points_j)
        points_j = np.where(two.mask[:, None], moved, back)
        overlap = self._overlap(i, j)
        return (
            self._pointmap(i, points_i * scale, self._confidence(one, 1.0, rng), (i, j)),
            self._pointmap(j, points_j * scale, self._confidence(two, overlap, rng), (i, j)),
        )

    def _depth_factor(self, truth: _Truth, rng: np.random.Generator) -> Array:
        """Relative depth error of each pixel (P,), smooth over the image, mean one."""
        return np.exp(self.noise.depth * _smooth_field(rng, truth.height, truth.width)).astype(np.float32)

    def _pose_error(self, truth: _Truth, rng: np.random.Generator) -> Array:
        """Transform (4, 4) in camera i's frame that the second view's object suffers."""
        rotation = transforms.exp_so3(rng.normal(size=3) * np.radians(self.noise.rotation_deg) / np.sqrt(3))
        center = truth.in_cam[truth.mask].mean(0) if truth.mask.any() else np.array([0, 0, 1.0])
        shift = rng.normal(size=3) * self.noise.translation / np.sqrt(3) * np.linalg.norm(center)
        pivot = center if self.noise.pivot == "object" else np.zeros(3)
        return transforms.make(rotation, pivot - rotation @ pivot + shift)

    def _overlap(self, i: int, j: int) -> float:
        """Share of view j's object that view i sees, from one pixel in 64, in the geometry the oracle tells."""
        _, _, seen = self._correspond(j, i, 8)
        return float(seen.mean()) if len(seen) else 0.0

    def _correspond(self, i: int, j: int, spacing: int) -> tuple[Array, Array, Array]:
        """Object pixels (M, 2) of view i on a grid, where they land in view j (M, 2), whether they are seen (M,)."""
        one, two, names = self._true(i), self._true(j), self.scene.names
        rows, cols = np.mgrid[spacing // 2 : one.height : spacing, spacing // 2 : one.width : spacing]
        flat = (rows * one.width + cols).ravel()
        flat = flat[one.mask[flat]]
        in_j = transforms.apply(self._object_motion(j, i), one.in_cam[flat].astype(float))
        target, front = cameras.project(self.scene.intrinsics[j], in_j)
        cell = np.round(target).astype(int)
        inside = front & (cell >= 0).all(-1) & (cell[:, 0] < two.width) & (cell[:, 1] < two.height)
        at = np.where(inside, cell[:, 1] * two.width + cell[:, 0], 0)
        tolerance = 0.006 + 1.5 * two.pixel[at] / np.maximum(two.slant[at], 0.1)  # depth varies within a pixel
        same = np.abs(two.in_cam[at, 2] - in_j[:, 2]) < (0.1 if self.is_wrong(names[i], names[j]) else tolerance)
        xy = np.stack([flat % one.width, flat // one.width], -1).astype(float)
        return xy, target, inside & two.mask[at] & same

    def _confidence(self, truth: _Truth, overlap: float, rng: np.random.Generator) -> Array:
        """MASt3R-like confidence (P,): 1 is the minimum; falls on slanted surfaces and without overlap."""
        wave = _smooth_field(rng, truth.height, truth.width)
        on_object = 1 + np.exp(1.8 + 0.35 * wave) * np.clip(truth.slant, 0.02, 1) * (0.05 + 0.95 * min(1, 2 * overlap))
        confident = self.noise.background == "confident"
        elsewhere = np.where(truth.room & confident, 1 + np.exp(2.3 + 0.35 * wave), 1.0)
        return np.where(truth.mask, on_object, elsewhere).astype(np.float32)

    def _pointmap(self, n: int, points: Array, confidence: Array, direction: tuple[int, int]) -> Pointmap:
        truth = self._true(n)
        shape = (truth.height, truth.width)
        descriptors = descriptor_confidence = None
        if self.matching == "descriptors":
            descriptors = self._descriptors(n, direction).reshape(*shape, -1)
            descriptor_confidence = np.sqrt(confidence).reshape(shape)
        return Pointmap(
            points.reshape(*shape, 3).astype(np.float32), confidence.reshape(shape), descriptors, descriptor_confidence
        )

    def _descriptors(self, n: int, direction: tuple[int, int]) -> Array:
        """Unit descriptors (P, 24): random Fourier features of the 3D point, seen with an error of some pixels."""
        truth = self._true(n)
        first, second = direction
        names = self.scene.names
        rng = self._rng("descriptors", names[first], names[second], names[n])
        error = rng.standard_normal(truth.place.shape, np.float32)
        error *= (_DESCRIPTOR_ERROR * self.noise.match_px * np.where(truth.mask, 1, 0.3) * truth.pixel)[:, None]
        error += truth.place
        if n == second and self.is_wrong(names[first], names[second]):  # described where the false motion puts it
            pose = self.scene.world_from_cam
            turn = pose[first] @ self._object_motion(first, second) @ transforms.inverse(pose[second])
            moved = transforms.apply(turn.astype(np.float32), error[truth.mask])
            error[truth.mask] = moved if self.noise.wrong_kind == "lookalike" else rng.permutation(moved)
        features = np.cos(error @ self._frequency.T + self._phase)  # (P, 24)
        return features / np.sqrt(np.einsum("pc,pc->p", features, features))[:, None]

    def _matches(self, i: int, j: int) -> PairMatches:
        """Correspondences of a pair with noise in both images; the same for both orders but for the swap."""
        names = self.scene.names
        if names[i] > names[j]:
            return self._matches(j, i).swap()
        rng = self._rng("matches", names[i], names[j])
        xy_i, xy_j, seen = self._correspond(i, j, self.match_spacing)
        back_j, back_i, back_seen = self._correspond(j, i, self.match_spacing)
        xy_i = np.concatenate([xy_i[seen], back_i[back_seen]])  # (M, 2)
        xy_j = np.concatenate([xy_j[seen], back_j[back_seen]])
        confidence = np.exp(0.4 * rng.normal(size=len(xy_i))) * 4  # (M,)
        error = rng.normal(size=(2, *xy_i.shape)) * self.noise.match_px / np.sqrt(2)
        xy_i, xy_j = xy_i + error[0], xy_j + error[1]
        if self.noise.wrong_kind == "shuffled" and self.is_wrong(names[i], names[j]):
            xy_j = xy_j[rng.permutation(len(xy_j))]
        if self.noise.background == "confident":
            room_i, room_j = self._room_matches(i, j)
            xy_i, xy_j = np.concatenate([xy_i, room_i]), np.concatenate([xy_j, room_j])
            confidence = np.concatenate([confidence, np.full(len(room_i), 12.0)])
        return PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), confidence.astype(np.float32))

    def _room_matches(self, i: int, j: int) -> tuple[Array, Array]:
        """Background pixels (M, 2) of view i on a grid and where they are in view j (M, 2), exact."""
        one, two = self._true(i), self._true(j)
        step = 2 * self.match_spacing
        rows, cols = np.mgrid[step // 2 : one.height : step, step // 2 : one.width : step]
        flat = (rows * one.width + cols).ravel()
        flat = flat[one.room[flat]]
        in_j = transforms.apply(self._background_motion(j, i), one.in_cam[flat].astype(float))
        target, front = cameras.project(self.scene.intrinsics[j], in_j)
        keep = front & (target >= 0).all(-1) & (target <= (two.width - 1, two.height - 1)).all(-1)
        return np.stack([flat % one.width, flat // one.width], -1)[keep].astype(float), target[keep]


def _make_truth(scene: SyntheticScene, n: int) -> _Truth:
    mask = scene.masks[n]
    depth = np.where(mask, scene.depth[n], scene.background_depth[n])
    rays = cameras.unproject_depth(scene.intrinsics[n], np.ones(mask.shape))
    featureless = depth <= 0  # a plain background: put it far behind the object, with no confidence
    far = 3 * float(np.linalg.norm(scene.world_from_cam[n][:3, 3]))
    in_cam = rays * np.where(featureless, far, depth)[..., None]
    gx, gy = np.gradient(in_cam, axis=1), np.gradient(in_cam, axis=0)  # (H, W, 3)
    normal = np.cross(gx, gy)
    toward = (normal * rays).sum(-1) / np.linalg.norm(rays, axis=-1)
    slant = np.abs(toward) / np.maximum(np.linalg.norm(normal, axis=-1), 1e-12)
    pixel = depth / scene.intrinsics[n, 0, 0]
    flat = mask.ravel()
    on_object = transforms.apply(scene.world_from_cam[n], in_cam.reshape(-1, 3))
    in_room = transforms.apply(scene.room_from_cam[n], in_cam.reshape(-1, 3)) + _ROOM_SHIFT
    return _Truth(
        in_cam.reshape(-1, 3).astype(np.float32),
        flat,
        pixel.ravel().astype(np.float32),
        slant.ravel().astype(np.float32),
        ~(flat | featureless.ravel()),
        np.where(flat[:, None], on_object, in_room).astype(np.float32),
        *mask.shape,
    )


def _smooth_field(rng: np.random.Generator, height: int, width: int) -> Array:
    """Low-frequency field (H * W,) float32 of zero mean and unit deviation: five knots along the short side."""
    knots = np.ceil(5 * np.array([height, width]) / min(height, width)).astype(int)
    coarse = rng.standard_normal(tuple(knots), np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return ((field - field.mean()) / max(float(field.std()), 1e-6)).ravel()
