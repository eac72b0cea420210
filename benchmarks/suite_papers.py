"""`throughput.py --suite=papers`: every row of the papers' tables, training steps, and growth with tokens and depth.

Measured in groups, the cheap ones first; whatever one group compares takes turns. The JSON is written anew after each
group, so a run that is cut short keeps what it has. Rows of several tables that are the same model are measured once.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

import slimvit_jax as slim
from benchmarks.command import command_line
from benchmarks.paper_rows import PaperRow, paper_rows
from benchmarks.programs import Program, fastest_batch, forward, training_step
from slimvit_jax.files import write_json
from slimvit_jax.inference.timing import describe_machine, interleave, sampler
from slimvit_jax.models import NAMED
from slimvit_jax.reports import tables

ROOT = Path(__file__).resolve().parent.parent
HEAVY = 10e9  # multiply-adds of a dense model from which on it is measured after everything else
KEEP_RATES = (0.7, 0.5)  # of life regression where growth is measured
SIZES = ((224, 16), (384, 16), (518, 14))  # image side and patch; 518 is no multiple of 16, DINOv2 cuts it by 14
DEPTHS = (6, 12, 18, 24)
TINY = {"embed_dim": 192, "num_heads": 3, "num_classes": 1000}  # ViT-T
SMALL = {"embed_dim": 384, "num_heads": 6, "num_classes": 1000}  # ViT-S


@dataclasses.dataclass(frozen=True)
class Group:
    """What is timed in turns and compared; the first entry is what the others are compared with.

    Attributes:
      kind: the list of the JSON that its rows go to.
      title: of its table.
      facts: what all of its rows share ("batch", "dtype", ...).
      entries: name -> (makes the program, what its row says of it).
      timm: a dense model of timm's to take turns with, or "".
    """

    kind: str
    title: str
    facts: Mapping[str, Any]
    entries: Mapping[str, tuple[Callable[[], Program], Mapping[str, Any]]]
    timm: str = ""


def forwards(models: Mapping[str, Any], batch: int, more: Mapping[str, Mapping] | None = None) -> dict[str, Any]:
    return {
        name: (
            functools.partial(forward, model, batch),
            {"flops": slim.flops(model).total, "method": model.slim.method, **(more or {}).get(name, {})},
        )
        for name, model in models.items()
    }


def architectures(rows: tuple[PaperRow, ...] | None = None) -> list[list[PaperRow]]:
    """The rows by dense model, cheap ones first: tables name one architecture DeiT-S and ViT-S."""
    found: dict[Any, list[PaperRow]] = {}
    for row in paper_rows() if rows is None else rows:
        found.setdefault(row.build_dense(), []).append(row)
    return [found[dense] for dense in sorted(found, key=lambda dense: slim.flops(dense).total)]


def row_group(rows: list[PaperRow], batch: int, dtype: str, timm: bool) -> Group:
    """One architecture: its dense model and every slimmed form that a table has."""
    models: dict[Any, str] = {rows[0].build_dense(dtype=dtype): "dense"}
    labels: dict[str, list[list[str]]] = {"dense": []}
    for row in rows:
        model = row.build(dtype=dtype)
        name = models.setdefault(model, row.label)
        labels.setdefault(name, []).append([row.table, row.label])
    entries = forwards(
        {name: model for model, name in models.items()},
        batch,
        {name: {"rows": which} for name, which in labels.items()},
    )
    named = next((row.model for row in rows if NAMED[row.model].hub), "") if timm else ""
    facts = {"model": backbone(rows), "batch": batch, "dtype": dtype}
    return Group("throughput", f"{backbone(rows)} {dtype} {batch}", facts, entries, named)


def fastest_group(rows: list[PaperRow], dtype: str, timm: bool) -> Group:
    """The same at the batch size that suits the device."""
    return row_group(rows, fastest_batch(rows[0].build_dense(dtype=dtype)), dtype, timm)


def backbone(rows: list[PaperRow]) -> str:
    """The name of the dense model of an architecture."""
    return next((row.model for row in rows if row.method is None), rows[0].model)


def growth_groups(batch: int, dtype: str) -> list[Group]:
    """Tokens at the depth and width of ViT-T, depth at its tokens and the width of ViT-S."""
    groups = []
    for side, patch in SIZES:
        shape = {"img_size": side, "patch_size": patch, **TINY}
        facts = {"side": side, "patch": patch, "tokens": (side // patch) ** 2, "depth": 12}
        groups.append(_growth("tokens", f"tokens {side} px", shape, facts, (4, 7, 10), batch, dtype))
    for depth in DEPTHS:
        locations = tuple(round(share * depth / 12) for share in (4, 7, 10))
        facts = {"side": 224, "patch": 16, "tokens": 196, "depth": depth}
        groups.append(_growth("depth", f"depth {depth}", {"depth": depth, **SMALL}, facts, locations, batch, dtype))
    return groups


def _growth(
    kind: str, title: str, shape: Mapping, facts: Mapping, locations: tuple[int, ...], batch: int, dtype: str
) -> Group:
    create = functools.partial(slim.create_model, "vit", dtype=dtype, **shape)
    models = {"dense": create()}
    for rate in KEEP_RATES:
        models[f"life_regression {rate:g}"] = create(method="life_regression", keep_rate=rate, locations=locations)
    models["evit 0.7"] = create(method="evit", keep_rate=0.7, locations=locations)
    shared = {**facts, "width": shape["embed_dim"], "locations": list(locations), "batch": batch, "dtype": dtype}
    return Group(kind, title, shared, forwards(models, batch))


def training_group(name: str, batch: int, dtype: str) -> Group:
    """Steps of one backbone: dense, life regression's two stages, and the two methods that need a teacher."""
    dense = slim.create_model(name, slim.Slimming(), dtype=dtype)
    life = slim.create_model(name, "life_regression", keep_rate=0.7, dtype=dtype)
    dynamic = slim.create_model(name, "dynamicvit", keep_rate=0.7, dtype=dtype)
    sit = slim.create_model(name, "sit", keep_rate=0.5, dtype=dtype)
    cases = {
        "dense": (dense, "all", None),
        "life regression, stage 1: predictor": (life, "method", None),
        "life regression, stage 2: backbone": (life, "backbone", None),
        "DynamicViT with its teacher": (dynamic, "all", dense),
        "SiT with its teacher and recovery (FRD)": (sit, "all", dense),
    }
    entries = {
        label: (functools.partial(training_step, model, part, batch, teacher), {"method": model.slim.method})
        for label, (model, part, teacher) in cases.items()
    }
    return Group("training", f"training {name}", {"model": name, "batch": batch, "dtype": dtype}, entries)


