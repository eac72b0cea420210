"""`python -m slimvit_jax evaluate`: the accuracy on a labelled set, every image counted once."""

from __future__ import annotations

import argparse
import json
from typing import Any

from slimvit_jax.cli import arguments, common
from slimvit_jax.errors import SlimError
from slimvit_jax.reports import tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Measures top-1 and top-5 with every image counted once, at one or several keep rates. Of a model "
        "without a classifier (num_classes=0) it measures the features: k nearest neighbours, and a linear probe."
    )
    arguments.add_model(parser)
    parser.add_argument("--keep-rates", metavar="R,R,...", help="evaluate at each of these, with the same weights")
    arguments.add_images(parser)
    parser.add_argument("--limit", type=arguments.positive, metavar="N", help="only N images, of all classes")
    features = parser.add_argument_group("features (num_classes=0)")
    features.add_argument("--train-split", metavar="NAME", help="what the probes learn from (default: train)")
    features.add_argument("--neighbours", type=arguments.positive, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the accuracies."""
    if args.keep_rates is not None and args.keep_rate is not None:
        raise SlimError("--keep-rate is one model's; leave it out with --keep-rates")
    rates = None if args.keep_rates is None else common.rate_list(args.keep_rates)
    targets = []
    for rate in rates or (None,):
        if rate is not None:
            args.keep_rate = str(rate)
        targets.append(common.open_target(args))
    first = targets[0]
    if first.model.num_classes and args.train_split:
        raise SlimError(f"--train-split {args.train_split} is for features; {first.title} has a classifier")

    from slimvit_jax import flops
    from slimvit_jax.data import limited

    measure = _accuracy if first.model.num_classes else _probe
    source = limited(common.open_source(args, first), args.limit)
    train = None if first.model.num_classes else common.open_source(args, first, args.train_split or "train")
    train = train and limited(train, args.limit)
    variables = first.load()
    rows = []
    for target in targets:
        result = measure(args, target, variables, source, train)
        rows.append(
            {
                "model": target.title,
                "method": target.model.slim.method,
                "token_counts": list(target.model.slim.plan.token_counts),
                "flops": flops(target.model).total,
                **result.summary(),
            }
        )
    if args.json:
        print(json.dumps({"data": source.name, "split": source.split, "results": rows}, indent=2))
        return 0
    shown = (("top-1", "top1"), ("top-5", "top5"), ("loss", "loss"))
    if train is not None:
        shown = ((f"{args.neighbours}-NN", "knn"), ("linear probe", "linear"), ("learned from", "trained_on"))
    columns = [title for title, _ in shown]
    table = tables.table("model", "patches per layer", "multiply-adds", *columns, "images")
    for target, row in zip(targets, rows, strict=True):
        values = [_shown(key, row) for _, key in shown]
        cost = (_budget(target.model), f"{row['flops'] / 1e6:,.1f} M")
        table.add_row(f"{target.title} {row['method']}", *cost, *values, f"{row['count']:,}")
    tables.show(table)
    return 0


def _accuracy(args: argparse.Namespace, target: common.Target, variables: Any, source: Any, train: Any) -> Any:
    from slimvit_jax.inference.evaluate import evaluate

    with tables.progress(f"{target.title} {_budget(target.model)}".strip(), len(source)) as advance:
        return evaluate(target.model, variables, _batches(args, target, source), progress=advance)


def _probe(args: argparse.Namespace, target: common.Target, variables: Any, source: Any, train: Any) -> Any:
    from slimvit_jax.inference.evaluate import Inference
    from slimvit_jax.inference.probe import features, probe

    run, found = Inference(target.model, variables), []
    for each in (train, source):
        with tables.progress(f"{target.title} {each.split}", len(each)) as advance:
            found.append(features(run, _batches(args, target, each), advance))
    return probe(found[0], found[1], args.neighbours)


def _batches(args: argparse.Namespace, target: common.Target, source: Any) -> Any:
    from slimvit_jax.data import eval_batches
    from slimvit_jax.inference.memory import check_batch

    size = min(args.batch_size, len(source))
    check_batch(target.model, size)
    return eval_batches(source, preprocess=target.preprocess, batch_size=size)


def _shown(key: str, row: dict[str, Any]) -> str:
    if isinstance(row[key], int):
        return f"{row[key]:,}"
    if key == "loss":
        return f"{row[key]:.4f}"
    error = f" ± {100 * row[f'{key}_stderr']:.2f}" if f"{key}_stderr" in row else ""
    return f"{100 * row[key]:.2f}{error} %"


def _budget(model: Any) -> str:
    """The distinct token counts in order: 64 > 45 > 32 > 23."""
    return " > ".join(str(n) for n in dict.fromkeys(model.slim.plan.token_counts))
