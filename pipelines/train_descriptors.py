"""Train the dense descriptor network on procedural pairs: render a pool, train in chunks, export the weights.

    train_descriptors.py render RUN --objects 1000          # optional: fill the pool ahead, in other processes
    train_descriptors.py train RUN --steps 3000 --minutes 60
    train_descriptors.py export RUN weights.safetensors
    train_descriptors.py compare RUN                        # against RootSIFT inside the mask, unseen objects; the
                                                            # package's own weights where RUN has no checkpoint
    train_descriptors.py train RUN2 --start weights.safetensors   # a new schedule from exported weights

A run resumes from RUN/last.safetensors and ends with the same weights as one that was never cut off.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sparse_ga.network.descriptor_cnn import DenseDescriptor, DescriptorCNN, DescriptorConfig
from sparse_ga.predictors.loading import packaged_descriptors
from sparse_ga.synthetic.procedural.pool import Pool, write_shard
from sparse_ga.synthetic.procedural.scene import SceneConfig
from sparse_ga.training.checkpoints import averaged_weights, export_weights
from sparse_ga.training.descriptor_task import (
    DescriptorTask,
    DescriptorTaskConfig,
    describer_matches,
)
from sparse_ga.training.loop import Chunk, LoopConfig, run
from sparse_ga.training.metrics import Record
from sparse_ga.training.validation import score_matches, score_predictor, summarise_matches, unseen_pairs

TRAIN_SEED, UNSEEN_SEED = 100, 900


def _pools(folder: Path, pixels: int, views: int) -> tuple[Pool, Pool]:
    """The training pool and the validation pool in `folder`, made if missing; they share no object."""
    folder.mkdir(parents=True, exist_ok=True)
    train = SceneConfig(1, views, pixels, pixels, grid=48, plain_share=0.45, background="clean")
    unseen = SceneConfig(1, views, pixels, pixels, grid=48, plain_share=0.5, background="clean")
    return Pool(folder, train, TRAIN_SEED), Pool(folder, unseen, UNSEEN_SEED)


def _task(args: argparse.Namespace) -> DescriptorTask:
    network = DescriptorConfig(dim=args.dim, size=args.size)
    config = DescriptorTaskConfig(
        pairs=args.pairs,
        seed=args.seed,
        unseen_objects=args.unseen,
        first_objects=args.first_objects,
        objects_per_step=args.objects_per_step,
        min_visible=args.min_visible,
    )
    initial = None if args.start is None else DenseDescriptor.load(args.start).model.state_dict()
    return DescriptorTask(network, config, _pools(args.run / "pool", args.pixels, args.views), initial)


def render(args: argparse.Namespace) -> None:
    """Fill the pool ahead of training; several processes may share the work."""
    pool, _ = _pools(args.run / "pool", args.pixels, args.views)
    for index in range(args.worker, args.objects, args.workers):
        write_shard(pool.folder, pool.config, pool.seed, index)


def train(args: argparse.Namespace) -> None:
    """Train from the last checkpoint for the time given."""
    loop = LoopConfig(steps=args.steps, learning_rate=args.rate, warmup=100, average_decay=0.998, validate_every=250)
    state = run(_task(args), loop, args.run, torch.device(args.device), Chunk(args.minutes))
    print(f"step {state.step} of {loop.steps}; {args.run / 'metrics.jsonl'}, {args.run / 'plots.html'}")


def _averaged(run_folder: Path) -> tuple[dict[str, torch.Tensor], DescriptorConfig, int]:
    """Averaged weights of the last checkpoint, the network they fit, and the step."""
    weights, settings, step = averaged_weights(run_folder / "last.safetensors")
    raw = settings["network"]
    return weights, DescriptorConfig(raw["dim"], tuple(raw["widths"]), tuple(raw["blocks"]), raw["size"]), step


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights in half precision."""
    weights, config, step = _averaged(args.run)
    export_weights(args.output, weights, DenseDescriptor.metadata(config) | {"step": str(step)})
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, step {step}")


def compare(args: argparse.Namespace) -> None:
    """Print, on pairs of unseen objects: raw matches of the network and of RootSIFT, then matches, poses and depths of
    the classical predictor with and without the network."""
    from sparse_ga.predictors.classical import ClassicalPredictor
    from sparse_ga.predictors.described import FIRST_SIZE
    from sparse_ga.training.baselines import root_sift_matches

    if (args.run / "last.safetensors").is_file():
        weights, config, step = _averaged(args.run)
        model = DescriptorCNN(config)
        model.load_state_dict(weights)
    else:
        model, step = DenseDescriptor.load(args.start or packaged_descriptors()).model, None
    describer = DenseDescriptor(model, "compare")
    _, pool = _pools(args.run / "pool", args.pixels, args.views)
    pairs = unseen_pairs(pool, args.unseen)

    def show(name: str, metrics: Record) -> None:
        print(json.dumps({"matcher": name, "step": step, **{k: round(v, 4) for k, v in metrics.items()}}), flush=True)

    for name, matcher in (("network", lambda p: describer_matches(describer, p)), ("root_sift", root_sift_matches)):
        show(name, summarise_matches([score_matches(matcher(pair), pair) for pair in pairs]))
    show("classical", score_predictor(ClassicalPredictor(), pairs))
    both = ClassicalPredictor(describer=DenseDescriptor(model, "compare", FIRST_SIZE))
    show("classical with network", score_predictor(both, pairs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["render", "train", "export", "compare"])
    parser.add_argument("run", type=Path, help="folder of the run: pool, checkpoints, metrics")
    parser.add_argument("output", type=Path, nargs="?", help="export: where the weights go")
    for name, value, text in (
        ("objects", 1000, "render: objects of the pool"),
        ("worker", 0, "render: number of this process"),
        ("workers", 1, "render: number of processes"),
        ("steps", 3000, "length of the whole schedule"),
        ("pairs", 8, "pairs in a batch"),
        ("dim", 32, "length of one copy's descriptor"),
        ("size", 160, "side in px the object is brought to"),
        ("pixels", 192, "side in px of rendered views"),
        ("views", 6, "rendered views of an object"),
        ("unseen", 40, "objects of the validation"),
        ("min-visible", 60, "pairs with fewer of 384 correspondences are drawn again"),
        ("first-objects", 200, "objects the first step draws from"),
        ("seed", 0, "seed of weights and batches"),
        ("threads", 1, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument("--start", type=Path, default=None, help="train, compare: exported weights to start from")
    parser.add_argument("--objects-per-step", type=float, default=0.2, help="objects more that each step draws from")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this long; run again to go on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Run one action."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    {"render": render, "train": train, "export": export, "compare": compare}[args.action](args)


if __name__ == "__main__":
    main()
