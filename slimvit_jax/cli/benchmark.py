"""`python -m slimvit_jax benchmark`: slimmed models against the dense one, timed in turns."""

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
        "Times the dense model and the slimmed ones in turns, in one process, and compares with the ratio "
        "of multiply-adds. Weights are random: speed does not depend on them."
    )
    arguments.add_model(parser, weights=False)
    parser.add_argument("--keep-rates", metavar="R,R,...", default="0.9,0.8,0.7,0.5", help="default: %(default)s")
    parser.add_argument("--batch-size", type=arguments.positive, default=16, metavar="B", help="default: %(default)s")
    parser.add_argument("--rounds", type=arguments.positive, default=9, metavar="N", help="samples of each model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints images/s, the speed ratio, the ratio of multiply-adds, and the quotient of the two."""
    if not args.model:
        raise SlimError("--model NAME is missing (see the command `models`)")
    if args.keep_rate is not None:
        raise SlimError("give --keep-rates here, not --keep-rate")
    import jax
    import jax.numpy as jnp

    from slimvit_jax import Slimming, create_model, flops
    from slimvit_jax.inference.evaluate import measure_speed

    options = common.method_options(args)
    method = options.pop("method", "life_regression")
    own = {key: value for key, value in options.items() if key not in _of_method(method)}
    models = {"dense": create_model(args.model, Slimming(), **own)}
    for rate in common.rate_list(args.keep_rates) if "keep_rate" in _of_method(method) else (None,):
        extra = {} if rate is None else {"keep_rate": rate}
        models[f"{method} {rate:g}" if rate else method] = create_model(args.model, method=method, **options, **extra)
    run_each = {}
    for name, model in models.items():
        images = jnp.zeros((1, *model.img_size, model.in_chans))
        run_each[name] = (model, jax.jit(model.init)(jax.random.key(0), images))
    speeds = measure_speed(run_each, args.batch_size, rounds=args.rounds)
    dense_flops, dense = flops(models["dense"]).total, speeds["dense"]
    rows: list[dict[str, Any]] = []
    for name, speed in speeds.items():
        ratio, expected = dense.median / speed.median, dense_flops / flops(models[name]).total
        rows.append(
            {
                "name": name,
                "images_per_second": speed.images_per_second,
                "milliseconds": 1000 * speed.median,
                "speed_ratio": ratio,
                "flops": flops(models[name]).total,
                "flops_ratio": expected,
                "quotient": ratio / expected,
            }
        )
    device = jax.devices()[0]
    head = (
        f"{args.model}, batch {args.batch_size}, {models['dense'].dtype}, {jax.device_count()} x {device.device_kind}"
    )
    if args.json:
        print(json.dumps({"setting": head, "rounds": args.rounds, "results": rows}, indent=2))
        return 0
    table = tables.table("", "images/s", "ms", "x dense", "multiply-adds", "x fewer", "quotient", title=head)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['images_per_second']:,.1f}",
            f"{row['milliseconds']:.1f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['flops'] / 1e9:.3f} G",
            f"{row['flops_ratio']:.2f}",
            f"{row['quotient']:.2f}",
        )
    tables.show(table)
    return 0


def _of_method(method: str) -> set[str]:
    """Names of a method's own options; empty for a name that create_model will refuse."""
    from slimvit_jax.methods import METHODS

    return set(METHODS[method].__dataclass_fields__) if method in METHODS else set()
