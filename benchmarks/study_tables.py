"""Tables of one study (`benchmarks.study`), each made from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import (
    LIFE,
    ONE_FOR_ALL,
    RECOMMENDED,
    Stat,
    Study,
    difference,
    label,
    paired,
    pool,
    read_json,
    table,
)
from slimvit_jax.reports.report_text import paper_tables

#: Groups of the study on Fashion-MNIST that ask one question each.
QUESTIONS = (
    "training",
    "train_tokens",
    "search",
    "schedule",
    "rates",
    "gradient",
    "initialisation",
    "gate",
    "temperature",
)
RATES = (0.9, 0.8, 0.7, 0.5)
AS_LONG = "dense, tuned as long"
#: Variant: the one whose speed it has.
SAME_SPEED = {RECOMMENDED: LIFE, ONE_FOR_ALL: f"{LIFE}, squeezed"}


def percent(stat: Stat | None) -> str:
    """A cell of a table."""
    return "—" if stat is None else stat.text()


def speeds(study: Study) -> dict[tuple[str, float], float]:
    """(variant, keep rate) -> times as fast as the dense model; {} where it is not measured.

    Variants that are trained in another way and infer alike have the same speed.
    """
    path = study.path / "speed.json"
    rows = read_json(path)["rows"] if path.exists() else []
    found = {(row.get("variant") or row["method"], row["keep_rate"]): row["speed_ratio"] for row in rows}
    alike = {(name, rate): found[same, rate] for name, same in SAME_SPEED.items() for n, rate in found if n == same}
    return alike | found


def bold(called: str) -> str:
    """A variant's name, life regression's in bold."""
    return f"**{called}**" if called.startswith(label(LIFE)) else called


def best_first(study: Study, group: str, rates: Sequence[float]) -> list[str]:
    """Variants by their accuracy at the first rate, then at the next one."""
    key = lambda name: [-(stat.mean if (stat := study.stat(group, name, rate)) else 0.0) for rate in rates]
    return sorted((name for name in study.variants(group) if name != "dense"), key=key)


def methods(study: Study, rates: Sequence[float] = (0.7, 0.5)) -> str:
    """Accuracy of every variant at equal multiply-adds, the distance from dense, and the measured speed.

    The distance is from the dense model tuned on for as long, image by image, where that is known; else from the one
    before. On Fashion-MNIST with life regression as trained by RECOMMENDED too, which stands in another group there.
    """
    faster, start = speeds(study), study.facts["dense"]
    before, dense = study.hits("untuned", "dense", 1.0), study.hits("main", "dense", 1.0)
    measured = study.stat("untuned", "dense", 1.0)  # of the two models, the one whose outcome per image is known
    starts = [("dense, before", start)]
    starts += [("dense, trained again", again["dense"]) for again in study.facts.get("dense_again", ())]
    rows = []
    for name, facts in starts:
        known = measured is not None and measured.mean == facts["accuracy"]
        cells = [percent(Stat((facts["accuracy"],))), paired(before, dense) if known else "—", "1.00", "1.00", "—"]
        rows.append([name, *cells * len(rates)])
    if dense is not None:
        blank = ["—", "1.00", "1.00", str(len(study.by_seed("main", "dense", 1.0)))]
        rows += [[AS_LONG, *[cell for _ in rates for cell in (percent(study.stat("main", "dense", 1.0)), *blank)]]]
    dense = before if dense is None else dense
    kinds = [("main", name, label(name)) for name in best_first(study, "main", rates)]
    if study.by_seed("training", RECOMMENDED, rates[0]):
        kinds.append(("training", RECOMMENDED, f"{label(LIFE)}, {RECOMMENDED}"))
    first = {kind: study.stat(*kind[:2], rates[0]) for kind in kinds}
    for kind in sorted(kinds, key=lambda kind: -(stat.mean if (stat := first[kind]) else 0.0)):
        group, name, called = kind
        cells = [bold(called)]
        for rate in rates:
            found = study.by_seed(group, name, rate)
            gap = difference(found, dict.fromkeys(found, study.dense))
            cells += [percent(pool(found))]
            if dense is not None:
                cells += [paired(study.hits(group, name, rate), dense)]
            else:
                cells += [gap.text() if gap else "—"]
            flops = study.stat(group, name, rate, key="flops")
            cells += [f"{start['flops'] / flops.mean:.2f}" if flops else "—"]
            speed = faster.get((name, rate))
            cells += [f"{speed:.2f}" if found and speed else "—"]
            cells += [str(len(found)) if found else "—"]
        rows.append(cells)
    heads = ("top-1, %", "minus dense", "x fewer multiply-adds", "x images/s", "seeds")
    return table(["method", *[f"{rate:g}: {head}" for rate in rates for head in heads]], rows)


def untuned(study: Study) -> str:
    """Methods under the dense weights as they are; the distance from dense where the outcome per image is known."""
    rates = [rate for rate in study.train_rates("untuned") if rate < 1]
    order = [0.7, *[rate for rate in rates if rate != 0.7]]
    dense, rows = study.hits("untuned", "dense", 1.0), []
    for name in best_first(study, "untuned", order):
        rows.append([label(name)])
        for rate in rates:
            rows[-1].append(percent(study.stat("untuned", name, rate)))
            if dense is not None:
                rows[-1].append(paired(study.hits("untuned", name, rate), dense))
    heads = ("top-1, %",) if dense is None else ("top-1, %", "minus dense")
    return table(["method", *[f"{rate:g}: {head}" for rate in rates for head in heads]], rows)


def pairs(study: Study, rates: Sequence[float] = (0.7, 0.5)) -> str:
    """Life regression by coverage, squeezed, minus every other variant, image by image; last, with rates drawn."""
    ours = {
        "untuned": ("untuned", "coverage lives, squeezed"),
        "tuned": ("main", f"{LIFE}, squeezed"),
        "rates drawn": ("main", ONE_FOR_ALL),
    }
    rows = []
    for name in dict.fromkeys([*best_first(study, "main", rates), *best_first(study, "untuned", rates)]):
        if name not in (ours["untuned"][1], ours["tuned"][1]):
            rows.append([label(name)])
            for group, own in ours.values():
                for rate in rates:
                    other = None if own == name else study.hits(group, name, rate)
                    rows[-1].append(paired(study.hits(group, own, rate), other))
    heads = [f"{called}, {rate:g}" for called in ours for rate in rates]
    return table(["life regression, squeezed, minus", *heads], rows)


def chosen(study: Study) -> str:
    """Experiments judged on held-out training images."""
    rate = study.train_rates("choose")[-1]  # the dense model's is 1
    dense = study.hits("choose", "dense", 1.0)
    rows = []
    for name in best_first(study, "choose", [rate]):
        hits = study.hits("choose", name, rate)
        rows.append([name, percent(study.stat("choose", name, rate)), paired(hits, dense)])
    rows.append(["dense, before", percent(study.stat("choose", "dense", 1.0)), "—"])
    return table([f"training, at {rate:g}", "held out: top-1, %", "minus dense"], rows)


def keep_rates(study: Study) -> str:
    """Table III, ours and the paper's."""
    theirs = paper_tables()["table3_keep_rate"]
    rows = []
    for rate in [rate for rate in RATES if study.by_seed("main", LIFE, rate)]:
        found = study.by_seed("main", LIFE, rate)
        gap = difference(found, dict.fromkeys(found, study.dense))
        flops = study.stat("main", LIFE, rate, key="flops")
        assert gap is not None and flops is not None
        row = [f"{rate:g}", percent(pool(found)), gap.text(), f"{study.facts['dense']['flops'] / flops.mean:.2f}"]
        if rate in theirs["keep_rate"]:
            i = theirs["keep_rate"].index(rate)
            printed = theirs["top1"][i] - theirs["top1"][0]
            row += [f"{printed:+.1f}", f"{theirs['flops'][0] / theirs['flops'][i]:.2f}"]
        else:
            row += ["—", "—"]
        rows.append(row)
    header = ["keep rate", "top-1, %", "minus dense", "x fewer multiply-adds"]
    return table([*header, "paper: minus dense", "paper: x fewer"], rows)


