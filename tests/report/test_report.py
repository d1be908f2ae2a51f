"""The report: everything is in it, nothing a file is called can break it, and browsers draw it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ga.config import make_config
from sparse_ga.geometry.cameras import project
from sparse_ga.geometry.transforms import apply, inverse
from sparse_ga.products import (
    Alignment,
    DepthMaps,
    MaskStack,
    Mesh,
    PairMatches,
    Reconstruction,
    ReconstructionReport,
    Tracks,
    View,
)
from sparse_ga.report import figures
from sparse_ga.report.collect import (
    CameraStage,
    _dropped_reasons,
    changed_settings,
    choose_pictures,
    epipolar_distances,
)
from sparse_ga.report.details import (
    Convergence,
    PairPicture,
    PairRecord,
    ReportDetails,
    StageResiduals,
    StageSize,
)
from sparse_ga.report.page import render_report, warnings_of, write_report
from sparse_ga.report.pictures import REGISTERED_RGB, outlined

NASTY = ("plain.png", "a<b>&'\"c.png", "</script><script>alert(1)</script>.png", "left out | x.png", "%{x} $y {z}.png")
REASON = "no usable pair: <img src=x onerror=alert(2)> & more"


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, the text, and the figures' data."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.figures: dict[str, dict] = {}
        self._figure = ""
        self._skip = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.elements.append((tag, values))
        self._figure = values.get("data-for", "") if tag == "script" else ""
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._figure, self._skip = "", False

    def handle_data(self, data):
        if self._figure:
            self.figures[self._figure] = json.loads(data)
        elif not self._skip:
            self.text += data + "\n"

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        """Attributes of the elements of one tag and class."""
        of_tag = [values for name, values in self.elements if name == tag]
        return [values for values in of_tag if not kind or kind in (values.get("class") or "").split()]


def camera_ring(count: int) -> np.ndarray:
    """`world_from_cam` (N, 4, 4) of cameras around the z axis that look at the origin from two units away."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for n, angle in enumerate(np.linspace(0, 4, count)):
        forward = -np.array([np.cos(angle), np.sin(angle), 0.4])
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        poses[n, :3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        poses[n, :3, 3] = -2 * forward
    return poses


def reconstruction(
    names: tuple[str, ...] = NASTY,
    left_out: tuple[int, ...] = (3,),
    points: int = 600,
    size: tuple[int, int] = (64, 48),
) -> Reconstruction:
    """A magenta ball of points in a ring of cameras; the views `left_out` are not registered."""
    rng, count = np.random.default_rng(0), len(names)
    ball = rng.normal(size=(points, 3))
    ball *= 0.3 / np.linalg.norm(ball, axis=1, keepdims=True)
    mask = np.zeros(size[::-1], bool)
    mask[size[1] // 4 : -size[1] // 4, size[0] // 4 : -size[0] // 4] = True
    depth = mask * np.float32(2)
    registered = np.array([n not in left_out for n in range(count)])
    tracks = min(points, 40)
    views = np.flatnonzero(registered)[:2]
    seen = tracks if len(views) == 2 else 0
    return Reconstruction(
        names=names,
        registered=registered,
        reasons=tuple("" if done else REASON for done in registered),
        world_from_cam=np.where(registered[:, None, None], camera_ring(count), np.eye(4)),
        intrinsics=np.tile([[70.0, 0, size[0] / 2 - 0.5], [0, 70, size[1] / 2 - 0.5], [0, 0, 1]], (count, 1, 1)),
        source_sizes=np.array([size] * count),
        working_from_source=np.tile(np.eye(3), (count, 1, 1)),
        points=ball.astype(np.float32),
        colors=np.tile(np.array([255, 0, 255], np.uint8), (points, 1)),
        normals=np.zeros((points, 3), np.float32),
        point_confidence=np.ones(points, np.float32),
        tracks=Tracks(np.repeat(np.arange(seen), 2), np.tile(views[:2], seen).astype(np.int64), np.ones((2 * seen, 2))),
        track_points=ball[:seen],
        track_colors=np.zeros((seen, 3), np.uint8),
        track_errors=rng.random(seen),
        depthmaps=DepthMaps.pack([depth] * count, [depth] * count),
        masks=MaskStack.pack([mask] * count),
        mesh=Mesh.empty(),
        report=ReconstructionReport(diameter=0.6, mean_reprojection_px=0.5, mean_track_length=2.0),
    )


def details_of(r: Reconstruction) -> ReportDetails:
    """Details in which every kind of thing occurs."""
    rng, count = np.random.default_rng(1), len(r.names)
    views = []
    for n in range(count):
        mask = r.masks.mask(n)
        image = rng.integers(0, 256, (*mask.shape, 3)).astype(np.uint8)
        views.append(View(r.names[n], image, mask, None, np.eye(3), mask.shape[::-1], f"{n}"))
    xy = np.argwhere(r.masks.mask(0))[:30, ::-1].astype(np.float32)
    matches = PairMatches(xy, xy, np.ones(len(xy), np.float32))
    dropped = "matches <disagree> & more"
    pairs = [
        PairRecord(i, j, 30, 1 / (1 + j), "essential", dropped if j == count - 1 else "")
        for i in range(count)
        for j in range(i + 1, count)
    ]
    pictures = [PairPicture(pairs[k], matches, kind) for k, kind in choose_pictures(pairs)]
    return ReportDetails(
        views=tuple(views),
        pairs=(*pairs[:-1], dataclasses.replace(pairs[-1], matches=None)),
        pictures=tuple(pictures),
        residuals=(StageResiduals("align3d", rng.random(50) * 9), StageResiduals("refine2d", rng.random(50))),
        convergence=(Convergence("refine2d", np.geomspace(100, 1, 9)),),
        uncertainty_deg=np.full(count, 0.1),
        stages=(StageSize("ingest", count, 123_456),),
        advice=tuple("" if done else "add <photographs>" for done in r.registered),
        warnings=("a <warning>",),
        settings=("pairs.graph = <window>",),
    )


# ---------------------------------------------------------------- what the page holds


def test_every_image_is_there_with_its_state_and_reason():
    r = reconstruction()
    page = Page(render_report(r, details_of(r)))
    pictures = [values for values in page.all("img") if values["alt"] in NASTY]
    assert [values["alt"] for values in pictures] == list(NASTY)
    assert all((values["src"] or "").startswith("data:image/jpeg;base64,") for values in page.all("img"))
    assert len(page.all("span", "good")) == 4
    assert len(page.all("span", "bad")) == 1
    assert REASON in page.text
    assert "add <photographs>" in page.text
    assert page.text.index("Warnings") < page.text.index("The result in 3D")
    assert "1 of 5 images are not registered" in page.text


def test_names_and_reasons_are_text_and_never_markup():
    r = reconstruction()
    page = Page(render_report(r, details_of(r)))
    plain = Page(render_report(reconstruction(tuple(f"{n}.png" for n in range(5))), details_of(r)))
    assert not [values for values in page.all("img") if "onerror" in values]
    assert not page.all("b", "c.png")
    assert len(page.all("script")) == len(plain.all("script"))
    labels = json.dumps(page.figures["graph-figure"]["data"])
    assert "a&lt;b&gt;&amp;" in labels
    assert "<b>" not in labels.replace("<br>", "")
    assert "alert(1)&lt;/script&gt;" in labels


def test_every_figure_has_its_data_and_its_place():
    r = reconstruction()
    page = Page(render_report(r, details_of(r)))
    places = {values["id"] for values in page.all("div", "figure")}
    wanted = {"scene", "object", "matrix", "graph", "residual", "track", "length", "convergence"}
    assert places == set(page.figures) == {f"{name}-figure" for name in wanted}
    assert len(page.all("figure", "pair")) == 9  # three best, three worst, three dropped
    names = [trace.get("name") for trace in page.figures["scene-figure"]["data"]]
    assert names == ["points", "track points", "cameras", "camera names"]


def test_pairs_dropped_are_listed_with_reasons():
    r = reconstruction()
    details = details_of(r)
    page = Page(render_report(r, details))
    assert "matches <disagree> & more" in page.text
    assert "10 pairs were compared, 6 used, 4 dropped" in page.text
    assert "unknown" in page.text  # the pair whose matches the cache lost


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize(("left_out", "points"), [((), 0), ((0, 1, 2, 3, 4), 0), ((1, 2, 3, 4), 300), ((), 1)])
def test_a_report_of_little_or_nothing(left_out: tuple[int, ...], points: int, bare: bool):
    r = reconstruction(left_out=left_out, points=points)
    details = ReportDetails() if bare else dataclasses.replace(details_of(r), pairs=(), pictures=(), residuals=())
    page = Page(render_report(r, details))
    assert [values["alt"] for values in page.all("img")] == list(NASTY)
    assert "Nothing is known of any pair." in page.text
    assert ("scene-figure" in page.figures) == (len(left_out) < 5 or points > 0)
    assert ("no image could be registered" in page.text) == (len(left_out) == 5)
    assert page.text.count(REASON) == len(left_out)


def test_warnings_name_what_is_wrong():
    r = reconstruction(left_out=(), points=0)
    assert warnings_of(r, ReportDetails()) == ["there is no dense point cloud"]
    report = dataclasses.replace(r.report, mean_reprojection_px=3.0, bundle_adjustment="diverged", notes=("a note",))
    texts = warnings_of(dataclasses.replace(r, report=report), ReportDetails(warnings=("given",)))
    assert texts[1:] == [
        "the mean reprojection error is high: 3.0 px",
        "bundle adjustment: diverged; the cameras from before it are used",
        "a note",
        "given",
    ]
    assert "None." in Page(render_report(reconstruction(left_out=()), ReportDetails())).text


@pytest.mark.slow
def test_same_input_same_bytes(tmp_path: Path):
    r = reconstruction()
    first = write_report(r, tmp_path / "a" / "report.html", details_of(r))
    again = write_report(reconstruction(), tmp_path / "b.html", details_of(r))
    assert first.read_bytes() == again.read_bytes()
    other = write_report(reconstruction(points=599), tmp_path / "c.html", details_of(r))
    assert other.read_bytes() != first.read_bytes()


def test_nothing_is_fetched():
    r = reconstruction()
    page = Page(render_report(r, details_of(r)))
    addresses = [values.get(name) or "" for _, values in page.elements for name in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses if address)


@pytest.mark.slow
def test_fifty_views_stay_below_fifteen_megabytes():
    r = reconstruction(tuple(f"{n:03}.png" for n in range(50)), (), 200_000, (512, 384))
    assert len(render_report(r, details_of(r)).encode()) < 15e6


# ---------------------------------------------------------------- what the figures show


def test_scene_is_upright_and_inside_its_cube():
    r = reconstruction(left_out=())
    frame = figures.scene_frame(r)
    shown = apply(frame.display_from_world, np.concatenate([r.points.astype(float), r.world_from_cam[:, :3, 3]]))
    assert np.abs(shown).max() <= 1
    up = frame.display_from_world[:3, :3] @ -r.world_from_cam[:, :3, 1].mean(0)
    np.testing.assert_allclose(up[:2], 0, atol=1e-9)
    assert up[2] > 0
    assert frame.object_size == pytest.approx(0.6 / 2.2, rel=0.1)


def test_frusta_start_at_the_centres_and_frame_the_pictures():
    r = reconstruction(left_out=(1,))
    lines = figures.frustum_lines(r, 0.5)
    breaks = np.flatnonzero(np.isnan(lines).any(1))
    assert len(breaks) == 4
    first = lines[: breaks[0]]
    np.testing.assert_allclose(np.abs(first - r.world_from_cam[0, :3, 3]).max(1).min(), 0, atol=1e-12)
    in_cam = apply(inverse(r.world_from_cam[0]), first)
    xy, front = project(r.intrinsics[0], in_cam)
    corners = {tuple(np.round(corner, 6)) for corner in xy[front]}
    assert {(-0.5, -0.5), (63.5, -0.5), (63.5, 47.5), (-0.5, 47.5)} <= corners


def test_palette_keeps_few_colours_exactly():
    colors = np.array([[255, 0, 0], [0, 255, 0], [255, 0, 0], [1, 2, 3]], np.uint8)
    palette = figures.make_palette(colors)
    assert [palette.colours[k] for k in palette.index] == ["#ff0000", "#00ff00", "#ff0000", "#010203"]
    many = np.random.default_rng(0).integers(0, 256, (5000, 3)).astype(np.uint8)
    palette = figures.make_palette(many)
    table = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in palette.colours])
    assert len(palette.colours) <= 256
    assert np.abs(table[palette.index] - many.astype(int)).mean() < 16
    assert len(figures.make_palette(many[:0]).colours) >= 2
    assert [entry[0] for entry in figures.make_palette(many[:1]).scale] == [0.0, 1.0]


