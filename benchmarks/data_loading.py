"""Images per second of decoding and train augmentation, beside timm's own loader on the same JPEG files.

    python -m benchmarks.data_loading [--data FOLDER/train] [--workers 2] [--recipe deit|crop] [--no-timm]

Both loaders read the same image folder and make float32 normalised batches with the same recipe. They take turns in
one process, round by round; before each measurement the batches a loader has ready are drained, and while one is
measured the other's workers have filled their buffers and sleep. The figure to read is the ratio of the medians:
absolute figures drift with whatever else the machine does. Without --data it makes its own files, 500 x 375 like
ImageNet's.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.command import command_line
from benchmarks.timm_worker import import_timm
from slimvit_jax.data import Augment, Preprocess, open_source, train_iterator
from slimvit_jax.files import write_json
from slimvit_jax.inference.timing import describe_machine

RECIPES = {
    "deit": {"hflip": 0.5, "randaugment": "rand-m9-mstd0.5-inc1", "erase_prob": 0.25, "interpolation": "bicubic"},
    "crop": {"hflip": 0.5, "interpolation": "bicubic"},
}


def make_files(root: Path, count: int, entries: int) -> None:
    """Writes `count` JPEGs like ImageNet's photographs in size and detail, each under so many names that the folder has
    `entries`: an epoch longer than the measurement, because timm's loaders stall at an epoch's end and ours does not.
    """
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = np.zeros((375, 500, 3), np.float32)
        for side in (4, 16, 64, 250):  # structure at every scale, weaker at the finer ones
            noise = Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8))
            pixels += np.asarray(noise.resize((500, 375), Image.Resampling.BICUBIC), np.float32) / side**0.3
        pixels = (pixels - pixels.min()) * (255 / np.ptp(pixels))
        directory = root / "train" / f"class{i % 4}"
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{i:04}.jpg", quality=90)
        for copy in range(1, -(-entries // count)):
            os.link(directory / f"{i:04}.jpg", directory / f"{i:04}-{copy}.jpg")


def timm_batches(
    root: Path, recipe: dict, batch: int, workers: int, prefetcher: bool
) -> Generator[np.ndarray, None, None]:
    """timm's training batches (B, 3, 224, 224), endless."""
    import torch

    torch.set_num_threads(1)
    import_timm(torch)
    data = importlib.import_module("timm.data")
    # timm 1.0.31 asks for 0 bits at full magnitude, which Pillow 13 refuses.
    operations = importlib.import_module("timm.data.auto_augment").NAME_TO_OP
    operations["PosterizeIncreasing"] = lambda image, bits, **_: ImageOps.posterize(image, max(1, min(bits, 8)))
    loader = data.create_loader(
        data.create_dataset("", root=str(root / "train")),
        input_size=(3, 224, 224),
        batch_size=batch,
        is_training=True,
        use_prefetcher=prefetcher,
        re_prob=recipe.get("erase_prob", 0.0),
        re_mode="pixel",
        hflip=recipe["hflip"],
        color_jitter=None,
        auto_augment=recipe.get("randaugment"),
        interpolation=recipe["interpolation"],
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=bool(workers),
        pin_memory=False,
    )
    while True:
        for images, _ in loader:
            yield images


def our_batches(root: Path, recipe: dict, batch: int, workers: int) -> Generator[np.ndarray, None, None]:
    """Our training batches (B, 224, 224, 3), endless."""
    source = open_source("folder", "train", root)
    augment = Augment(kind="crop", **recipe)
    iterator = train_iterator(
        source, preprocess=Preprocess(224), augment=augment, batch_size=batch, num_workers=workers
    )
    for item in iterator:
        yield item["image"]


def measure(
    next_batch: Callable[[], np.ndarray], batch: int, drain: int, count: int, clock: Callable[[], float]
) -> float:
    """Images per second over `count` batches after `drain` unmeasured ones."""
    for _ in range(drain):
        next_batch()
    began = clock()
    for _ in range(count):
        next_batch()
    return batch * count / (clock() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds train/CLASS/*.jpg; default: generated files")
    parser.add_argument("--files", type=int, default=256, help="how many files to generate")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="deit")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=12, help="measured batches a round")
    parser.add_argument("--no-timm", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or Path(scratch)
        drain = 3 * args.workers + 2
        if args.data is None:
            make_files(root, args.files, args.batch * (args.rounds * (drain + args.count) + drain))
        loaders = {"slimvit_jax": our_batches(root, recipe, args.batch, args.workers)}
        if not args.no_timm:
            loaders["timm"] = timm_batches(root, recipe, args.batch, args.workers, False)
            loaders["timm, prefetcher"] = timm_batches(root, recipe, args.batch, args.workers, True)
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        # Without workers all work is this process's, and its processor time does not see what else the machine does.
        clock = time.perf_counter if args.workers else time.process_time
        for _ in range(args.rounds):
            for name, loader in loaders.items():
                rates[name].append(measure(loader.__next__, args.batch, drain, args.count, clock))
        while loaders:  # their workers end before the files go
            loaders.popitem()[1].close()
        del loader
        gc.collect()
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in median.items():
        low, high = min(rates[name]), max(rates[name])
        ratio = median["slimvit_jax"] / rate
        print(f"{name:18} {rate:8.1f} images/s  ({low:.1f} to {high:.1f})  slimvit_jax / this = {ratio:.2f}")
    if args.json:
        about = {"command": command_line("data_loading", folders=False), "machine": describe_machine()}
        write_json(args.json, about | {"rates": rates})


if __name__ == "__main__":
    main()
