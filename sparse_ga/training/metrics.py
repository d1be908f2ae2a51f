"""A metrics log of one JSON object a line, and a page of plots drawn from it."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path

_WIDTH, _HEIGHT, _MARGIN = 520, 220, 44
_COLOURS = ("#1f6fb2", "#c2570c", "#2e8540", "#8a3ffc", "#b3261e", "#5f6b7a")

Record = dict[str, float]


class MetricsLog:
    """Appends records to a JSONL file; records beyond the step a run resumes from are dropped."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_log(path) if r["step"] <= resume_step] if path.is_file() else []
        path.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")

    def add(self, record: Record) -> None:
        """Append one record, which holds its `step`."""
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[Record]:
    """All whole records of a log; a line cut off by a kill is skipped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _polyline(points: list[tuple[float, float]], frame: tuple[float, float, float, float], colour: str) -> str:
    low_x, high_x, low_y, high_y = frame
    drawn = []
    for x, y in points:
        u = _MARGIN + (x - low_x) / max(high_x - low_x, 1e-12) * (_WIDTH - 2 * _MARGIN)
        v = _HEIGHT - _MARGIN - (y - low_y) / max(high_y - low_y, 1e-12) * (_HEIGHT - 2 * _MARGIN)
        drawn.append(f"{u:.1f},{v:.1f}")
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(drawn)}"/>'


def _plot(title: str, points: list[tuple[float, float]], colour: str) -> str:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    frame = (min(xs), max(xs), min(ys), max(ys))
    label = '<text x="{:.0f}" y="{:.0f}" font-size="11" text-anchor="{}">{}</text>'
    texts = [
        label.format(_WIDTH / 2, 16, "middle", f"{html.escape(title)}: last {ys[-1]:.4g}"),
        label.format(_MARGIN - 4, _HEIGHT - _MARGIN, "end", f"{frame[2]:.3g}"),
        label.format(_MARGIN - 4, _MARGIN + 4, "end", f"{frame[3]:.3g}"),
        label.format(_MARGIN, _HEIGHT - _MARGIN + 16, "middle", f"{frame[0]:.0f}"),
        label.format(_WIDTH - _MARGIN, _HEIGHT - _MARGIN + 16, "middle", f"{frame[1]:.0f}"),
    ]
    body = _polyline(points, frame, colour) + "".join(texts)
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" style="font-family:sans-serif">{body}</svg>'


def write_plots(log: Path, page: Path) -> None:
    """Write an HTML page (no scripts) with one plot over the steps for every metric in the log."""
    records = read_log(log)
    names = sorted({name for record in records for name in record} - {"step"})
    plots = []
    for index, name in enumerate(names):
        points = [(r["step"], r[name]) for r in records if name in r and math.isfinite(r[name])]
        if points:
            plots.append(_plot(name, points, _COLOURS[index % len(_COLOURS)]))
    page.write_text(f"<!doctype html><meta charset=utf-8><title>training</title>{''.join(plots)}", encoding="utf-8")
