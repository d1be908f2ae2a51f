"""The `sparse-ga` command.

Sub-commands are parsed with argparse, because the standard library starts in a few milliseconds and one flag for each
of sixty configuration fields would bury the few that matter; every field can be set with ``--set section.field=value``
and is validated by the configuration's own dataclasses.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
import warnings
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeAlias

if TYPE_CHECKING:
    from sparse_ga.progress import Reporter

EXIT_CODES = """exit codes:
  0    done
  1    an error in the program itself; please report it with the traceback
  2    the command, a photograph, a mask or a setting cannot be used; the message says which and how to mend it
  3    done, but no image could be registered (match: no usable matches)
  4    the disk is full, or a folder cannot be written; the cache is intact
  130  stopped by Ctrl-C; the same command goes on where it stopped"""

STAGES = ["ingest", "pairs", "encode", "calibrate", "forward", "match", "align3d", "refine2d", "triangulate"]


DEFAULT_WEIGHTS = "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"


class UsageError(Exception):
    """A command line that cannot be understood, in one line."""


class Parser(argparse.ArgumentParser):
    """A parser that ends in one line that says what to do, and not in the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        message = message.replace("unrecognized arguments", "unknown words").removeprefix("argument ")
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found:
            close = difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1)
            message += f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"{message}; see `{self.prog} --help`")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def _finish(parser: argparse.ArgumentParser, handler: str) -> None:
    """Options all commands have, and the function that does the work: module:function in `sparse_ga.commands`."""
    parser.add_argument("-v", "--verbose", action="store_true", help="tell more")
    parser.add_argument("-q", "--quiet", action="store_true", help="tell nothing but errors")
    parser.add_argument("--json", action="store_true", help="print events and the summary as JSON, one a line")
    parser.set_defaults(handler=handler)


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser("run", help="reconstruct the masked object in a set of photographs")
    parser.add_argument("images", nargs="+", help="a folder, a quoted pattern, or files")
    parser.add_argument("--masks", help="folder of masks (NAME.png, NAME.mask.png or NAME.EXT.png); default: alpha")
    parser.add_argument("--out", default="out", help="folder for the results (default: out)")
    parser.add_argument("--cache", help="folder for intermediate results (default: OUT/cache)")
    parser.add_argument("--predictor", help="classical, compact, mast3r, a hub name, or a checkpoint's path")
    parser.add_argument(
        "--cameras",
        help='known cameras: folder of a COLMAP model, or JSON {"NAME.jpg": {"K": 3x3 in px of the photograph, '
        '"cam2w": 4x4 pose, camera to world in OpenCV axes, "size": [W, H] that K is for}, ...}, all three optional',
    )
    parser.add_argument("--format", nargs="+", metavar="FORMAT", help="outputs (default: ply glb colmap)")
    parser.add_argument("--from", dest="from_stage", choices=STAGES, help="compute again from this stage on")
    parser.add_argument("--until", choices=STAGES, help="stop after this stage")
    _add_objects(parser)
    _add_images(parser)
    _finish(parser, "run:run")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="out", help="the --out or --cache folder of a run (default: out)")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="a preset, or a TOML file")
    parser.add_argument("--set", action="append", metavar="SECTION.FIELD=VALUE", help="change one setting")


def _add_objects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--object", metavar="ID", help="label of the object in integer masks; several (1,3), or all")


def _add_cache_commands(commands: Commands) -> None:
    parser = commands.add_parser("stage", help="compute one stage of an earlier run again")
    parser.add_argument("name", choices=STAGES)
    _add_folder(parser)
    _finish(parser, "run:stage")
    parser = commands.add_parser("status", help="what of a run is done, stale (and why) or missing")
    _add_folder(parser)
    _finish(parser, "inspect:status")
    parser = commands.add_parser("clean", help="free what later stages no longer need")
    _add_folder(parser)
    parser.add_argument("--keep", nargs="+", choices=STAGES, metavar="STAGE", help="stages to leave alone")
    parser.add_argument("--stale", action="store_true", help="also what does not belong to the run as it is now")
    parser.add_argument("--dry-run", action="store_true", help="only tell")
    _finish(parser, "inspect:clean")
    parser = commands.add_parser("export", help="write a finished run in other formats")
    _add_folder(parser)
    parser.add_argument("--format", nargs="+", required=True, metavar="FORMAT", help="ply, glb, colmap, 3dgs, ...")
    parser.add_argument("--out", help="folder to write to (default: FOLDER; for a cache, that of its last run)")
    parser.add_argument("--set", action="append", metavar="EXPORT.FIELD=VALUE", help="change one setting")
    _finish(parser, "export:export")


