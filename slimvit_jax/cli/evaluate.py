"""`python -m slimvit_jax evaluate`: the accuracy on a labelled set, every image counted once."""

from __future__ import annotations

import argparse
import json
from typing import Any

from slimvit_jax.cli import common
from slimvit_jax.errors import SlimError
from slimvit_jax.reports import tables


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the `evaluate` command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure the accuracy on a labelled set of images",
        description="Measures top-1 and top-5 with every image counted once, at one or several keep rates.",
    )
    common.add_model_arguments(parser)
    parser.add_argument("--keep-rates", metavar="R,R,...", help="evaluate at each of these, with the same weights")
    common.add_image_arguments(parser)
    parser.add_argument("--limit", type=common.positive, metavar="N", help="only the first N images")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)
    return parser


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
    if not first.model.num_classes:
        raise SlimError(
            f"{first.title} has no classifier (num_classes=0); give weights with one and --set num_classes=N"
        )
    source = common.open_source(args, first)

    from slimvit_jax import flops
    from slimvit_jax.data import eval_batches
    from slimvit_jax.inference.evaluate import evaluate

    variables = first.load()
    rows = []
    for target in targets:
        total = min(len(source), args.limit or len(source))
        size = min(args.batch_size, total)
        batches = eval_batches(source, preprocess=target.preprocess, batch_size=size, limit=args.limit)
        with tables.progress(f"{target.title} {_budget(target.model)}".strip(), total) as advance:
            result = evaluate(target.model, variables, batches, progress=advance)
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
    table = tables.table("model", "patches per layer", "multiply-adds", "top-1", "top-5", "loss", "images")
    for target, row in zip(targets, rows, strict=True):
        table.add_row(
            f"{target.title} {row['method']}",
            _budget(target.model),
            f"{row['flops'] / 1e6:,.1f} M",
            f"{100 * row['top1']:.2f} ± {100 * row['top1_stderr']:.2f} %",
            f"{100 * row['top5']:.2f} %",
            f"{row['loss']:.4f}",
            f"{row['count']:,}",
        )
    tables.show(table)
    return 0


def _budget(model: Any) -> str:
    """The distinct token counts in order: 64 > 45 > 32 > 23."""
    return " > ".join(str(n) for n in dict.fromkeys(model.slim.plan.token_counts))
