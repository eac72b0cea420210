"""`python -m slimvit_jax serve --workdir RUN`: a model behind HTTP, with a page to look at what it keeps."""

from __future__ import annotations

import argparse
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from slimvit_jax.cli import arguments, common
from slimvit_jax.errors import SlimError

if TYPE_CHECKING:
    from slimvit_jax.serve.engine import Budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Serves a classifier over HTTP: POST an image file to /classify or open the page at /. Every keep "
        "rate is compiled once when the server starts; one set of weights serves them all. Needs the extra: pip "
        "install 'slimvit-jax[serve]'."
    )
    arguments.add_model(parser)
    arguments.add_preprocess(parser)
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument(
        "--keep-rates", metavar="R,R,...", help="of the slider, where the method's weights serve several (default: "
        "1,0.9,0.8,0.7,0.6,0.5,0.4,0.3)",
    )  # fmt: skip
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", metavar="NAME", help="0.0.0.0: all (default: %(default)s)")
    group.add_argument("--port", type=_port, default=8000, metavar="N", help="0: any (default: %(default)s)")
    group.add_argument("--batch-sizes", type=_sizes, default="1,4,16", metavar="B,B,...", help="default: %(default)s")
    group.add_argument("--wait-ms", type=_wait, default="3", metavar="MS", help="for company (default: %(default)s)")
    number = functools.partial(group.add_argument, type=arguments.positive, metavar="N")
    number("--queue", default=64, help="images at once, then 503 (64)")
    number("--max-megabytes", default=20, help="of an upload (20)")
    number("--max-megapixels", default=50, help="of an image (50)")


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    try:
        from slimvit_jax.serve import server
        from slimvit_jax.serve.app import Served
        from slimvit_jax.serve.engine import Engine
        from slimvit_jax.serve.uploads import Limits
    except ModuleNotFoundError as error:
        raise SlimError(f"serve needs {error.name}: pip install 'slimvit-jax[serve]'") from None
    own = common.open_target(args)
    budgets, default = slider(args, own)
    names = common.class_names(args, own) or own.model.class_names
    if args.queue < len(budgets):
        raise SlimError(f"--queue {args.queue} has no place for one image at {len(budgets)} keep rates")
    with server.listen(args.host, args.port) as listening:
        engine = Engine(budgets, own.load(), args.batch_sizes)
        limits = Limits(
            1_000_000 * args.max_megabytes, 1_000_000 * args.max_megapixels, args.queue, args.wait_ms / 1000
        )
        served = Served(engine, own.preprocess, own.title, names, default)
        from slimvit_jax.reports import tables

        method = own.model.slim.method
        print(f"{own.title}, {method}: {', '.join(engine.budgets)}; {server.url_of(listening)}", flush=True)
        with contextlib.ExitStack() as bar:
            advance = bar.enter_context(tables.progress("compiling", engine.total, "programs"))

            def progress(done: int) -> None:
                advance(done)
                if done == engine.total:
                    bar.close()
                    print(f"ready: {done} programs; Ctrl-C stops", flush=True)

            server.serve(listening, served, limits, progress)
    print("stopped", flush=True)
    return 0


def slider(args: argparse.Namespace, own: common.Target) -> tuple[list[Budget], str]:
    """The stops of the slider, and the name of the one that is the model as asked for."""
    from slimvit_jax.serve.engine import Budget

    slim: Any = own.model.slim
    if not own.model.num_classes:
        raise SlimError(f"{own.title} has no classifier (num_classes=0): there are no classes to serve")
    if "keep_rate" not in type(slim).__dataclass_fields__ or not slim.any_budget:
        if args.keep_rates is not None:
            raise SlimError(f"--keep-rates {args.keep_rates}: method {slim.method!r} has weights for one budget")
        return [Budget(slim.method, None, own.model)], slim.method
    rates = set(common.rate_list(args.keep_rates or "1,0.9,0.8,0.7,0.6,0.5,0.4,0.3"))
    others = {name: None for name in slim.in_place_of_keep_rate if getattr(slim, name) is not None}
    rate, budgets = slim.keep_rate, []
    single = isinstance(rate, float) and not others
    for each in sorted(rates | ({rate} if single else set()), reverse=True):
        try:
            model = own.model.clone(slim=slim.clone(keep_rate=each, **others))
        except SlimError:  # too few patches for the method; of the rates that nobody asked for some can be missing
            if args.keep_rates is not None:
                raise
            continue
        budgets.append(Budget(f"{each:g}", each, model))
    if not single:
        budgets.append(Budget("own", None, own.model))
    return budgets, f"{rate:g}" if single else "own"


def _port(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(arguments.positive(part) for part in text.split(","))


def _wait(text: str) -> float:
    (value, *more) = arguments.numbers(text)
    if more or not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of milliseconds from 0 to 1000")
    return value