def _add_pair_and_check(commands: Commands) -> None:
    parser = commands.add_parser("match", help="match two photographs and draw the matches")
    parser.add_argument("image_a")
    parser.add_argument("image_b")
    parser.add_argument("--masks", nargs="+", metavar="MASK", help="a folder, or one mask for each; default: alpha")
    parser.add_argument("--fine", action="store_true", help="match again at the photographs' resolution")
    parser.add_argument("--out", default=".", help="folder for the picture and the numbers (default: here)")
    parser.add_argument("--predictor", help="classical, compact, mast3r, a hub name, or a checkpoint's path")
    parser.add_argument("--object", type=int, metavar="ID", help="label of the object in integer masks")
    _add_images(parser)
    _finish(parser, "match:match")
    parser = commands.add_parser("check", help="look for trouble in photographs and masks before any long work")
    parser.add_argument("images", nargs="+", help="a folder, a quoted pattern, or files")
    parser.add_argument("--masks", help="folder of masks; default: alpha")
    _add_objects(parser)
    _add_images(parser)
    _finish(parser, "check:check")


def _add_tools(commands: Commands) -> None:
    parser = commands.add_parser("demo", help="render an object, reconstruct it, and compare with the truth")
    parser.add_argument("--out", default="demo", help="folder for the results (default: demo)")
    parser.add_argument("--views", type=int, help="number of photographs")
    parser.add_argument("--predictor", help="classical (default) or compact")
    _finish(parser, "demo:demo")
    parser = commands.add_parser("view", help="look at a result in the browser (needs the viewer extra)")
    _add_folder(parser)
    parser.add_argument("--port", type=int, default=8080, help="port to serve on (default: 8080)")
    _finish(parser, "view:view")
    parser = commands.add_parser("doctor", help="versions, devices, memory, weights, and a self-test")
    _finish(parser, "doctor:doctor")
    parser = commands.add_parser("weights", help="fetch, describe or convert network weights")
    parser.add_argument("action", choices=["fetch", "info", "convert"])
    parser.add_argument("source", nargs="?", default=DEFAULT_WEIGHTS, help="a hub name, folder or .pth file")
    parser.add_argument("--out", help="convert: folder to write")
    parser.add_argument("--half", action="store_true", help="convert: half precision")
    _finish(parser, "weights:weights")
    parser = commands.add_parser("config", help="print all settings, with what they mean")
    parser.add_argument("--preset", help="a preset, or a TOML file")
    parser.add_argument("--set", action="append", metavar="SECTION.FIELD=VALUE", help="change one setting")
    _finish(parser, "settings:config")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = Parser(
        prog="sparse-ga",
        description="Cameras and a point cloud from masked photographs.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_run(commands)
    _add_cache_commands(commands)
    _add_pair_and_check(commands)
    _add_tools(commands)
    return parser


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(reporter: Reporter, text: str, code: int) -> int:
    """Tell an error in one line, and return the exit code."""
    text = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    reporter.event("error", message=text, exit_code=code)
    print(f"sparse-ga: {text}", file=sys.stderr)
    return code


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = make_parser()
    try:
        args = parser.parse_args(argv)
    except UsageError as error:
        from sparse_ga.progress import Reporter

        wants_json = "--json" in (sys.argv[1:] if argv is None else argv)
        return _fail(Reporter("json" if wants_json else "silent", 0, sys.stdout), str(error), 2)
    if args.version:
        from sparse_ga import __version__

        print(__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    return _guarded(args)


def _guarded(args: argparse.Namespace) -> int:
    """Run the sub-command; errors a user can mend end in one line."""
    from sparse_ga.config import ConfigError
    from sparse_ga.errors import InputError, OutputError
    from sparse_ga.progress import Reporter

    verbosity = 1 if args.verbose else -1 if args.quiet else 0
    reporter = Reporter("json", verbosity, sys.stdout) if args.json else Reporter("auto", verbosity)
    reporter.command = args.command
    warnings.showwarning = partial(_show_warning, reporter)
    module, name = args.handler.split(":")
    try:
        return getattr(importlib.import_module(f"sparse_ga.commands.{module}"), name)(args, reporter)
    except (InputError, ConfigError) as error:
        return _fail(reporter, str(error), 2)
    except OutputError as error:
        return _fail(reporter, str(error), 4)
    except PermissionError as error:  # of a path on the command line, whoever came upon it
        return _fail(reporter, f"{error.filename}: {error.strerror}; check its permissions", 2)
    except KeyboardInterrupt:
        return _fail(reporter, "stopped; what is finished is kept, and the same command goes on from there", 130)
    except BrokenPipeError:  # whoever read our output has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except (RuntimeError, MemoryError) as error:
        if type(error).__module__ == "sparse_ga.network.errors":
            return _fail(reporter, str(error), 2)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _fail(reporter, "out of memory; lower forward.memory_gb or ingest.long_side, and run again", 2)
        _tell_bug(reporter, error)
        raise
    except Exception as error:
        _tell_bug(reporter, error)
        raise


def _tell_bug(reporter: Reporter, error: Exception) -> None:
    """The event of an error that is ours; its traceback follows on the error stream, with exit code 1."""
    reporter.event("error", message=f"{type(error).__name__}: {error}", exit_code=1)


def _show_warning(reporter: Reporter, message: Warning | str, category: type[Warning], *details: object) -> None:
    """Python warnings of this package go to everybody, those of libraries to those who asked for details."""
    own = category.__module__.startswith("sparse_ga.")
    (reporter.warn if own else reporter.detail)(str(message).strip())


if __name__ == "__main__":
    sys.exit(main())