Planned = tuple[str, Callable[[], Group]]  # title, and what makes the group when its turn comes


def plan(args: Any, backend: str) -> list[Planned]:
    """All groups in the order they are measured in, less those that `--groups` leaves out."""
    gpu = backend == "gpu"
    light: list[Planned] = []
    heavy: list[Planned] = []
    between: list[Planned] = []
    for rows, dtype in itertools.product(architectures(), args.dtypes):
        target = heavy if slim.flops(rows[0].build_dense()).total >= HEAVY else light
        for batch in args.batch_sizes or ([128] if gpu else [16]):
            make = functools.partial(row_group, rows, batch, dtype, args.timm)
            target.append((f"{backbone(rows)} {dtype} {batch}", make))
        if gpu and not args.batch_sizes:
            make = functools.partial(fastest_group, rows, dtype, args.timm)
            target.append((f"{backbone(rows)} {dtype} fastest batch", make))
    for dtype in args.dtypes:
        make = functools.partial(training_group, "deit_small_patch16_224", 128 if gpu else 8, dtype)
        between.append((f"training {dtype}", make))
        for group in growth_groups(64 if gpu else 4, dtype):
            between.append((f"{group.title} {dtype}", lambda group=group: group))
    wanted = [part.strip() for part in args.groups.split(",")] if args.groups else [""]
    return [(title, make) for title, make in light + between + heavy if any(part in title for part in wanted)]