def test_matrix_is_symmetric_and_blank_where_nothing_was_compared():
    records = [PairRecord(0, 1, 9, 0.5, "essential"), PairRecord(1, 2, 3, 0.9, "none", "why")]
    figure = figures.pair_matrix(records, ["a", "b", "c"])
    dropped, scores = (np.array(trace.z, float) for trace in figure.data)
    np.testing.assert_allclose(scores[0, 1], 0.5)
    np.testing.assert_array_equal(scores, scores.T)
    assert np.isfinite(scores).sum() == 2
    assert np.isfinite(dropped).sum() == 2
    assert "why" in figure.data[0].text[2][1]


def test_outline_lies_on_the_rim_of_the_mask():
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    picture = np.asarray(outlined(np.zeros((60, 80, 3), np.uint8), mask, REGISTERED_RGB, 160)).astype(int)
    assert picture.shape == (120, 160, 3)
    green = np.argwhere((np.abs(picture - REGISTERED_RGB) < 60).all(-1))  # (K, 2), (row, column)
    np.testing.assert_allclose(green.min(0), [40, 60], atol=2)
    np.testing.assert_allclose(green.max(0), [79, 99], atol=2)
    assert not (picture[50:70, 70:90] > 30).any()
    assert outlined(None, mask, REGISTERED_RGB).size == (320, 240)


