"""Pair graphs by name and by file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_ga.errors import InputError
from sparse_ga.pairs import build_pairs, read_pairs_file

NAMES = ["a.png", "b.png", "c.png", "d 1.png"]


def test_complete():
    assert build_pairs(4, "complete") == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert build_pairs(2, "complete") == [(0, 1)]
    assert build_pairs(1, "complete") == []
    assert len(build_pairs(16, "complete")) == 120


def test_windows_close_the_ring_unless_open():
    assert build_pairs(5, "window-1") == [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4)]
    assert build_pairs(5, "window-1-open") == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert build_pairs(6, "window-2-open") == [(i, j) for i in range(6) for j in range(i + 1, 6) if j - i <= 2]
    assert len(build_pairs(24, "window-4")) == 96


def test_logarithmic_windows_double_their_steps():
    assert build_pairs(10, "logwindow-3-open") == sorted(
        (i, i + step) for step in (1, 2, 4) for i in range(10) if i + step < 10
    )
    ring = build_pairs(16, "logwindow-3")
    assert len(ring) == 48
    assert (0, 12) in ring  # four steps backwards around the ring
    assert {(j - i) % 16 for i, j in ring} <= {1, 2, 4, 12, 14, 15}


def test_one_reference():
    assert build_pairs(4, "oneref-2") == [(0, 2), (1, 2), (2, 3)]


@pytest.mark.parametrize("graph", ["complete", "window-9", "window-50", "logwindow-9", "window-9-open", "oneref-0"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_pair_once_ordered_and_in_range(graph: str, count: int):
    pairs = build_pairs(count, graph)
    assert pairs == sorted(set(pairs))
    assert all(0 <= i < j < count for i, j in pairs)
    if graph != "oneref-0" and graph != "logwindow-9":
        assert len(pairs) == count * (count - 1) // 2


@pytest.mark.parametrize(
    "graph",
    ["", "full", "window", "window-", "window-0", "window--1", "window-a", "oneref-5", "oneref-0-open", "swin-3"],
)
def test_a_name_that_is_no_graph_is_refused_with_the_choices(graph: str):
    with pytest.raises(InputError, match=r"pairs\.graph = '.*'"):
        build_pairs(5, graph)


def test_pairs_file(tmp_path: Path):
    file = tmp_path / "pairs.txt"
    file.write_text("# which\nb.png a.png\n\na c.png  # stems do too\na b\n")
    assert read_pairs_file(file, NAMES) == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png", "line 1: expected two"),
        ("a.png b.png\na.png b.png c.png", "line 2: expected two"),
        ("a.png z.png", "line 1: no image is called 'z.png'"),
        ("", "names no pair"),
        ("a.png a.png", "names no pair"),
    ],
)
def test_a_bad_pairs_file_names_the_line(tmp_path: Path, text: str, message: str):
    file = tmp_path / "pairs.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs_file(file, NAMES)


def test_a_missing_or_binary_pairs_file_is_a_clear_error(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs_file(tmp_path / "none.txt", NAMES)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs_file(tmp_path / "binary", NAMES)


@pytest.mark.parametrize(
    "line",
    [
        'a.png "d 1.png"',
        "'d 1' a",
        "a.png\td 1.png",
        "a.png, d 1.png",
        '"a.png","d 1.png"  # as spreadsheets write',
        "d 1,a",
        "\ufeffa.png 'd 1.png'",
    ],
)
def test_names_with_blanks_and_a_byte_order_mark(tmp_path: Path, line: str):
    file = tmp_path / "pairs.txt"
    file.write_text(line + "\r\n", encoding="utf-8")
    assert read_pairs_file(file, NAMES) == [(0, 3)]


def test_names_with_quotation_marks_and_number_signs(tmp_path: Path):
    file = tmp_path / "pairs.txt"
    file.write_text("o'clock.png b\n#1.png\tb\n")
    assert read_pairs_file(file, ["o'clock.png", "b.png", "#1.png"]) == [(0, 1), (1, 2)]
    file.write_text("a.png d 1.png\n")
    with pytest.raises(InputError, match="line 1: expected two image names, found 3 words; put names with blanks in"):
        read_pairs_file(file, NAMES)
