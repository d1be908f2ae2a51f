"""Telling people, or programs, how far a run is: bars in a terminal, plain lines without one, JSON lines on request."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

Mode = Literal["auto", "bars", "lines", "json", "silent"]

_BAR_DELAY_S = 0.5
_LINE_EVERY_S = 10.0
_PULSE_S = 1.0


@dataclass
class Bar:
    """Progress of one stage."""

    reporter: Reporter
    stage: str
    total: int
    unit: str
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)
    tqdm: Any = None
    planned: bool = False

    def expect(self, count: int) -> None:
        """The work itself says that `count` more units will come; the first time that replaces the total."""
        self.total = count + (self.total if self.planned else self.done)
        self.planned = True
        if self.tqdm is not None:
            self.tqdm.total = self.total
            self.tqdm.refresh()

    def finish(self) -> None:
        """All that was left is done."""
        self.advance(self.total - self.done)

    def advance(self, count: int = 1) -> None:
        """`count` more units are done; never beyond the total."""
        count = min(count, self.total - self.done)
        if count <= 0:
            return
        self.done += count
        if self.tqdm is not None:
            self.tqdm.update(count)
            return
        if self.reporter.mode == "json":
            self.tell()

    def tell(self) -> None:
        """Say how far the stage is, if nothing was said for a while."""
        if self.tqdm is not None:
            self.tqdm.refresh()
            return
        now = time.monotonic()
        if now - self.last_line >= _LINE_EVERY_S and self.done < self.total:
            self.last_line = now
            self.reporter.progress(self)

    def note(self, text: str) -> None:
        """What the stage is doing, shown behind the bar."""
        if self.tqdm is not None:
            self.tqdm.set_postfix_str(text)

    @property
    def seconds(self) -> float:
        """Time since the stage began."""
        return time.monotonic() - self.started


class _Pulse:
    """Keeps a bar's clock moving, or says that the work goes on, while a stage computes without telling."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(_PULSE_S):
            self._bar.tell()

    def stop(self) -> None:
        """End the pulse."""
        self._stopped.set()
        self._thread.join()


def _plain(value: Any) -> Any:
    """`value` with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def event_schema() -> dict[str, Any]:
    """The JSON schema that every line printed by ``--json`` obeys."""
    text = (Path(__file__).parent / "events.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


@dataclass
class Reporter:
    """Where messages and progress go. `verbosity` -1: errors only, 0: normal, 1: details."""

    mode: Mode = "auto"
    verbosity: int = 0
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # spent in each stage
    command: str = ""  # named in the summary event

    def __post_init__(self) -> None:
        if self.mode == "auto":
            self.mode = "bars" if self.stream.isatty() else "lines"
        if self.verbosity < 0 and self.mode != "json":
            self.mode = "silent"

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """Progress of a stage of `total` units of work."""
        bar = Bar(self, name, total, unit)
        self.event("stage_started", stage=name, total=total, unit=unit)
        if self.mode == "bars":
            from tqdm import tqdm

            bar.tqdm = tqdm(
                total=total, desc=f"{name:<12}", unit=f" {unit}", delay=_BAR_DELAY_S, file=self.stream, leave=True
            )
        pulse = _Pulse(bar) if self.mode in ("bars", "lines") else None
        try:
            yield bar
        finally:
            if pulse is not None:
                pulse.stop()
            if bar.tqdm is not None:
                bar.tqdm.close()
            self.seconds[name] = self.seconds.get(name, 0.0) + bar.seconds
        self.event("stage_finished", stage=name, done=bar.done, total=bar.total, seconds=round(bar.seconds, 3))
        if self.mode == "lines" and (self.verbosity > 0 or bar.seconds > 2):
            self._print(f"{name}: {bar.done} of {bar.total} {unit}s in {bar.seconds:.1f} s")

    def progress(self, bar: Bar) -> None:
        """A plain line or event about a stage that takes long."""
        self.event("stage_progress", stage=bar.stage, done=bar.done, total=bar.total)
        if self.mode == "lines":
            left = f", about {bar.seconds / bar.done * (bar.total - bar.done):.0f} s to go" if bar.done else ""
            self._print(f"{bar.stage}: {bar.done} of {bar.total} {bar.unit}s, {bar.seconds:.0f} s so far{left}")

    def info(self, text: str) -> None:
        """A message for everybody."""
        self.event("info", message=text)
        if self.verbosity >= 0:
            self._print(text)

    def detail(self, text: str) -> None:
        """A message for those who asked for details."""
        if self.verbosity > 0:
            self.event("detail", message=text)
            self._print(text)

    def warn(self, text: str) -> None:
        """Something a person should know; kept for the summary. The same words are said once."""
        if text in self.warnings:
            return
        self.warnings.append(text)
        self.event("warning", message=text)
        self._print(f"warning: {text}")

    def event(self, kind: str, /, **values: Any) -> None:
        """A machine-readable event, as events.schema.json describes it; only in JSON mode."""
        if self.mode == "json":
            named = {"command": self.command} if kind == "summary" and self.command else {}
            print(json.dumps(_plain({"event": kind, **named, **values})), file=self.stream, flush=True)

    def _print(self, text: str) -> None:
        if self.mode == "bars":
            from tqdm import tqdm

            tqdm.write(text, file=self.stream)
        elif self.mode == "lines":
            print(text, file=self.stream, flush=True)
