"""The report as one HTML file that opens offline: same reconstruction and details, same bytes.

Nothing in it depends on time or place but how long the stages took, which is in one element, filled in by the script:
`without_times` takes it out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import plotly.graph_objects as go

from sparse_ga.alignment.components import about_groups
from sparse_ga.products import Reconstruction
from sparse_ga.report import figures
from sparse_ga.report.assets import PAGE, SCRIPT, STYLE
from sparse_ga.report.details import PairPicture, PairRecord, ReportDetails
from sparse_ga.report.pictures import REGISTERED_RGB, UNREGISTERED_RGB, data_uri, outlined, pair_image
from sparse_ga.store import write_atomically

_HIGH_ERROR_PX = 2.0
_MANY_IN_A_LIST = 12


def write_report(reconstruction: Reconstruction, path: Path | str, details: ReportDetails | None = None) -> Path:
    """Write the report of a reconstruction to `path`; raises `OSError` or `OutputError` where that is impossible."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_report(reconstruction, details or ReportDetails()).encode("utf-8", "replace"))
    return path


def render_report(reconstruction: Reconstruction, details: ReportDetails) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    r = reconstruction
    sections = [
        _headline(r),
        _warnings(r, details),
        _scene(r),
        _images(r, details),
        _pairs(r, details),
        _matches(r, details),
        _residuals(r, details),
        _cameras(r),
        _stages(details),
    ]
    body = "\n".join(section for section in sections if section)
    return Template(PAGE).substitute(style=STYLE, plotly=get_plotlyjs(), script=SCRIPT, body=body)


def _figure(figure: go.Figure, name: str) -> str:
    """Place of a figure, and its data as JSON that cannot end the script element."""
    data = figure.to_json().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (
        f'<div class="figure" id="{name}"></div>'
        f'<script type="application/json" class="figure-data" data-for="{name}">{data}</script>'
    )


def _section(title: str, name: str, content: str, note: str = "") -> str:
    paragraph = f'<p class="note">{note}</p>' if note else ""
    return f'<section id="{name}"><h2>{title}</h2>{paragraph}{content}</section>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """A table; the cells are escaped here."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    identity = f' id="{name}"' if name else ""
    return f'<div class="scroll"><table{identity}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


# ---------------------------------------------------------------- what came out, and what went wrong


def _headline(r: Reconstruction) -> str:
    count = int(r.registered.sum())
    facts = [(f"{count} of {len(r.names)}", "images registered", "" if count == len(r.names) else "bad")]
    if count:
        focal = float(np.median(r.intrinsics[r.registered, 0, 0]))
        facts.append((f"{focal:,.0f} px", "focal length (median)", ""))
    if len(r.track_points):
        facts.append((f"{r.report.mean_reprojection_px:.2f} px", "mean reprojection error", ""))
        facts.append((f"{len(r.track_points):,}", f"tracks of {r.report.mean_track_length:.1f} views", ""))
    facts.append((f"{len(r.points):,}", "points", "" if len(r.points) else "bad"))
    facts.append((f"{len(r.mesh.faces):,}", "triangles", ""))
    cells = "".join(
        f'<div class="fact {state}"><b>{value}</b><span>{what}</span></div>' for value, what, state in facts
    )
    return f'<header><h1>Reconstruction of {len(r.names)} photographs</h1><div class="facts">{cells}</div></header>'


def warnings_of(r: Reconstruction, details: ReportDetails) -> list[str]:
    """What a person should know before trusting the result, the gravest first."""
    missing = len(r.names) - int(r.registered.sum())
    found = []
    if missing == len(r.names):
        found.append("no image could be registered; the reasons are with the images below")
    elif missing:
        found.append(f"{missing} of {len(r.names)} images are not registered; reasons and remedies are with the images")
    found += about_groups(r.reasons)
    if r.registered.any() and not len(r.points):
        found.append("there is no dense point cloud")
    if r.report.mean_reprojection_px > _HIGH_ERROR_PX:
        found.append(f"the mean reprojection error is high: {r.report.mean_reprojection_px:.1f} px")
    if not r.report.bundle_adjustment.startswith(("kept", "off")):
        found.append(f"bundle adjustment: {r.report.bundle_adjustment}; the cameras from before it are used")
    return [*found, *r.report.notes, *details.warnings]


def _warnings(r: Reconstruction, details: ReportDetails) -> str:
    found = warnings_of(r, details)
    masks = r.report.inconsistent_masks
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    if masks:
        inner = "".join(f"<li>{escape(text)}</li>" for text in masks)
        count = len({text.split(": ")[0] for text in masks})
        summary = f"{count} masks disagree with the other views; they were mended by what those show"
        items += f"<li><details><summary>{summary}</summary><ul>{inner}</ul></details></li>"
    if not items:
        return '<section id="warnings" class="fine"><h2>Warnings</h2><p>None.</p></section>'
    return f'<section id="warnings" class="warn"><h2>Warnings</h2><ul>{items}</ul></section>'


