"""Figures of a report, as plotly figures: pure functions of the products.

Names of files are shown as text: plotly reads markup in labels, so they are escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from sparse_ga.geometry.transforms import apply
from sparse_ga.products import Array, Reconstruction
from sparse_ga.report.details import Convergence, PairRecord, StageResiduals

_MOST_POINTS = 40_000
_POINTS_IN_SCENE = 10_000
_MOST_SPARSE = 5_000
_BLUE, _GREEN, _RED, _ORANGE, _GREY = "#2d6cdf", "#1f9d55", "#d64545", "#d9822b", "#9aa5b1"
_STAGE_COLOURS = {"align3d": _ORANGE, "refine2d": _BLUE, "triangulate": _GREEN}
_SCORE_BINS = 5
_SCORE_SCALE = ((217, 226, 236), (13, 59, 120))  # of the worst and of the best score
_LEGEND = {"x": 1, "xanchor": "right", "y": 1, "bgcolor": "rgba(255,255,255,0.7)"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def label(name: str, most: int = 18) -> str:
    """A file's name without its ending, short enough for an axis, escaped."""
    stem = PurePosixPath(name).stem or name
    short = stem if len(stem) <= most else f"{stem[: most // 2 - 1]}…{stem[-(most // 2) :]}"
    return html.escape(short, quote=False)


def _text(name: str) -> str:
    return html.escape(name, quote=False)


def _layout(figure: go.Figure, height: int, **axes: str) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        font={"family": _FONT, "size": 12},
        xaxis_title=axes.get("x"),
        yaxis_title=axes.get("y"),
        hoverlabel={"align": "left", "font": {"family": _FONT}},
    )
    return figure


# ---------------------------------------------------------------- the result in 3D


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """How the world is shown: upright, with the object in the middle, in units of the scene's half side."""

    display_from_world: Array  # (4, 4), a similarity
    object_size: float  # the object's diameter in these units


def scene_frame(reconstruction: Reconstruction) -> SceneFrame:
    """A frame in which the cameras' mean upward direction is z and everything lies in the cube from -1 to 1."""
    r = reconstruction
    points = r.points if len(r.points) else r.track_points
    centres = r.world_from_cam[r.registered, :3, 3]
    every = np.concatenate([points.astype(float), centres])
    if not len(every):
        return SceneFrame(np.eye(4), 1.0)
    middle = np.median(points, 0).astype(float) if len(points) else centres.mean(0)
    distance = np.abs(points - middle).max(1) if len(points) else np.zeros(0)
    inner = float(np.quantile(distance, 0.98)) if len(distance) else 0.0
    outer = float(np.linalg.norm(centres - middle, axis=1).max()) if len(centres) else inner
    half = max(1.1 * outer, inner, 1e-9)
    display = np.eye(4)
    display[:3, :3] = upright_rotation(r) / half
    display[:3, 3] = -display[:3, :3] @ middle
    return SceneFrame(display, 2 * inner / half)


def upright_rotation(reconstruction: Reconstruction) -> Array:
    """A rotation (3, 3) that takes the mean of the cameras' upward directions to z."""
    known = reconstruction.world_from_cam[reconstruction.registered]
    up = -known[:, :3, 1].sum(0) if len(known) else np.array([0.0, -1.0, 0.0])
    if np.linalg.norm(up) < 0.1 * max(len(known), 1):  # the cameras are rolled every way
        up = -known[0, :3, 1]
    up = up / np.linalg.norm(up)
    helper = np.array([1.0, 0, 0]) if abs(up[0]) < 0.9 else np.array([0, 1.0, 0])
    side = np.cross(helper, up)
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(up, side), up])


@dataclass(frozen=True, eq=False)
class Palette:
    """Colours of many points by index: plotly takes an index far faster than a colour, and it is smaller."""

    index: Array  # (P,) uint8
    colours: tuple[str, ...]  # at least two, "#rrggbb"

    @property
    def scale(self) -> list[list]:
        """As plotly's colour scale, from 0 to 1."""
        last = len(self.colours) - 1
        return [[k / last, colour] for k, colour in enumerate(self.colours)]


