"""The study in short, for README.md: one picture and one table."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.page.cells import LIFE, RECOMMENDED, Study, label, table

RATES = (0.7, 0.5)


def summary(study: Study, speed: Mapping[tuple[str, float], float], machine: str, picture: str) -> str:
    """Every method's accuracy and measured speed-up at two keep rates, best at the first one on top.

    Args:
      study: with main cells.
      speed: (method, keep rate) -> times as fast as dense; {} where it is not measured.
      machine: what the speed was measured on.
      picture: a link to the plot of both; "" for none.
    """
    kinds = [("main", name, name, label(name)) for name in study.variants("main") if name != "dense"]
    kinds = [(*kind[:3], f"{kind[3]}, the paper's training" if kind[2] == LIFE else kind[3]) for kind in kinds]
    kinds.append(("training", RECOMMENDED, LIFE, f"life regression, {RECOMMENDED}"))
    rows, seeds = [], []
    for group, variant, method, called in kinds:
        row, first = [f"**{called}**" if method == LIFE else called], 0.0
        for rate in RATES:
            top1, faster = study.stat(group, variant, rate), speed.get((method, rate))
            row.append("" if top1 is None else f"{100 * top1.mean:.1f}")
            row.append("" if top1 is None or faster is None else f"{faster:.2f}")
            if top1 is not None:
                seeds.append(top1.n)
                first = first or top1.mean
        rows.append((first, row))
    if not seeds:
        return "Not measured yet."
    ordered = [row for _, row in sorted(rows, key=lambda pair: -pair[0])]
    images = study.facts["dense"]["examples"]
    epochs = " or ".join(f"{epochs:g}" for epochs in sorted({row["epochs"] for row in study.of("main")}))
    about = (
        f"**Measured here**: {study.config('data.name')}, {images:,} test images; every method tuned for {epochs} "
        f"epochs from the same dense model ({100 * study.dense.mean:.1f} %), at the multiply-adds of life regression "
        f"at that keep rate; {min(seeds)} to {max(seeds)} seeds."
    )
    if speed:
        about += f" Speed against the dense model on {machine}."
    header = ["method", *[head for rate in RATES for head in (f"{rate:g}: top-1, %", f"{rate:g}: x images/s")]]
    return "\n\n".join(part for part in (about, picture, table(header, ordered)) if part)
