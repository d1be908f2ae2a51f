"""All benchmarks, or some of them, each in a process of its own: what it costs beside what it is compared with.

    python pipelines/benchmark.py                       # forward, matching, alignment, triangulation
    python pipelines/benchmark.py matching              # one of them
    python pipelines/benchmark.py alignment -- --views 24 --graph window-4

Everything after ``--`` goes to the benchmarks; ``benchmark_NAME.py --help`` tells what each takes. Compare the ratios
that one run prints, not seconds of different runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAMES = ("forward", "matching", "alignment", "triangulation")


def run(name: str, arguments: Sequence[str]) -> int:
    """Run one benchmark with the same interpreter; its exit code."""
    print(f"== {name}", flush=True)
    program = Path(__file__).parent / f"benchmark_{name}.py"
    return subprocess.run([sys.executable, str(program), *arguments], check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when every benchmark ran."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    names = parser.parse_args(given[:cut]).names or list(NAMES)
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return max(run(name, given[cut + 1 :]) for name in names)


if __name__ == "__main__":
    sys.exit(main())