def make_palette(colors: Array) -> Palette:
    """The colours (P, 3) uint8 as indices into at most 256 of them (median cut)."""
    if not len(colors):
        return Palette(np.zeros(0, np.uint8), ("#000000", "#000000"))
    image = Image.fromarray(np.ascontiguousarray(colors[None], np.uint8))
    reduced = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    index = np.asarray(reduced)[0]  # (P,)
    table = np.array(reduced.getpalette(), np.uint8).reshape(-1, 3)[: int(index.max()) + 1]
    colours = ["#" + bytes(row).hex() for row in table]
    return Palette(index, tuple(colours * 2 if len(colours) == 1 else colours))


@dataclass(frozen=True)
class CloudStyle:
    """How a cloud is shown."""

    name: str
    most: int  # points
    size: float  # px


def _cloud(frame: SceneFrame, points: Array, colors: Array, style: CloudStyle) -> go.Scatter3d:
    """At most `style.most` points, spread over the order they are in; what lies far off the object is left out."""
    shown = apply(frame.display_from_world, points.astype(float))
    inside = np.flatnonzero((np.abs(shown) <= max(1.0, frame.object_size)).all(1))
    chosen = inside[np.linspace(0, len(inside) - 1, min(style.most, len(inside))).round().astype(int)]
    xyz, palette = shown[chosen].astype(np.float32), make_palette(colors[chosen])
    marker = {"size": style.size, "color": palette.index, "colorscale": palette.scale, "line": {"width": 0}}
    return go.Scatter3d(
        x=xyz[:, 0],
        y=xyz[:, 1],
        z=xyz[:, 2],
        mode="markers",
        marker={**marker, "cmin": 0, "cmax": len(palette.colours) - 1, "showscale": False},
        hoverinfo="skip",
        name=style.name,
    )


def frustum_lines(reconstruction: Reconstruction, depth: float) -> Array:
    """Outlines (8 V, 3) of the registered cameras' frusta in the world frame, NaN rows between them.

    `depth` is the distance of the image plane from the centre, world units. A peak marks the upper side.
    """
    r = reconstruction
    outlines = [np.zeros((0, 3))]
    for n in map(int, np.flatnonzero(r.registered)):
        width, height = r.source_sizes[n] - 0.5
        xy = np.array([[-0.5, -0.5], [width, -0.5], [width, height], [-0.5, height]])
        k = r.intrinsics[n]
        corners = np.concatenate([(xy - k[:2, 2]) / [k[0, 0], k[1, 1]], np.ones((4, 1))], 1) * depth  # (4, 3)
        peak = corners[:2].mean(0) * [1, 1.35, 1]
        centre = np.zeros(3)
        path = [corners[0], peak, *corners[1:], corners[0], corners[1]]
        path += [centre, corners[0], centre, corners[2], centre, corners[3]]
        outlines.append(np.concatenate([apply(r.world_from_cam[n], np.array(path)), np.full((1, 3), np.nan)]))
    return np.concatenate(outlines)


def _camera_traces(reconstruction: Reconstruction, frame: SceneFrame) -> list[go.Scatter3d]:
    """Frusta, and a marker with the name at each centre."""
    r = reconstruction
    known = np.flatnonzero(r.registered)
    if not len(known):
        return []
    scale = float(np.cbrt(np.linalg.det(frame.display_from_world[:3, :3])))
    lines = apply(frame.display_from_world, frustum_lines(r, 0.13 / scale)).astype(np.float32)
    centres = apply(frame.display_from_world, r.world_from_cam[known, :3, 3]).astype(np.float32)
    frusta = go.Scatter3d(
        x=lines[:, 0],
        y=lines[:, 1],
        z=lines[:, 2],
        mode="lines",
        line={"color": _BLUE, "width": 3},
        hoverinfo="skip",
        name="cameras",
    )
    names = go.Scatter3d(
        x=centres[:, 0],
        y=centres[:, 1],
        z=centres[:, 2],
        mode="markers",
        marker={"size": 4, "color": _BLUE},
        text=[_text(r.names[n]) for n in known],
        hoverinfo="text",
        name="camera names",
        showlegend=False,
    )
    return [frusta, names]