def stages(study: Study) -> str:
    """Table IV, ours and the paper's."""
    theirs = paper_tables()["table4_stages"]
    rows = []
    for i, rate in enumerate(theirs["keep_rate"]):
        single, two = (study.by_seed("stages", name, rate) for name in ("single stage", "two stages"))
        gap = difference(two, single)
        printed = theirs["two_top1"][i] - theirs["single_top1"][i]
        rows.append([f"{rate:g}", percent(pool(single)), percent(pool(two)), gap.text() if gap else "—"])
        rows[-1].append(f"{printed:+.1f}")
    return table(["keep rate", "single stage, %", "two stages, %", "two - single", "paper: two - single"], rows)


def questions(study: Study) -> str:
    """Every question of the study, its variants best first."""
    rows = []
    for group in QUESTIONS:
        for rate in study.train_rates(group):
            for name in best_first(study, group, [rate]):
                learned = study.by_seed(group, name, rate)
                if learned:
                    lead = difference(learned, study.by_seed(group, name, rate, lives="random"))
                    rows.append([group, name, f"{rate:g}", percent(pool(learned)), lead.text() if lead else "—"])
    return table(["question", "variant", "keep rate", "top-1, %", "learned minus random lives"], rows, 2)


def budgets(study: Study) -> str:
    """One set of weights at other keep rates than the one trained at."""
    rows = []
    for group in ("main", "training"):
        for name in study.variants(group):
            for rate in study.train_rates(group):
                found = {r: study.stat(group, name, rate, keep_rate=r) for r in RATES}
                if sum(stat is not None for stat in found.values()) > 1:
                    cells = [f"**{s.text()}**" if r == rate and s else percent(s) for r, s in found.items()]
                    rows.append([label(name), f"{rate:g}", *cells])
    return table(["weights", "trained at", *[f"at {rate:g}, %" for rate in RATES]], rows, 2)


def short(study: Study, other: Study) -> str:
    """README's one table: the photographs' main comparison, Fashion-MNIST's figures in the last columns."""
    faster, longer, rows = speeds(study), study.stat("main", "dense", 1.0), []
    if longer is not None:
        rows = [[AS_LONG, *(2 * [percent(longer), "1.00"]), *(2 * [percent(other.stat("main", "dense", 1.0))])]]
    for name in best_first(study, "main", (0.7, 0.5)):
        cells = [bold(label(name))]
        for rate in (0.7, 0.5):
            speed = faster.get((name, rate))
            cells += [percent(study.stat("main", name, rate)), f"{speed:.2f}" if speed else "—"]
        second = ("training", RECOMMENDED) if name == f"{LIFE}, hard masks" else ("main", name)
        rows.append([*cells, *[percent(other.stat(*second, rate)) for rate in (0.7, 0.5)]])
    header = ["method", "0.7: top-1, %", "x images/s", "0.5: top-1, %", "x images/s"]
    return table([*header, "Fashion-MNIST 0.7", "0.5"], rows)