def _scene(r: Reconstruction) -> str:
    if not (len(r.points) or len(r.track_points) or r.registered.any()):
        return _section("The result in 3D", "scene", '<p class="empty">There is nothing to show.</p>')
    units = "arbitrary units" if r.report.units == "arbitrary" else "the units of the given poses"
    size = f" The object is {r.report.diameter:.3g} across, in {units}." if r.report.diameter > 0 else ""
    note = "Drag to turn, wheel to zoom, right button to move; a click in the legend hides or shows." + size
    panels = [_figure(figures.scene_figure(r), "scene-figure")]
    if len(r.points) or len(r.track_points):
        panels.append(_figure(figures.object_figure(r), "object-figure"))
    content = '<div class="two">' + "".join(f"<div>{panel}</div>" for panel in panels) + "</div>"
    return _section("The result in 3D", "scene", content, note)


# ---------------------------------------------------------------- images


def _images(r: Reconstruction, details: ReportDetails) -> str:
    cards = "".join(_card(r, details, n) for n in range(len(r.names)))
    note = "The outline is the mask at the resolution the predictor sees; green: registered, red: not."
    return _section("Images", "images", f'<div class="gallery">{cards}</div>', note)


def _card(r: Reconstruction, details: ReportDetails, n: int) -> str:
    done, name = bool(r.registered[n]), escape(r.names[n])
    image = details.views[n].image if details.views else None
    rgb = REGISTERED_RGB if done else UNREGISTERED_RGB
    picture = data_uri(outlined(image, r.masks.mask(n), rgb))
    state = "registered" if done else "not registered"
    lines = [f'<span class="badge {"good" if done else "bad"}">{state}</span>']
    if not done:
        lines.append(f'<p class="reason">{escape(r.reasons[n])}</p>')
        advice = details.advice[n] if details.advice else ""
        lines += [f'<p class="advice">{escape(advice)}</p>'] if advice else []
    lines += [f"<p>{text}</p>" for text in _numbers(r, details, n)]
    return (
        f'<figure class="card"><img src="{picture}" alt="{name}" loading="lazy">'
        f'<figcaption><b title="{name}">{name}</b>{"".join(lines)}</figcaption></figure>'
    )


def _numbers(r: Reconstruction, details: ReportDetails, n: int) -> list[str]:
    """What is known of one view, a line each."""
    of_view = [one for one in details.pairs if n in (one.i, one.j)]
    lines = [f"{sum(one.used for one in of_view)} of {len(of_view)} pairs used"] if of_view else []
    if r.registered[n]:
        seen = int((r.tracks.view_index == n).sum())
        lines.append(f"{seen:,} track points seen")
        if len(details.uncertainty_deg) > n and details.uncertainty_deg[n] > 0:
            lines.append(f"rotation known to ±{details.uncertainty_deg[n]:.2g}°")
    return lines


# ---------------------------------------------------------------- pairs


def _pairs(r: Reconstruction, details: ReportDetails) -> str:
    if not details.pairs:
        return _section("Pairs", "pairs", '<p class="empty">Nothing is known of any pair.</p>')
    records = details.pairs
    used = sum(one.used for one in records)
    dropped = [one for one in records if one.dropped]
    matrix = _figure(figures.pair_matrix(records, r.names), "matrix-figure")
    graph = _figure(figures.pair_graph(records, r.names, r.registered), "graph-figure")
    note = (
        f"{len(records)} pairs were compared, {used} used, {len(dropped)} dropped (pink, dotted). "
        "Point at a cell or a line for its numbers and reasons."
    )
    content = f'<div class="two"><div>{matrix}</div><div>{graph}</div></div>'
    return _section("Pairs", "pairs", content + _dropped_table(r, dropped) + _pair_table(r, records), note)


def _pair_row(r: Reconstruction, one: PairRecord) -> list[str]:
    matches = "unknown" if one.matches is None else str(one.matches)
    return [r.names[one.i], r.names[one.j], matches, f"{one.score:.2f}", one.model, one.dropped or "used"]


_PAIR_HEAD = ("first", "second", "matches", "score", "model", "state")


def _dropped_table(r: Reconstruction, dropped: Sequence[PairRecord]) -> str:
    if not dropped:
        return ""
    rows = [_pair_row(r, one) for one in sorted(dropped, key=lambda one: (-(one.matches or 0), one.i, one.j))]
    opened = " open" if len(rows) <= _MANY_IN_A_LIST else ""
    table = _table((*_PAIR_HEAD[:5], "dropped because"), rows, "dropped-pairs")
    return f"<details{opened}><summary>{len(rows)} dropped pairs and why</summary>{table}</details>"


def _pair_table(r: Reconstruction, records: Sequence[PairRecord]) -> str:
    rows = [_pair_row(r, one) for one in sorted(records, key=lambda one: (not one.used, -one.score, one.i, one.j))]
    return f"<details><summary>all {len(rows)} pairs, best first</summary>{_table(_PAIR_HEAD, rows)}</details>"


_KINDS = {
    "best": "Best pairs",
    "worst": "Worst pairs that were used",
    "dropped": "Dropped pairs with the most matches",
}


