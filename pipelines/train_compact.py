"""Train the compact MASt3R on procedural pairs rendered as it goes; run in chunks, resume exactly, export.

    train_compact.py train RUN --minutes 25            # again and again, until the schedule ends
    train_compact.py within RUN --minutes 9 --fuse     # a whole training in that time, on a GPU; weights in RUN/weights
    train_compact.py measure RUN                       # views and pairs a second of this device, no training
    train_compact.py validate RUN [--classical]        # fixed unseen scenes: the network, or the classical predictor
    train_compact.py export RUN FOLDER                 # averaged weights, half precision, for sparse_ga/weights/compact
    train_compact.py pack RUN FOLDER                   # the same in files of at most 15 MiB, to carry between machines
    train_compact.py train RUN2 --start FOLDER         # a new schedule from packed weights
    train_compact.py render RUN --pool 1000 --size small --side 128   # without a GPU: objects rendered once, then
    train_compact.py train RUN --pool 1000 --size small --side 128    # drawn from again and again

Leaves RUN/last.safetensors (a checkpoint a minute), RUN/metrics.jsonl and RUN/plots.html.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sparse_ga.network.model import AsymmetricMASt3R
from sparse_ga.synthetic.procedural.pool import Pool, write_shard
from sparse_ga.synthetic.procedural.scene import SceneConfig, render_batch
from sparse_ga.synthetic.procedural.shapes import fuse_distances
from sparse_ga.training.budget import device_name, measure_speed, scheduled, stages, train_within
from sparse_ga.training.checkpoints import averaged_weights, export_parts, load_parts
from sparse_ga.training.compact_task import CompactTask, CompactTaskConfig, architecture
from sparse_ga.training.loop import Chunk, LoopConfig, run
from sparse_ga.training.metrics import Record
from sparse_ga.training.validation import UnseenPair, score_predictor, unseen_pairs

POOL_SEED, UNSEEN_SEED = 101, 901
_POOL_VIEWS = 8
_LOSS_BATCHES = 40


def _unseen(args: argparse.Namespace) -> list[UnseenPair]:
    """The fixed validation pairs."""
    return unseen_pairs(_unseen_pool(args), args.unseen)


def _unseen_pool(args: argparse.Namespace) -> Pool:
    """Objects of the validation, rendered into a folder of RUN at the first use."""
    folder = args.run / f"unseen_{args.background}"
    folder.mkdir(parents=True, exist_ok=True)
    config = SceneConfig(1, 6, args.side, args.side, grid=48, plain_share=0.5, background=args.background)
    return Pool(folder, config, UNSEEN_SEED, args.device)


def _losses(model: AsymmetricMASt3R, args: argparse.Namespace) -> Record:
    """What training measures, on the unseen objects: means over fixed batches, masked as the arguments say.

    They tell networks and modes apart that find no poses yet.
    """
    modes: dict[str, tuple[float, float, float]] = {"tokens": (1, 0, 0), "fill": (0, 1, 0), "context": (0, 0, 1)}
    config = replace(_config(args), pool_objects=args.unseen, mode_weights=modes[args.mode], imperfect_share=0.0)
    task = CompactTask(config, None, pool=_unseen_pool(args))
    with torch.no_grad():
        measured = [task.loss(model, step)[1] for step in range(_LOSS_BATCHES)]
    return {name: float(sum(m[name] for m in measured)) / len(measured) for name in ("error", "nce", "accuracy")}


def _validator(pairs: list[UnseenPair], args: argparse.Namespace) -> Callable[[AsymmetricMASt3R], Record]:
    """Scores a network on `pairs`, masked as the arguments say."""
    from sparse_ga.config import ForwardConfig
    from sparse_ga.predictors.compact import SmallNetworkPredictor

    config = ForwardConfig(device=args.device, mask_mode=args.mode)

    def score(model: AsymmetricMASt3R) -> Record:
        return score_predictor(SmallNetworkPredictor(model, config, args.side), pairs)

    return score


def _config(args: argparse.Namespace) -> CompactTaskConfig:
    return CompactTaskConfig(
        size=args.size,
        side=args.side,
        objects=args.objects,
        views=args.views,
        rendered_steps=args.rendered_steps,
        repeats=args.repeats,
        pool_objects=args.pool,
        correspondences=args.correspondences,
        pair_deg=args.pair_deg,
        match_weight=args.match_weight,
        seed=args.seed,
    )


def _pool(args: argparse.Namespace) -> Pool:
    """The training pool in RUN/pool; what is missing is rendered when it is drawn."""
    folder = args.run / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    return Pool(folder, SceneConfig(1, _POOL_VIEWS, args.side, args.side, grid=48), POOL_SEED)


def render(args: argparse.Namespace) -> None:
    """Fill the pool ahead of training, or beside it."""
    _set_up(args, 1)
    pool = _pool(args)
    for index in range(args.pool):
        write_shard(pool.folder, pool.config, pool.seed, index)


def _loop(args: argparse.Namespace) -> LoopConfig:
    base = LoopConfig(
        learning_rate=args.rate, weight_decay=0.05, validate_every=args.validate_every, optimizer=args.optimizer
    )
    return scheduled(base, args.steps, args.final_share)


def _set_up(args: argparse.Namespace, objects: int) -> None:
    """Fused distances, where they compile, for `objects` rendered together."""
    if args.fuse:
        device = torch.device(args.device)
        fuse_distances(1 << 19 if device.type == "cuda" else 1 << 14)
        try:
            render_batch(SceneConfig(objects, 1, 16, 16, grid=16), 0, 0, device)
        except Exception as error:  # whatever a compiler may say: rendering works without it
            fuse_distances(0)
            print(f"--fuse: not compiled, goes on without ({type(error).__name__}: {str(error)[:300]})")


def train(args: argparse.Namespace) -> None:
    """Train from the last checkpoint for the time given."""
    _set_up(args, args.objects * args.rendered_steps)
    loop = _loop(args)
    initial = None if args.start is None else load_parts(args.start)
    validator = _validator(_unseen(args), args) if args.unseen > 0 else None
    task = CompactTask(_config(args), validator, initial, _pool(args) if args.pool else None)
    state = run(task, loop, args.run, torch.device(args.device), Chunk(args.minutes))
    print(f"step {state.step} of {loop.steps}; {args.run / 'metrics.jsonl'}, {args.run / 'plots.html'}")


def measure(args: argparse.Namespace) -> None:
    """Print rendered views a second and trained pairs a second, rendering included."""
    device = torch.device(args.device)
    _set_up(args, args.objects * args.rendered_steps)
    speed = measure_speed(_config(args), _loop(args), device)
    figures = {"device": device_name(device), **{k: round(v, 4) for k, v in asdict(speed).items()}}
    if device.type == "cuda":
        figures["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 1)
    print(json.dumps(figures))


def within(args: argparse.Namespace) -> None:
    """Train in the time given: at half the side, then at the side, with as many steps as there is time for."""
    if args.minutes is None:
        raise SystemExit("train_compact.py within: say in how many --minutes")
    begun = time.monotonic()
    _set_up(args, args.objects * args.rendered_steps)
    initial = None if args.start is None else load_parts(args.start)
    plan = stages(_config(args), args.first_share) if args.first_share > 0 else stages(_config(args), 0.0)[1:]
    left = args.minutes - (time.monotonic() - begun) / 60  # compiling takes some of it
    train_within(left, plan, _loop(args), args.run, torch.device(args.device), initial)


def _averaged(args: argparse.Namespace) -> AsymmetricMASt3R:
    """The network of RUN's last checkpoint, or of the packed weights that --start names, of --size and --side."""
    if args.start is None:
        weights, settings, _ = averaged_weights(args.run / "last.safetensors")
        size, side = settings["task"]["size"], settings["task"]["side"]
    else:
        weights, size, side = load_parts(args.start), args.size, args.side
    model = AsymmetricMASt3R(architecture(size, side))
    model.load_state_dict(weights)
    return model.eval()