def _view_direction(reconstruction: Reconstruction, frame: SceneFrame) -> Array:
    """Where to look from: beside and above the registered camera in the middle of the order."""
    known = np.flatnonzero(reconstruction.registered)
    if not len(known):
        return np.array([1.0, -1.0, 0.7])
    centre = apply(frame.display_from_world, reconstruction.world_from_cam[known[len(known) // 2], :3, 3][None])[0]
    flat = np.array([centre[0], centre[1], 0.0])
    if np.linalg.norm(flat) < 1e-6:
        return np.array([1.0, -1.0, 0.7])
    flat /= np.linalg.norm(flat)
    return np.array([flat[0] - 0.35 * flat[1], flat[1] + 0.35 * flat[0], 0.55])


def scene_figure(reconstruction: Reconstruction) -> go.Figure:
    """Points and camera frusta; the tracks' points can be shown as well."""
    r, frame = reconstruction, scene_frame(reconstruction)
    figure = go.Figure()
    if len(r.points):
        figure.add_trace(_cloud(frame, r.points, r.colors, CloudStyle("points", _POINTS_IN_SCENE, 1.6)))
    if len(r.track_points):
        figure.add_trace(_cloud(frame, r.track_points, r.track_colors, CloudStyle("track points", _MOST_SPARSE, 2.6)))
        figure.data[-1].visible = "legendonly" if len(r.points) else True
    figure.add_traces(_camera_traces(r, frame))
    return _scene_layout(figure, _view_direction(r, frame), 1.25, 1.0)


def object_figure(reconstruction: Reconstruction) -> go.Figure:
    """The points alone, seen from near."""
    r, frame = reconstruction, scene_frame(reconstruction)
    dense = len(r.points) > 0
    points, colors = (r.points, r.colors) if dense else (r.track_points, r.track_colors)
    style = CloudStyle("points" if dense else "track points", _MOST_POINTS, 2.0 if dense else 3.5)
    figure = go.Figure(_cloud(frame, points, colors, style))
    return _scene_layout(figure, _view_direction(r, frame), 1.6, 0.55 * frame.object_size)


def _scene_layout(figure: go.Figure, direction: Array, distance: float, half: float) -> go.Figure:
    """A scene of the cube from -`half` to `half`, seen along `direction` from `distance` times its side."""
    x, y, z = direction / np.linalg.norm(direction) * distance
    camera = {"eye": {"x": x, "y": y, "z": z}, "up": {"x": 0, "y": 0, "z": 1}, "center": {"x": 0, "y": 0, "z": 0}}
    axis = {"range": [-half, half], "visible": False, "showspikes": False}
    figure.update_layout(
        scene={
            "xaxis": axis,
            "yaxis": axis,
            "zaxis": axis,
            "aspectmode": "cube",
            "camera": camera,
            "dragmode": "orbit",
        },
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        height=600,
        font={"family": _FONT},
        showlegend=True,
        legend={"x": 0, "y": 0, "orientation": "h", "itemsizing": "constant", "bgcolor": "rgba(255,255,255,0.7)"},
    )
    return figure


# ---------------------------------------------------------------- the pair graph


def describe_pair(record: PairRecord, names: Sequence[str]) -> str:
    """One pair in words, names escaped for plotly."""
    text = f"{_text(names[record.i])} – {_text(names[record.j])}<br>"
    if record.matches is None:
        return text + ("dropped: " + _text(record.dropped) if record.dropped else "matches no longer in the cache")
    text += f"{record.matches} matches, score {record.score:.2f}"
    return text + (f"<br>dropped: {_text(record.dropped)}" if record.dropped else f"<br>model: {record.model}")


def pair_matrix(records: Sequence[PairRecord], names: Sequence[str]) -> go.Figure:
    """Scores of the pairs used, and which pairs were dropped; what was never compared stays white."""
    count = len(names)
    score, dropped = np.full((count, count), np.nan), np.full((count, count), np.nan)
    text = [[""] * count for _ in range(count)]
    for one in records:
        layer, value = (score, one.score) if one.used else (dropped, 1.0)
        layer[one.i, one.j] = layer[one.j, one.i] = value
        text[one.i][one.j] = text[one.j][one.i] = describe_pair(one, names)
    figure = go.Figure()
    figure.add_trace(_heat(dropped, text, [[0, "#f6d5d0"], [1, "#f6d5d0"]], False))
    figure.add_trace(_heat(score, text, [[0, _rgb(0.0)], [1, _rgb(1.0)]], True))
    side = max(360, min(760, 26 * count + 140))
    _layout(figure, side)
    step = max(1, count // 40)
    ticks = list(range(0, count, step))
    axis = {"tickvals": ticks, "ticktext": [label(names[n]) for n in ticks], "showgrid": False, "zeroline": False}
    figure.update_xaxes(**axis, tickangle=-60, constrain="domain", tickfont={"size": 10})
    figure.update_yaxes(**axis, autorange="reversed", scaleanchor="x", constrain="domain", tickfont={"size": 10})
    figure.update_layout(margin={"l": 110, "r": 10, "t": 10, "b": 110})
    return figure


def _heat(values: Array, text: list[list[str]], scale: list[list], bar: bool) -> go.Heatmap:
    return go.Heatmap(
        z=values.astype(np.float32),
        text=text,
        hoverinfo="text",
        hoverongaps=False,
        colorscale=scale,
        zmin=0,
        zmax=1,
        showscale=bar,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "score"}, "thickness": 12} if bar else None,
    )


def _rgb(score: float) -> str:
    worst, best = np.array(_SCORE_SCALE, float)
    red, green, blue = (worst + (best - worst) * score).round().astype(int)
    return f"rgb({red},{green},{blue})"


def circle(count: int) -> Array:
    """Positions (N, 2) of the nodes: on a circle, in order, the first on top."""
    angle = np.pi / 2 - 2 * np.pi * np.arange(count) / max(count, 1)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def pair_graph(records: Sequence[PairRecord], names: Sequence[str], registered: Array) -> go.Figure:
    """Views on a circle, joined by the pairs used (darker: better score) and, dashed, by those dropped."""
    figure, at = go.Figure(), circle(len(names))
    groups: dict[int, list[PairRecord]] = {}
    for one in records:
        group = min(int(one.score * _SCORE_BINS), _SCORE_BINS - 1) if one.used else -1
        groups.setdefault(group, []).append(one)
    for group in sorted(groups):
        xy = np.concatenate([[at[one.i], at[one.j], [np.nan, np.nan]] for one in groups[group]])
        figure.add_trace(_edges(xy, group))
    middles = np.array([(0.5 + 0.06 * (k % 5 - 2)) for k in range(len(records))])[:, None]
    ends = np.array([(one.i, one.j) for one in records], int).reshape(-1, 2)
    spots = at[ends[:, 0]] * middles + at[ends[:, 1]] * (1 - middles) if len(records) else np.zeros((0, 2))
    figure.add_trace(
        go.Scatter(
            x=spots[:, 0],
            y=spots[:, 1],
            mode="markers",
            marker={"size": 8, "color": "rgba(0,0,0,0)"},
            text=[describe_pair(one, names) for one in records],
            hoverinfo="text",
            showlegend=False,
        )
    )
    figure.add_trace(_nodes(at, names, registered))
    _layout(figure, 560)
    figure.update_xaxes(visible=False, range=[-1.35, 1.35])
    figure.update_yaxes(visible=False, range=[-1.25, 1.25], scaleanchor="x")
    figure.update_layout(margin={"l": 0, "r": 0, "t": 10, "b": 0}, legend={"orientation": "h", "y": -0.02})
    return figure


def _edges(xy: Array, group: int) -> go.Scatter:
    """Lines of one group of pairs; group -1 are the dropped ones."""
    if group < 0:
        line, name, width = "rgba(214,69,69,0.45)", "dropped", 1.0
    else:
        line, width = _rgb((group + 0.5) / _SCORE_BINS), 1.0 + 0.6 * group
        name = f"score {group / _SCORE_BINS:.1f} to {(group + 1) / _SCORE_BINS:.1f}"
    style = {"color": line, "width": width, "dash": "dot" if group < 0 else "solid"}
    return go.Scatter(x=xy[:, 0], y=xy[:, 1], mode="lines", line=style, hoverinfo="skip", name=name)


def _nodes(at: Array, names: Sequence[str], registered: Array) -> go.Scatter:
    state = ["registered" if done else "not registered" for done in registered]
    return go.Scatter(
        x=at[:, 0],
        y=at[:, 1],
        mode="markers+text",
        marker={
            "size": 14,
            "color": [_GREEN if done else _RED for done in registered],
            "line": {"color": "white", "width": 1.5},
        },
        text=[label(name, 14) for name in names] if len(names) <= 40 else None,
        textposition=[
            "middle right" if x > 0.3 else "middle left" if x < -0.3 else "top center" if y > 0 else "bottom center"
            for x, y in at
        ],
        textfont={"size": 10},
        hovertext=[f"{_text(name)}<br>{what}" for name, what in zip(names, state, strict=True)],
        hoverinfo="text",
        showlegend=False,
    )


# ---------------------------------------------------------------- residuals and convergence


def residual_figure(residuals: Sequence[StageResiduals]) -> go.Figure:
    """Histograms of the stages' residuals over a logarithmic axis, as shares."""
    figure = go.Figure()
    edges = np.logspace(-2, 2, 61)
    highest = 1.0
    for one in residuals:
        if not len(one.lengths_px):
            continue
        counts, _ = np.histogram(np.clip(one.lengths_px, edges[0], edges[-1] * 0.999), edges)
        colour, share = _STAGE_COLOURS.get(one.stage, _GREY), 100 * counts / counts.sum()
        highest = max(highest, float(share.max()))
        figure.add_trace(
            go.Scatter(
                x=np.sqrt(edges[:-1] * edges[1:]).round(5),
                y=share.round(3),
                mode="lines",
                line={"shape": "hvh", "color": colour, "width": 2},
                fill="tozeroy",
                fillcolor=_faint(colour),
                name=f"after {one.stage} (median {np.median(one.lengths_px):.2f} px)",
            )
        )
    _layout(figure, 340, x="distance of a match from its epipolar line, working px", y="share of the matches, %")
    decades = [0.01, 0.1, 1, 10, 100]
    figure.update_xaxes(type="log", tickvals=decades, ticktext=[f"{value:g}" for value in decades], range=[-2, 2])
    figure.update_yaxes(range=[0, 1.1 * highest])
    figure.update_layout(legend=_LEGEND, showlegend=True)
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def track_figure(reconstruction: Reconstruction) -> go.Figure:
    """Reprojection errors of the tracks."""
    errors = reconstruction.track_errors
    top = float(np.quantile(errors, 0.995)) if len(errors) else 1.0
    counts, edges = np.histogram(np.clip(errors, 0, top), 40, (0, max(top, 1e-6)))
    figure = go.Figure(
        go.Bar(x=((edges[:-1] + edges[1:]) / 2).round(5), y=counts, marker={"color": _GREEN}, hoverinfo="x+y")
    )
    _layout(figure, 340, x="mean reprojection error of a track, source px", y="tracks")
    figure.update_layout(bargap=0.03)
    return figure


def track_length_figure(reconstruction: Reconstruction) -> go.Figure:
    """How many views see a track's point."""
    lengths = np.bincount(reconstruction.tracks.point_index, minlength=len(reconstruction.track_points))
    counts = np.bincount(lengths)
    shown = np.flatnonzero(counts)
    figure = go.Figure(go.Bar(x=shown, y=counts[shown], marker={"color": _BLUE}, hoverinfo="x+y"))
    _layout(figure, 340, x="views that see a track", y="tracks")
    figure.update_xaxes(dtick=1 if len(shown) < 20 else None)
    return figure


def convergence_figure(curves: Sequence[Convergence]) -> go.Figure:
    """Cost against the solver's steps."""
    figure = go.Figure()
    for one in curves:
        colour = _STAGE_COLOURS.get(one.stage, _GREY)
        figure.add_trace(
            go.Scatter(
                x=np.arange(len(one.cost)),
                y=np.maximum(one.cost, 1e-12),
                mode="lines+markers",
                marker={"size": 4},
                line={"color": colour},
                name=one.stage,
            )
        )
    _layout(figure, 340, x="step", y="robust cost")
    figure.update_yaxes(type="log")
    figure.update_layout(showlegend=True, legend=_LEGEND)
    return figure