def run_group(group: Group, args: Any, worker: Any, progress: Callable[[str], None], notes: list) -> list[dict]:
    """The rows of one group; what cannot be built goes to the notes."""
    programs, samplers, info = {}, {}, {}
    for name, (make, facts) in group.entries.items():
        progress(f"compile {name}")
        try:
            programs[name] = make()
        except RuntimeError as error:  # out of memory, most likely; the others may fit
            notes.append(f"{group.title}, {name}: {str(error).splitlines()[0][:200]}")
            continue
        samplers[name], info[name] = sampler(programs[name].call), dict(facts)
        info[name] |= {"compile_seconds": programs[name].compile_seconds, "memory": programs[name].memory}
    if worker is not None and group.timm:
        device = args.timm_device or ("cuda" if jax.default_backend() == "gpu" else "cpu")
        threads = len(os.sched_getaffinity(0))
        try:
            number = worker.build(group.timm, group.facts["batch"], group.facts["dtype"], False, device, threads)
            samplers["timm"], info["timm"] = worker.sampler(number), {"method": "timm", "timm": group.timm}
        except RuntimeError as error:
            notes.append(f"{group.title}, timm: {error}")
    if not programs:
        return []
    pause = args.pause if "timm" in samplers else 0.0
    timings = interleave(samplers, args.rounds, args.min_seconds, pause, progress)
    reference = timings[next(iter(programs))].median
    return [
        {**group.facts, "name": name, **info[name], "seconds": timing.median}
        | {"images_per_second": group.facts["batch"] / timing.median, "speed_ratio": reference / timing.median}
        | {"wall": timing.wall, "cpu": timing.cpu}
        for name, timing in timings.items()
    ]


def run(args: Any, worker: Any, bar: Any, groups: list[Planned] | None = None) -> int:
    """Measures all groups (default: `plan`); writes the JSON after each and prints its table at once."""
    backend = jax.default_backend()
    groups = plan(args, backend) if groups is None else groups
    if not groups:
        print(f"throughput.py: error: --groups {args.groups!r} names no group of the suite", file=sys.stderr)
        return 2
    path = Path(args.json or ROOT / "results" / f"papers_{backend}.json")
    notes: list[str] = []
    result: dict[str, Any] = {"suite": "papers"}
    result |= {
        "command": command_line("throughput"),
        "machine": describe_machine(),
    }
    result |= {"rounds": args.rounds, "throughput": [], "training": [], "tokens": [], "depth": [], "notes": notes}
    bar.total, bar.unit = len(groups), "group"
    for done, (title, make) in enumerate(groups, start=1):
        bar.set_description(title)
        group = make()
        rows = run_group(group, args, worker, bar.set_postfix_str, notes)
        result[group.kind] += rows
        result["groups"] = {"measured": done, "planned": len(groups)}
        write_json(path, result)
        bar.update()
        with bar.external_write_mode():
            show(group, rows)
    for note in notes:
        print(f"note: {note}")
    print(f"all samples: {path}")
    return 0


def show(group: Group, rows: list[dict]) -> None:
    """One group's table."""
    table = tables.table("", "images/s", "x the first", "compile s", "MB/image", title=group.title)
    for row in rows:
        memory = row.get("memory")
        cells = [row["name"], f"{row['images_per_second']:,.1f}", f"{row['speed_ratio']:.3f}"]
        cells += [f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""]
        table.add_row(*cells, f"{memory['per_image'] / 1e6:,.1f}" if memory else "")
    tables.show(table)
