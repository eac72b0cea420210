"""Images per second of slimmed models beside the dense one, and beside timm on the same machine.

    python -m benchmarks.throughput                                   DeiT-S at 0.7 against dense, batch 16, float32
    python -m benchmarks.throughput --timm --compile --overhead --training    with timm, score overhead, training steps
    python -m benchmarks.throughput --methods all --models deit_tiny_patch16_224 --keep-rates 0.7,0.5
    python -m benchmarks.throughput --models deit_small_patch16_224,deit_base_patch16_224 --dtypes bfloat16 \\
        --batch-sizes 256,fastest --timm --compile --peak-tflops 989  on a GPU
    python -m benchmarks.throughput --models levit_256 --methods= --against evo_levit_256 --fused --timm
    python -m benchmarks.throughput --suite=papers --timm --rounds 5  every row of the papers' tables, training, growth

Whatever is compared takes turns, round after round: ours in one process, timm in a worker process. The figures to read
are the ratios of medians; absolute ones drift with whatever else the machine does. "quotient" is the speed ratio over
the ratio of multiply-adds: 1 means that all of the saved arithmetic became speed. Weights are random: speed does not
depend on them. JSON holds every sample, elapsed and CPU time; it is written anew after each table, and --resume goes on
from it. Under torch.compile timm's attention is PyTorch's fused one, on a GPU in 16 bits its flash attention.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, listed

FASTEST, MEASURED = "fastest", "measured"
ALONE = "XLA_PYTHON_CLIENT_PREALLOCATE"  # JAX would take most of a GPU's memory before timm's process asks for its own


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    batch = lambda text: text if text == FASTEST else int(text)
    peak = lambda text: text if text == MEASURED else float(text)
    add = parser.add_argument
    add("--models", type=listed(str), default=["deit_small_patch16_224"], metavar="NAME,...")
    add("--methods", type=listed(str), default=["life_regression"], metavar="NAME,...", help="or 'all'")
    add("--keep-rates", type=listed(float), default=[0.7], metavar="R,...")
    add(
        "--batch-sizes",
        type=listed(batch),
        default=[],
        metavar="B,...",
        help=f"{FASTEST}: doubled while the dense model gains; none: 16; the suite on a GPU 128 and the fastest",
    )
    add("--dtypes", type=listed(str), default=["float32"], metavar="NAME,...", help="float32, bfloat16")
    add("--rounds", type=int, default=9, metavar="N", help="samples of each")
    add("--min-seconds", type=float, default=0.2, metavar="S", help="least length of a sample")
    add("--against", type=listed(str), default=[], metavar="NAME,...", help="further models beside each of --models")
    add("--fused", action="store_true", help="also the dense model with its batch norms folded away (LeViT, LV-ViT)")
    add("--timm", action="store_true", help="also timm's dense model, eager")
    add("--compile", action="store_true", help="with --timm: also under torch.compile")
    add("--timm-device", default="", metavar="NAME", help="torch device; default: cuda where JAX has a GPU, else cpu")
    add("--pause", type=float, default=0.3, metavar="S", help="with --timm: wait while the other's threads spin down")
    add("--overhead", action="store_true", help="also the share of life regression's score, sort and slice")
    add("--training", action="store_true", help="also stage-1, stage-2 and full fine-tuning steps")
    add("--training-only", action="store_true", help="these steps and nothing else")
    add("--training-batch", type=int, default=16, metavar="B")
    add(
        "--peak-tflops",
        type=peak,
        metavar="T",
        help=f"the device's peak, for the achieved share; {MEASURED}: what a large product of matrices reaches",
    )
    add("--json", metavar="FILE", help="write all samples there, anew after each table")
    add("--resume", action="store_true", help="go on with the --json file: tables that it has are not measured again")
    add("--model-options", type=json.loads, default={}, metavar="JSON", help="of create_model, timm's too, for all")
    add("--suite", choices=["papers"], help="measure this instead (suite_papers.py); JSON goes to results/ by default")
    add("--groups", default="", metavar="TEXT,...", help="of the suite, only groups whose title contains one of these")
    args = parser.parse_args(argv)
    if not args.suite:
        args.batch_sizes = list(dict.fromkeys(args.batch_sizes)) or [16]
    if args.resume and not args.json:
        parser.error("--resume needs --json")
    if min(args.rounds, *[size for size in args.batch_sizes if size != FASTEST], args.training_batch) < 1:
        parser.error("--rounds and batch sizes must be at least 1")
    return args


def candidates(args: argparse.Namespace, name: str, dtype: str, notes: list[str]) -> dict[str, tuple[Any, str, Any]]:
    """label -> (model, method, keep rate or None); what create_model refuses goes to the notes."""
    import slimvit_jax as slim

    found: dict[str, tuple[Any, str, Any]] = {
        "dense": (slim.create_model(name, slim.Slimming(), dtype=dtype, **args.model_options), "dense", None)
    }
    if args.fused:
        dense = found["dense"][0]
        if not dense.fuse_partners:
            raise slim.SlimError(f"--fused: {name} has no batch norm to fold")
        found["dense, fused"] = (dense.clone(fused=True), "dense", None)
    for other in args.against:
        model = slim.create_model(other, dtype=dtype)
        found[other] = (model, model.slim.method, None)
    methods = slim.list_methods() if args.methods == ["all"] else args.methods
    for method in methods:
        cls = slim.methods.METHODS.get(method)
        rates = args.keep_rates if cls is None or "keep_rate" in cls.__dataclass_fields__ else [None]
        for rate in rates:
            options = dict(args.model_options) if rate is None else {**args.model_options, "keep_rate": rate}
            label = method if rate is None else f"{method} {rate:g}"
            try:
                found[label] = (slim.create_model(name, method=method, dtype=dtype, **options), method, rate)
            except slim.SlimError as error:
                if cls is None:
                    raise
                notes.append(f"{name}, {label}: {error}")
    return found


def measure_group(
    args: argparse.Namespace, name: str, asked: int | str, dtype: str, worker: Any, progress: Any, notes: list[str]
) -> list[dict[str, Any]]:
    """One table: everything that is compared at one model, batch size and dtype."""
    import jax

    import slimvit_jax as slim
    from benchmarks.programs import fastest_batch, forward
    from slimvit_jax.inference.timing import interleave, sampler

    models = candidates(args, name, dtype, notes)
    batch = fastest_batch(models["dense"][0]) if asked == FASTEST else int(asked)
    samplers, info = {}, {}
    for label, (model, method, rate) in models.items():
        progress(f"compile {label}")
        try:
            samplers[label] = sampler(forward(model, batch).call)
        except RuntimeError as error:  # out of memory, most likely; the others may fit
            notes.append(f"{name}, {label}, batch {batch}: {str(error).splitlines()[0][:200]}")
            continue
        info[label] = {"method": method, "keep_rate": rate, "flops": slim.flops(model).total}
    dense_flops = info["dense"]["flops"]
    if worker is not None:
        device = args.timm_device or ("cuda" if jax.default_backend() == "gpu" else "cpu")
        for label, compiled in [("timm eager", False), ("timm torch.compile", True)][: 1 + args.compile]:
            progress(f"build {label}")
            try:
                threads = len(os.sched_getaffinity(0))
                number = worker.build(name, batch, dtype, compiled, device, threads, args.model_options)
            except RuntimeError as error:
                notes.append(f"{name}, {label}: {error}")
                continue
            samplers[label] = worker.sampler(number)
            info[label] = {"method": label, "keep_rate": None, "flops": dense_flops}
    pause = args.pause if worker is not None else 0.0
    timings = interleave(samplers, args.rounds, args.min_seconds, pause, progress)
    rows = []
    for label, timing in timings.items():
        speed = timings["dense"].median / timing.median
        ratio = dense_flops / info[label]["flops"]
        rows.append(
            {"model": name, "batch": batch, "asked": asked, "dtype": dtype, "name": label, **info[label]}
            | {"images_per_second": batch / timing.median, "speed_ratio": speed, "flops_ratio": ratio}
            | {"quotient": speed / ratio, "cpu_ratio": timings["dense"].median_cpu / max(timing.median_cpu, 1e-9)}
            | {"tflops": 2e-12 * info[label]["flops"] * batch / timing.median}
            | {"wall": timing.wall, "cpu": timing.cpu}
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the tables, writes the JSON; exit status 2 for bad input."""
    args = parse(argv)
    if args.timm:
        os.environ.setdefault(ALONE, "false")
    from tqdm import tqdm

    import slimvit_jax as slim
    from benchmarks.programs import measured_peak
    from benchmarks.runs import overhead_share, training_steps
    from benchmarks.timm_worker import Timm
    from slimvit_jax.files import write_json
    from slimvit_jax.inference.timing import describe_machine

    result: dict[str, Any] = {"command": command_line("throughput")}
    result |= {"machine": describe_machine(), "peak_tflops": None, "throughput": [], "overhead": [], "training": []}
    result |= {"notes": []}
    groups = [] if args.training_only else list(itertools.product(args.models, args.dtypes, args.batch_sizes))
    trains = args.training or args.training_only
    try:
        if args.resume and Path(args.json).exists():
            result = resumed(args.json, result["machine"])
        notes = result["notes"]
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(Timm()) if args.timm else None
            bar = stack.enter_context(tqdm(unit="sample", dynamic_ncols=True, leave=False, disable=None))

            if args.suite:
                from benchmarks import suite_papers

                return suite_papers.run(args, worker, bar)

            def progress(what: str) -> None:
                bar.set_postfix_str(what)
                bar.update()

            def keep(rows: dict[str, list[dict[str, Any]]]) -> None:
                for kind, more in rows.items():
                    result[kind] += more
                if args.json:
                    write_json(args.json, result)

            if args.peak_tflops == MEASURED:
                result["peak_tflops"] = result["peak_tflops"] or measured_peak(args.dtypes[0])
            else:
                result["peak_tflops"] = args.peak_tflops
            done = {(row["model"], row["dtype"], row.get("asked")) for row in result["throughput"]}
            for name, dtype, batch in groups:
                bar.set_description(f"{name} {dtype} {batch}")
                if (name, dtype, batch) in done:
                    continue
                rows = {"throughput": measure_group(args, name, batch, dtype, worker, progress, notes)}
                if args.overhead:
                    size = rows["throughput"][0]["batch"]
                    rows["overhead"] = overhead_share(args, name, size, dtype, progress)
                keep(rows)
            done = {(row["model"], row["dtype"], row["batch"]) for row in result["training"]}
            for name, dtype in itertools.product(args.models, args.dtypes) if trains else ():
                bar.set_description(f"{name} {dtype} training")
                if (name, dtype, args.training_batch) not in done:
                    keep({"training": training_steps(args, name, args.training_batch, dtype, progress)})
    except slim.SlimError as error:
        print(f"throughput.py: error: {error}", file=sys.stderr)
        return 2
    print_tables(result)
    return 0