def _matches(r: Reconstruction, details: ReportDetails) -> str:
    blocks = []
    for kind, title in _KINDS.items():
        pictures = [one for one in details.pictures if one.kind == kind]
        if pictures:
            inner = "".join(_pair_card(r, details, one) for one in pictures)
            blocks.append(f'<h3>{title}</h3><div class="pair-row">{inner}</div>')
    return _section("Matches", "matches", "".join(blocks)) if blocks else ""


def _pair_card(r: Reconstruction, details: ReportDetails, picture: PairPicture) -> str:
    one = picture.record
    title = f"{escape(r.names[one.i])} – {escape(r.names[one.j])}"
    numbers = f"{one.matches} matches, score {one.score:.2f}"
    reason = f"<p>{escape(one.dropped)}</p>" if one.dropped else ""
    source = data_uri(pair_image(details.views, picture), 75)
    return (
        f'<figure class="pair"><img src="{source}" alt="{title}" loading="lazy">'
        f"<figcaption><b>{title}</b><p>{numbers}</p>{reason}</figcaption></figure>"
    )


# ---------------------------------------------------------------- numbers of the solvers


def _residuals(r: Reconstruction, details: ReportDetails) -> str:
    panels = []
    if any(len(one.lengths_px) for one in details.residuals):
        figure = _figure(figures.residual_figure(details.residuals), "residual-figure")
        panels.append(f"<h3>Matches, before and after each stage</h3>{figure}")
    if len(r.track_errors):
        panels.append(f"<h3>Tracks at the end</h3>{_figure(figures.track_figure(r), 'track-figure')}")
        panels.append(f"<h3>Track lengths</h3>{_figure(figures.track_length_figure(r), 'length-figure')}")
    if details.convergence:
        figure = _figure(figures.convergence_figure(details.convergence), "convergence-figure")
        panels.append(
            f"<h3>Convergence</h3>{figure}"
            '<p class="note">The cost jumps where the loss is narrowed or pairs change.</p>'
        )
    if not panels:
        return ""
    notes = [f"bundle adjustment: {r.report.bundle_adjustment}"]
    if r.report.rms_after_px > 0:
        notes.append(f"RMS {r.report.rms_before_px:.3f} px before it, {r.report.rms_after_px:.3f} px after")
    if r.report.rejected_tracks:
        notes.append("tracks rejected: " + ", ".join(r.report.rejected_tracks))
    grid = '<div class="two">' + "".join(f"<div>{panel}</div>" for panel in panels) + "</div>"
    return _section("Residuals and convergence", "residuals", grid, escape("; ".join(notes)) + ".")


def _cameras(r: Reconstruction) -> str:
    """One row for all views of the same intrinsics and size."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for n in map(int, np.flatnonzero(r.registered)):
        k, (width, height) = r.intrinsics[n], r.source_sizes[n]
        numbers = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], width, height]
        groups.setdefault(tuple(round(float(value), 2) for value in numbers), []).append(r.names[n])
    if not groups:
        return ""
    rows = []
    for (fx, fy, cx, cy, width, height), names in groups.items():
        field_deg = 2 * np.degrees(np.arctan2(width / 2, fx))
        who = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        off = f"({cx - (width - 1) / 2:+.1f}, {cy - (height - 1) / 2:+.1f})"
        rows.append(
            [
                who,
                f"{width:.0f} x {height:.0f}",
                f"{fx:.1f}",
                f"{fy:.1f}",
                f"{cx:.1f}, {cy:.1f}",
                off,
                f"{field_deg:.1f}°",
            ]
        )
    head = (
        "views",
        "size, px",
        "focal x",
        "focal y",
        "principal point",
        "off the centre by",
        "horizontal field of view",
    )
    return _section(
        "Cameras", "cameras", _table(head, rows), "In pixels of the photographs; integers are pixel centres."
    )


_TIMES = '<script type="application/json" id="stage-seconds">'


def _times(details: ReportDetails) -> str:
    """How long the stages took, for the script to put into their table; an element of its own."""
    seconds = {one.stage: round(one.seconds, 1) for one in details.stages if one.seconds is not None}
    if not seconds:
        return ""
    note = '<p class="note">Times are of the run that last computed anything in a stage.</p>'
    return f"{note}{_TIMES}{json.dumps(seconds)}</script>"


def without_times(page: str) -> str:
    """A report's page without the times of its stages: equal for equal inputs."""
    return re.sub(f"{re.escape(_TIMES)}[^<]*</script>", "", page)


def _stages(details: ReportDetails) -> str:
    rows = [[one.stage, f"{one.artifacts:,}", f"{one.size_bytes / 1e6:.2f} MB", ""] for one in details.stages]
    total = sum(one.size_bytes for one in details.stages)
    content = ""
    if rows:
        rows.append(["all", "", f"{total / 1e6:.2f} MB", ""])
        content = _table(("stage", "artifacts", "in the cache", "time"), rows, "stage-table")
        content += _times(details)
    settings = "".join(f"<li><code>{escape(text)}</code></li>" for text in details.settings)
    content += f"<h3>Settings</h3><ul>{settings or '<li>all at their defaults</li>'}</ul>"
    return _section("Stages, cache and settings", "stages", content)
