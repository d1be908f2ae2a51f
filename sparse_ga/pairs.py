"""Which pairs of views are looked at: graphs by name, or a file of pairs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from sparse_ga.errors import InputError
from sparse_ga.io.images import comparable

Pair = tuple[int, int]

_GRAPHS = "complete, window-K, logwindow-K (both also with -open appended), oneref-I"


def _unique(pairs: Iterable[Pair]) -> list[Pair]:
    return sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})


def _offsets_graph(count: int, offsets: Iterable[int], closed: bool) -> list[Pair]:
    steps = [(n, n + step) for n in range(count) for step in offsets if step < count]
    return _unique((i, j % count) for i, j in steps if closed or j < count)


def build_pairs(count: int, graph: str) -> list[Pair]:
    """Pairs (i, j), i < j, of `count` views in a named graph, each once and in order.

    `window-K` joins every view to the K that follow it, `logwindow-K` to those 1, 2, 4, ... 2^(K-1) further on,
    `oneref-I` all views to view I (counted from 0). Window graphs close into a ring unless `-open` is appended. Raises
    `InputError` for any other name.
    """
    if graph == "complete":
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    match = re.fullmatch(r"(window|logwindow|oneref)-(\d+)(-open)?", graph)
    if match is None or (match[1] == "oneref" and match[3]):
        raise InputError(f"pairs.graph = {graph!r} is not a graph; choose one of {_GRAPHS}")
    kind, number, closed = match[1], int(match[2]), match[3] is None
    if kind == "oneref":
        if number >= count:
            raise InputError(f"pairs.graph = {graph!r}: there are {count} images, the last is oneref-{count - 1}")
        return _unique((number, other) for other in range(count))
    if number < 1:
        raise InputError(f"pairs.graph = {graph!r}: the window must be at least 1")
    offsets = range(1, number + 1) if kind == "window" else [2**n for n in range(min(number, 32))]
    return _offsets_graph(count, offsets, closed)


def _names_in(line: str, index: Container[str]) -> list[str]:
    """The words of a line of a pairs file, parted where that gives two names that `index` knows."""
    stripped = line.strip()
    for separator in ("\t", ","):
        for text in (stripped, stripped.split("#")[0]):
            words = [word.strip().strip("\"'") for word in text.split(separator)]
            if len(words) == 2 and all(word in index for word in words):
                return words
    plain = line.split("#")[0].split()
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace, lexer.whitespace_split, lexer.escape = " \t\r\n,", True, ""
    try:
        words = list(lexer)
    except ValueError:  # a quotation mark without another, as in o'clock
        return plain
    return words if len(plain) != 2 or all(word in index for word in words) else plain


def read_pairs_file(path: Path, names: Sequence[str]) -> list[Pair]:
    """Pairs from a text file with two image names a line (`#` starts a comment), each once and in order.

    Names are those of the images, with or without their extension. A blank, a tab or a comma parts them; those that
    hold one are in quotes, or parted by another of the three. Raises `InputError` naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the pairs file cannot be read ({error}); give a text file") from None
    index = {comparable(Path(name).stem): n for n, name in enumerate(names)}
    index |= {comparable(name): n for n, name in enumerate(names)}
    pairs = []
    for number, line in enumerate(lines, 1):
        words = _names_in(comparable(line), index)
        if not words:
            continue
        if len(words) != 2:
            raise InputError(
                f"{path}, line {number}: expected two image names, found {len(words)} words; put names with blanks in "
                "quotes"
            )
        unknown = [word for word in words if word not in index]
        if unknown:
            raise InputError(f"{path}, line {number}: no image is called {unknown[0]!r}")
        pairs.append((index[words[0]], index[words[1]]))
    if not _unique(pairs):
        raise InputError(f"{path}: names no pair of two different images; write two image names on each line")
    return _unique(pairs)