def validate(args: argparse.Namespace) -> None:
    """Print the metrics of the averaged network, or of the classical predictor, on the fixed unseen pairs."""
    _set_up(args, 1)
    if args.classical:
        from sparse_ga.predictors.classical import ClassicalPredictor

        metrics = score_predictor(ClassicalPredictor(), _unseen(args))
    else:
        model = _averaged(args).to(args.device)
        metrics = _validator(_unseen(args), args)(model) | _losses(model, args)
    print(json.dumps({k: round(v, 4) for k, v in metrics.items()}))


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights in half precision."""
    from sparse_ga.network.checkpoint import save_model

    info = save_model(_averaged(args), args.output, "Apache-2.0", half=True)
    print(f"{args.output}: {info.size_bytes / 1e6:.1f} MB, {info.parameters / 1e6:.1f} M parameters")


def pack(args: argparse.Namespace) -> None:
    """Write the averaged weights in half precision in files small enough to carry."""
    weights, _, step = averaged_weights(args.run / "last.safetensors")
    paths = export_parts(args.output, weights)
    print(f"step {step}: " + ", ".join(f"{path} {path.stat().st_size / 1e6:.1f} MB" for path in paths))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["render", "train", "within", "measure", "validate", "export", "pack"])
    parser.add_argument("run", type=Path, help="folder of the run: checkpoints, metrics, validation scenes")
    parser.add_argument("output", type=Path, nargs="?", help="export, pack: where the weights go")
    for name, value, text in (
        ("side", 256, "long side of the images in px"),
        ("objects", 16, "objects in a batch"),
        ("views", 4, "views of an object, in pairs"),
        ("rendered-steps", 4, "steps whose objects are rendered together"),
        ("repeats", 3, "how often rendered objects are used, in other pairs and under other masks"),
        ("pool", 0, "objects rendered once into RUN/pool and drawn from; 0: new ones for every step"),
        ("correspondences", 1024, "correspondences of a pair in the matching loss"),
        ("steps", 60000, "length of the whole schedule"),
        ("validate-every", 1000, "steps between validations"),
        ("unseen", 40, "objects of the validation; 0: none while training, and no need of pydantic"),
        ("seed", 0, "seed of weights and batches"),
        ("threads", 1, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument(
        "--size", choices=["patch8", "patch16", "small", "tiny"], default="patch8", help="which network"
    )
    parser.add_argument("--mode", choices=["tokens", "fill", "context"], default="tokens", help="masking in validation")
    parser.add_argument(
        "--background",
        choices=["mixed", "still", "clean"],
        default="mixed",
        help="behind the objects of the validation: still while the object moves, one colour, or of all kinds",
    )
    parser.add_argument(
        "--start",
        type=Path,
        default=None,
        help="packed weights: train and within start from them, validate and export take them",
    )
    parser.add_argument("--classical", action="store_true", help="validate: the classical predictor instead")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon", help="what steps the weights")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--match-weight", type=float, default=0.6, help="of the matching loss beside the regression")
    parser.add_argument("--pair-deg", type=float, default=75.0, help="pairs look from directions within this")
    parser.add_argument("--final-share", type=float, default=0.01, help="learning rate at the end, of the peak")
    parser.add_argument("--first-share", type=float, default=0.5, help="within: of the time, at half the side")
    parser.add_argument("--fuse", action="store_true", help="compile the renderer's distances: pays on a GPU")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this long; run again to go on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Run one action."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    actions = (render, train, within, measure, validate, export, pack)
    {action.__name__: action for action in actions}[args.action](args)


if __name__ == "__main__":
    main()