# ---------------------------------------------------------------- what is gathered


def stage_of(r: Reconstruction) -> CameraStage:
    return CameraStage("x", r.registered, r.world_from_cam, r.intrinsics)


def test_epipolar_distance_of_exact_matches_is_zero_and_grows_with_the_error():
    r = reconstruction(left_out=())
    stage = stage_of(r)
    in_view = [apply(inverse(r.world_from_cam[n]), r.points[:50].astype(float)) for n in (0, 1)]
    xy_i, xy_j = (project(r.intrinsics[n], points)[0] for n, points in zip((0, 1), in_view, strict=True))
    exact = PairMatches(xy_i.astype(np.float32), xy_j.astype(np.float32), np.ones(50, np.float32))
    assert epipolar_distances(stage, 0, 1, exact).max() < 1e-3
    moved = PairMatches(exact.xy_i, exact.xy_j + np.float32([0, 1]), exact.confidence)
    distance = epipolar_distances(stage, 0, 1, moved)
    assert 0.3 < np.median(distance) < 1.0  # Sampson spreads an error of one pixel over both views
    np.testing.assert_allclose(distance, epipolar_distances(stage, 1, 0, moved.swap()), rtol=1e-6)
    assert epipolar_distances(stage, 0, 1, PairMatches.empty()).shape == (0,)


