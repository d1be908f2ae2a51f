"""How far a computation is: the mathematics tells it to whoever watches, and to nobody otherwise."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

from sparse_ga import work
from sparse_ga.progress import Reporter


def events(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_nobody_needs_to_watch():
    reporter = Reporter("silent")
    with reporter.stage("unwatched", 2, "sweep") as bar:
        work.expect(3)
        work.advance()
        assert (bar.done, bar.total) == (0, 2)


def test_the_work_itself_sets_the_total_and_what_is_left_is_done_at_the_end():
    stream = io.StringIO()
    reporter = Reporter("json", 0, stream)
    with reporter.stage("triangulate", 1, "sweep") as bar, work.watched_by(bar):
        work.expect(4)
        work.advance(3)
        assert (bar.done, bar.total) == (3, 4)
        work.expect(2)
        assert (bar.done, bar.total) == (3, 6)
        bar.finish()
    work.advance()  # nobody is watching any more
    last = events(stream)[-1]
    assert (last["done"], last["total"]) == (6, 6)
    assert set(reporter.seconds) == {"triangulate"}


def test_an_inner_stage_has_a_bar_of_its_own_and_other_threads_are_not_heard():
    reporter = Reporter("silent")
    with reporter.stage("outer", 5, "x") as outer, work.watched_by(outer):
        with reporter.stage("inner", 5, "x") as inner, work.watched_by(inner):
            work.advance(2)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work.advance, 3).result()
        work.advance()
    assert (outer.done, inner.done) == (1, 2)