def resumed(path: str, machine: dict[str, Any]) -> dict[str, Any]:
    """What the file has; a SlimError where it was measured elsewhere."""
    from slimvit_jax.errors import SlimError
    from slimvit_jax.files import read_text

    try:
        result: dict[str, Any] = json.loads(read_text(path))
        was = result["machine"]
        _ = result["throughput"], result["overhead"], result["training"], result["notes"], result["peak_tflops"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SlimError(f"--resume: {path!r} is no file of this benchmark: {error}") from error
    for fact in ("processor", "devices"):
        if was.get(fact) != machine[fact]:
            raise SlimError(f"--resume: {path!r} was measured on {was.get(fact)}, this is {machine[fact]}")
    return result


def print_tables(result: dict[str, Any]) -> None:
    """One table per kind of measurement, then the notes."""
    from slimvit_jax.reports import tables

    machine = result["machine"]
    title = f"{machine['processor']}, {machine['cores']} cores; {', '.join(machine['devices'])}"
    columns = ["images/s", "x dense", "CPU time x", "FLOPs x", "quotient"] + ["share of peak"] * bool(
        result["peak_tflops"]
    )
    table = tables.table("model", "batch", "dtype", "", *columns, title=title)
    for row in result["throughput"]:
        cells = [row["model"], str(row["batch"]), row["dtype"], row["name"], f"{row['images_per_second']:,.1f}"]
        cells += [f"{row[key]:.3f}" for key in ("speed_ratio", "cpu_ratio", "flops_ratio", "quotient")]
        cells += [f"{row['tflops'] / result['peak_tflops']:.1%}"] if result["peak_tflops"] else []
        table.add_row(*cells)
    tables.show(table)
    for kind, columns in (
        ("overhead", ["keep_rate", "milliseconds", "share_of_forward"]),
        ("training", ["step", "milliseconds", "of_dense", "flops_of_dense"]),
    ):
        if result[kind]:
            table = tables.table("model", "batch", "dtype", *[c.replace("_", " ") for c in columns], title=kind)
            for row in result[kind]:
                values = [row[c] for c in ("model", "batch", "dtype", *columns)]
                table.add_row(*[f"{v:.4g}" if isinstance(v, float) else str(v) for v in values])
            tables.show(table)
    for note in result["notes"]:
        print(f"note: {note}")


if __name__ == "__main__":
    from slimvit_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()  # timm's process inherits the setting
    sys.exit(main())