def test_pictures_are_of_the_best_the_worst_and_the_largest_dropped():
    scores = (0.1, 0.9, 0.5, 0.7, 0.3)
    records = [PairRecord(0, k + 1, 10, score, "essential") for k, score in enumerate(scores)]
    records += [PairRecord(1, 2, 5, 0.0, "none", "x"), PairRecord(1, 3, 8, 0.0, "none", "x"), PairRecord(1, 4)]
    records += [PairRecord(1, 5, 0, 0.0, "none", "no match at all")]
    chosen = choose_pictures(records, 2)
    assert chosen == [(1, "best"), (3, "best"), (0, "worst"), (4, "worst"), (6, "dropped"), (5, "dropped")]
    assert choose_pictures(records[:1], 2) == [(0, "best")]
    assert choose_pictures([]) == []


def test_reasons_are_found_behind_names_with_the_separator():
    names = ("a.png", "left | out.png")
    texts = ("a.png | left | out.png | 3 % agree | no more",)
    zeros = np.zeros(0)
    alignment = Alignment(
        names, np.ones(2, bool), np.tile(np.eye(4), (2, 1, 1)), np.tile(np.eye(3), (2, 1, 1)), zeros,
        np.zeros(3, int), ("", ""), texts,
    )  # fmt: skip
    assert _dropped_reasons([None, alignment], names) == {("a.png", "left | out.png"): "3 % agree | no more"}
    assert _dropped_reasons([None, None], names) == {}


def test_settings_that_differ_are_named():
    assert changed_settings(make_config({})) == ()
    assert changed_settings(make_config({"pairs": {"graph": "window-4"}})) == ("pairs.graph = window-4",)


# ---------------------------------------------------------------- in a browser

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HARMLESS = ("GL Driver Message", "Multiple readback operations")


def screenshot(page: Path, folder: Path) -> tuple[np.ndarray, list[str]]:
    """What headless Chromium shows of the page (H, W, 3), and what it says on the console."""
    picture = folder / "page.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader"]
    words += ["--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    words += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    words += ["--hide-scrollbars", "--virtual-time-budget=20000", "--enable-logging=stderr"]
    words += [f"--screenshot={picture}", "--window-size=1300,2600", page.as_uri()]
    done = subprocess.run([str(BROWSER), *words], capture_output=True, text=True, timeout=240, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return np.asarray(Image.open(picture).convert("RGB")).astype(int), said


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_draws_it_without_complaint(tmp_path: Path):
    r = reconstruction()
    path = write_report(r, tmp_path / "report.html", details_of(r))
    picture, said = screenshot(path, tmp_path)
    assert [line for line in said if not any(words in line for words in HARMLESS)] == []
    magenta = (np.abs(picture - (255, 0, 255)) < 25).all(-1)
    blue = (np.abs(picture - (0x2D, 0x6C, 0xDF)) < 25).all(-1)
    assert magenta[:1000].sum() > 2000  # the points
    assert blue[:1000].sum() > 300  # the frusta
    matrix = (np.abs(picture - (0xF6, 0xD5, 0xD0)) < 6).all(-1)
    assert matrix.sum() > 2000  # the dropped pairs' cells


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_draws_an_empty_one_without_complaint(tmp_path: Path):
    path = write_report(reconstruction(left_out=(0, 1, 2, 3, 4), points=0), tmp_path / "report.html")
    _, said = screenshot(path, tmp_path)
    assert [line for line in said if not any(words in line for words in HARMLESS)] == []
