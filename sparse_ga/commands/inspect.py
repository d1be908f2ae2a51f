"""`sparse-ga status` and `sparse-ga clean`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_ga.commands.jobs import find_run
from sparse_ga.errors import OutputError
from sparse_ga.progress import Reporter
from sparse_ga.stages.job import Job
from sparse_ga.status import StageStatus, dropped_pairs, job_keys, removable, undecided_stages
from sparse_ga.status import status as stage_statuses
from sparse_ga.store import Store, stat_of

_MOST_PAIRS = 12


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _row(item: StageStatus) -> str:
    if item.total is None:
        state, count = "waiting", ""
    elif item.total == 0:
        state, count = "not needed", ""
    elif item.done == item.total:
        state, count = "done", f"{item.done}"
    else:
        state, count = "partly" if item.done else "missing", f"{item.done} of {item.total}"
    note = f"stale: {', '.join(item.stale)}" if item.stale else ""
    if item.other_bytes:
        note += f"{'; ' if note else ''}{_megabytes(item.other_bytes)} of other settings"
    return f"{item.stage:<12}{state:<11}{count:>12}  {_megabytes(item.size_bytes):>11}  {note}".rstrip()


def status(args: argparse.Namespace, reporter: Reporter) -> int:
    """A table of stages, and which pairs were dropped and why."""
    cache, record = find_run(Path(args.folder))
    job, store = record.job(load=False), Store(cache)
    items = stage_statuses(job, store)
    dropped = dropped_pairs(job, store)
    for item in items:
        reporter.event(
            "stage",
            stage=item.stage,
            done=item.done,
            total=item.total,
            size_bytes=item.size_bytes,
            stale=list(item.stale),
            other_bytes=item.other_bytes,
        )
    reporter.event("dropped_pairs", pairs=[{"pair": pair, "reason": reason} for pair, reason in dropped])
    finished = bool(items) and all(item.total is not None and item.done == item.total for item in items[-1:])
    reporter.event(
        "summary", finished=finished, size_bytes=sum(item.size_bytes for item in items), dropped_pairs=len(dropped)
    )
    if reporter.mode == "json":
        return 0
    print(f"{'stage':<12}{'state':<11}{'artifacts':>12}  {'size':>11}")
    for item in items:
        print(_row(item))
    shown = dropped if args.verbose else dropped[:_MOST_PAIRS]
    if dropped:
        print(f"\n{len(dropped)} pairs dropped:")
    for pair, reason in shown:
        print(f"  {pair}: {reason}")
    if len(shown) < len(dropped):
        print(f"  ... and {len(dropped) - len(shown)} more (-v shows all)")
    return 0


def _remove(path: Path) -> None:
    """Remove a file of the cache; raises `OutputError`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed ({error.strerror}); check the folder's permissions") from None


def clean(args: argparse.Namespace, reporter: Reporter) -> int:
    """Remove what later stages no longer need."""
    cache, record = find_run(Path(args.folder))
    job, store = record.job(load=False), Store(cache)
    if args.stale:
        _warn_of_undecided(job, store, reporter)
    files = removable(job, store, args.keep or [], args.stale)
    sizes: dict[str, int] = {}
    for path in files:
        if (stat := stat_of(path)) is None:
            continue
        sizes[path.parent.name] = sizes.get(path.parent.name, 0) + stat.st_size
        if not args.dry_run:
            _remove(path)
    total = sum(sizes.values())
    reporter.event("summary", freed_bytes=total, files=len(files), stages=sizes, dry_run=args.dry_run)
    if reporter.mode != "json":
        verb = "would be freed" if args.dry_run else "freed"
        detail = ", ".join(f"{name} {_megabytes(size)}" for name, size in sizes.items())
        reporter.info(f"{_megabytes(total)} {verb}{f' ({detail})' if detail else ''}")
    return 0


def _warn_of_undecided(job: Job, store: Store, reporter: Reporter) -> None:
    """Say of which stages nothing stale was removed, and what makes it known."""
    undecided = undecided_stages(job_keys(job, store))
    if undecided:
        reporter.warn(
            f"{store.root}: not yet known what of {', '.join(undecided)} is stale, for photographs or masks have "
            "changed or were never read; all of it is kept: give `sparse-ga run` with --until calibrate first, then "
            "clean again"
        )
