"""Looking at photographs and masks before any long work: what will spoil a reconstruction, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from sparse_ga.config import AUTO, OFF, Config
from sparse_ga.errors import InputError
from sparse_ga.products import Array, View
from sparse_ga.stages import ingest
from sparse_ga.stages.ingest import Source

Severity = Literal["error", "warning", "note"]
ORDER = {"error": 0, "warning": 1, "note": 2}

_MIN_DETAIL = 0.55  # of the set's median
_MIN_FINENESS = 0.85
_MAX_CLIPPED = 0.25
_AREA_RATIO = 0.35
_MIN_MATCHES = 20
_WHOLE = 0.95  # of the photograph
_INVERTED_BORDER = 0.7
_TWELVE_BITS = 16  # what the largest value of 12 bits becomes where 16 are 255
_MANY_VIEWS = 24
_NEIGHBOURS = 3
_THUMBNAIL = 24
_SAME_LEVELS = 1.5


@dataclass(frozen=True)
class Finding:
    """Something about a photograph, or about the whole set (`name` empty), and what to do about it."""

    severity: Severity
    name: str
    text: str


@dataclass(frozen=True, eq=False)
class PhotographFacts:
    """What the checks measure of one photograph."""

    view: View
    area: float  # share of the photograph that is object
    border: float  # share of the mask's outline box that lies on the border of the photograph
    inverted: bool  # whether the mask is what lies around an object
    detail: float  # contrast of fine detail on the object, in units of its contrast
    fineness: float  # contrast of fine against coarser detail
    clipped: float  # share of the object that is black or white
    brightest: int  # level in the whole photograph
    thumbnail: Array  # (T, T) float32, grey levels around the object


def inspect(sources: Sequence[Source], config: Config, advance: Callable[[], None]) -> list[Finding]:
    """Findings about a set of photographs, worst first; `advance` is called once a photograph."""
    facts: list[PhotographFacts] = []
    findings: list[Finding] = []
    for source in sources:
        try:
            view = ingest.run(source, config)
            if view.mask.any():
                facts.append(measure(view))
            else:
                findings.append(Finding("warning", source.name, "the object is not in this image; it will be left out"))
        except InputError as error:
            findings.append(Finding("error", source.name, str(error)))
        advance()
    findings += _mask_findings(facts) + _picture_findings(facts) + _duplicates(facts) + _set_findings(facts, config)
    return sorted(findings, key=lambda finding: ORDER[finding.severity])


def measure(view: View) -> PhotographFacts:
    """Measure one photograph on its object."""
    grey = cv2.cvtColor(view.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    inner = cv2.erode(view.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    inner = inner if inner.any() else view.mask
    fine, coarse = cv2.GaussianBlur(grey, (0, 0), 0.8), cv2.GaussianBlur(grey, (0, 0), 3.0)
    high, low = float(np.abs(grey - fine)[inner].mean()), float(np.abs(fine - coarse)[inner].mean())
    levels = grey[view.mask]
    scale = float(view.working_from_source[0, 0])
    seen = view.mask[view.photographed]  # padding lies beyond the photograph's border
    edge = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
    return PhotographFacts(
        view=view,
        area=float(view.mask.sum()) / (view.source_size[0] * view.source_size[1] * scale**2),
        border=float(edge.sum()) / max(1.0, 4 * float(np.sqrt(view.mask.sum()))),
        inverted=_looks_inverted(view),
        detail=high / max(float(levels.std()), 1.0),
        fineness=high / max(low, 1e-3),
        clipped=float(((levels <= 4) | (levels >= 251)).mean()),
        brightest=int(view.image.max()),
        thumbnail=_thumbnail(grey, view.mask),
    )


def _looks_inverted(view: View) -> bool:
    """Whether the mask covers most of the photograph's border and leaves out most of its middle."""
    rows, columns = np.flatnonzero(view.mask.any(1)), np.flatnonzero(view.mask.any(0))
    box = view.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # the working image may be padded
    scale = float(view.working_from_source[0, 0])
    if box.size < _WHOLE * view.source_size[0] * view.source_size[1] * scale**2:
        return False
    height, width = box.shape
    middle = box[height // 3 : height - height // 3, width // 3 : width - width // 3]
    edge = np.concatenate([box[0], box[-1], box[:, 0], box[:, -1]])
    return float(edge.mean()) > _INVERTED_BORDER and float(middle.mean()) < 0.5


def _thumbnail(grey: Array, mask: Array) -> Array:
    """Grey levels (T, T) of the box around the object, mid-grey outside the mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = np.where(mask[box], grey[box], 127.0).astype(np.float32)
    return cv2.resize(inside, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)


def _mask_findings(facts: Sequence[PhotographFacts]) -> list[Finding]:
    findings = []
    areas = np.array([item.area for item in facts])
    for n, item in enumerate(facts):
        name = item.view.name
        near = np.delete(areas, n)[max(0, n - _NEIGHBOURS) : n + _NEIGHBOURS]
        usual = float(np.median(near)) if len(near) else item.area
        if item.area > 0.995:
            findings.append(Finding("warning", name, "everything is foreground; give a mask of the object"))
        elif item.inverted:
            text = "the mask covers the border and leaves out the middle; if it is inverted, make the object white"
            findings.append(Finding("warning", name, text))
        elif item.area < _AREA_RATIO * usual:
            share = item.area / usual
            findings.append(
                Finding("warning", name, f"the mask is {share:.0%} of its neighbours' size; is it complete?")
            )
        elif item.area > usual / _AREA_RATIO:
            times = item.area / usual
            findings.append(
                Finding("warning", name, f"the mask is {times:.1f} times its neighbours' size; is it right?")
            )
        elif item.area < 0.02:
            findings.append(Finding("note", name, f"the object fills {item.area:.1%} of the image; go nearer or crop"))
        if item.area <= 0.995 and not item.inverted and item.border > 0.03:
            findings.append(Finding("note", name, "the object is cut off by the border of the photograph"))
    return findings


def _picture_findings(facts: Sequence[PhotographFacts]) -> list[Finding]:
    findings = []
    usual = np.median([(item.detail, item.fineness) for item in facts], axis=0) if facts else np.zeros(2)
    dark = bool(facts) and max(item.brightest for item in facts) <= _TWELVE_BITS
    if dark:
        text = (
            "all photographs are nearly black; if they hold 10 or 12 bits in files of 16, multiply all of them by one "
            "number (12 bits: by 16)"
        )
        findings.append(Finding("warning", "", text))
    for item in facts:
        if item.detail < _MIN_DETAIL * usual[0] and item.fineness < _MIN_FINENESS * usual[1]:
            findings.append(Finding("warning", item.view.name, "blurred compared with the others; leave it out"))
        if item.clipped > _MAX_CLIPPED and not dark:
            findings.append(
                Finding(
                    "warning", item.view.name, f"{item.clipped:.0%} of the object is pure black or white; expose anew"
                )
            )
    return findings


def _duplicates(facts: Sequence[PhotographFacts]) -> list[Finding]:
    """Photographs that show the same as an earlier one."""
    findings = []
    stack = np.array([item.thumbnail.ravel() for item in facts])  # (N, T T)
    for n in range(1, len(facts)):
        difference = np.abs(stack[:n] - stack[n]).mean(1)
        earlier = int(difference.argmin())
        if difference[earlier] < _SAME_LEVELS:
            other = facts[earlier].view.name
            findings.append(Finding("warning", facts[n].view.name, f"shows the same as {other}; leave one out"))
    return findings


def _pairs_to_match(count: int) -> list[tuple[int, int]]:
    """All pairs of few views, the nearest in order of many."""
    reach = count if count <= _MANY_VIEWS else _NEIGHBOURS + 1
    return [(i, j) for i in range(count) for j in range(i + 1, min(count, i + reach))]


def _set_findings(facts: Sequence[PhotographFacts], config: Config) -> list[Finding]:
    """Overlap by feature matches, and photographs of several sizes."""
    findings = []
    sizes = {item.view.source_size for item in facts}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        findings.append(Finding("note", "", f"photographs of several sizes ({listed}) are taken for several cameras"))
    if len(facts) < 2:
        return findings
    best = best_match_counts([item.view for item in facts])
    severity, advice = _on_few_matches(int((best < _MIN_MATCHES).sum()), len(facts), config)
    for item, count in zip(facts, best, strict=True):
        if count < _MIN_MATCHES:
            text = f"at most {count} features match any other photograph; {advice}"
            findings.append(Finding(severity, item.view.name, text))
    text = f"a typical photograph shares {int(np.median(best))} features with the one most like it"
    return [*findings, Finding("note", "", text)]


def _on_few_matches(weak: int, photographs: int, config: Config) -> tuple[Severity, str]:
    """How bad it is that SIFT finds little on `weak` of the photographs, and what to do: a run may ask the network."""
    from sparse_ga.attempts import is_worth_another

    descriptors = config.forward.descriptors
    if config.predictor != "classical":
        return "warning", "add views in between, or try another predictor"
    if descriptors == OFF or (descriptors == AUTO and not is_worth_another(weak, photographs)):
        return "warning", "add views in between, or ask the descriptor network: --set forward.descriptors=packaged"
    return "note", "SIFT finds little here, and the descriptor network will be asked"


def best_match_counts(views: Sequence[View]) -> Array:
    """Number of features (N,) that each view shares with the view most like it."""
    from sparse_ga.predictors.classical import ClassicalPredictor, match_root_sift

    predictor = ClassicalPredictor()
    features = [predictor.encode(view) for view in views]
    best = np.zeros(len(views), int)
    for i, j in _pairs_to_match(len(views)):
        _, _, reliable = match_root_sift(features[i]["sift"], features[j]["sift"], predictor.settings.ratio)
        best[[i, j]] = np.maximum(best[[i, j]], int(reliable.sum()))
    return best
