"""The study's tables, next to the paper's rows: methods, keep rate, stages, temperature, ablations, budgets."""

from __future__ import annotations

from collections import Counter

from benchmarks.page.cells import (
    LIFE,
    PAPER_LOSSES,
    RECOMMENDED,
    WITH_LOGITS,
    Stat,
    Study,
    difference,
    label,
    pool,
    seeds_of,
    table,
)
from slimvit_jax.analysis.report_text import paper_tables

QUESTIONS = {
    "rates": "Learning rates of predictor and backbone: as the paper prints them, exchanged, and ours",
    "gradient": "Gradient of the backbone through the lives while it is tuned",
    "initialisation": "Initial W of the predictor",
    "training": "Changes of life regression's training",
    "gate": "A-ViT's gate_center",
    "search": "Further attempts, on hard masks and distillation in a single stage",
    "schedule": "When patches die, at one cost, with hard masks and distillation in a single stage",
}


def percent(stat: Stat | None) -> str:
    """A cell of a table."""
    return "—" if stat is None else stat.text()


def rate_text(rate: float) -> str:
    return f"{rate:g}"


def about(study: Study) -> str:
    """What was trained on what, and how much of it there is."""
    facts, options, machine = study.facts, study.model_options(), study.facts.get("machine", {})
    dense = facts["dense"]
    shape = ", ".join(f"{key} {value}" for key, value in sorted(options.items()))
    device = ", ".join(machine.get("devices", [])) or "a machine that the file does not describe"
    elsewhere = {row["cell"]: row["processor"] for row in study.rows if "processor" in row}
    counts = Counter(name for name in elsewhere.values() if name != machine.get("processor"))
    moved = "".join(f"; {count} runs on {name}" for name, count in counts.items())
    lines = [
        f"Begun with `{facts.get('command', 'python -m benchmarks.study')}`, {facts.get('date', '')[:10]}, on "
        f"{machine.get('processor', '')} ({machine.get('cores', '?')} cores; {device}{moved}). Data: "
        f"{study.config('data.name')}, accuracy on its `{study.config('data.eval_split')}` split. Model: "
        f"{study.config('model.name')} ({shape}), {dense['parameters']:,} parameters, {dense['flops'] / 1e6:,.1f} M "
        "multiply-adds.",
        "",
        f"One dense model was trained for {dense['epochs']:g} epochs and reaches **{100 * dense['accuracy']:.2f} %** "
        f"(top-5 {100 * dense['top5']:.2f} %). Everything else starts from it. {study.cells} runs with {study.seeds} "
        f"seed{'s' if study.seeds != 1 else ''} are done. ± is the standard deviation over seeds, absent where there "
        "is one seed; it says how a training repeats. How far the "
        f"{dense.get('examples', 0):,} images of the split stand for others is ± {100 * study.dense.sampling:.2f} "
        "points (one standard error of one accuracy), the same images for every run.",
        "",
        "Two kinds of runs are called different where their difference, seed by seed, is larger than its spread. That "
        "is a weak test: with three seeds two equal ones pass it about once in four times, by chance.",
    ]
    if study.failed:
        said = "; ".join(f"`{row['cell']}`: {row.get('error', 'no result')}" for row in study.failed)
        lines += ["", f"Without a result: {said}."]
    return "\n".join(lines)


def methods(study: Study) -> str:
    """Tables I and II: every method at matched multiply-adds, and what the paper prints."""
    rates = [rate for rate in study.train_rates("main") if rate < 1]
    if not rates:
        return "Not measured yet."
    names = [name for name in study.variants("main") if name != "dense"]
    rows: list[list[str]] = []
    cells: list[Stat | None] = []
    for name in sorted(names, key=lambda name: _order(study, "main", name, rates)):
        found = [study.stat("main", name, rate) for rate in rates]
        rows.append([_bold(label(name), name), *map(percent, found), _cost(study, name, rates)])
        cells += found
    for variant in sorted(study.variants("training"), key=lambda name: _order(study, "training", name, rates)):
        if variant != PAPER_LOSSES:
            found = [study.stat("training", variant, rate) for rate in rates]
            rows.append([f"life regression, {variant}", *map(percent, found), _cost(study, variant, rates, "training")])
    header = ["method", *[f"{rate_text(rate)}: top-1, %" for rate in rates], "multiply-adds / life regression's"]
    text = (
        f"Top-1 by keep rate, {seeds_of(*cells)}; sorted by 0.7. A keep rate means the "
        "multiply-adds of life regression at that rate: every other method has the options that come nearest to them "
        f"(last column, the range over the rates). Epochs: {_epochs(study)}."
    )
    if study.variants("training"):
        text += " Below them: changes of life regression's training, at its own cost."
    trained_on = study.stat("main", "dense", 1.0)
    if trained_on is not None:
        text += f" Tuned for as long without slimming, the dense model reaches {trained_on.text()} %."
    return "\n\n".join([text, table(header, rows), _beside_paper(study)])


def distilled(study: Study) -> str:
    """Whether the recommended training wins by its lives or by the dense model's logits: others learn them too."""
    rates = study.train_rates("distilled")
    single = ("stages", "single stage")
    hard = ("training", RECOMMENDED)
    kinds = [(label(name), ("main", name), ("distilled", name)) for name in study.variants("distilled")]
    kinds += [
        ("life regression, the paper's losses", ("main", LIFE), ("training", "distillation")),
        ("life regression, the paper's losses, single stage", single, ("training", "distillation, single stage")),
        ("life regression, hard masks, single stage", hard, ("training", WITH_LOGITS)),
    ]
    rows, cells = [], []
    for name, plain, taught in kinds:
        row = [name]
        for rate in rates:
            without, learns = study.by_seed(*plain, rate), study.by_seed(*taught, rate)
            gain = difference(learns, without)
            cells += [pool(without), pool(learns)]
            row += [percent(pool(without)), percent(pool(learns)), gain.text() if gain else "—"]
        rows.append(row)
    if not any(cells):
        return "Not measured yet."
    text = (
        f"Top-1, {seeds_of(*cells)}. Any method can learn the dense model's logits beside the labels "
        '(`loss_weights = {"distillation": 1.0}` of a stage). DynamicViT and SiT always do.'
    )
    header = [f"{rate_text(rate)}: {what}" for rate in rates for what in ("without, %", "with, %", "gain, points")]
    return "\n\n".join([text, table(["trained", *header], rows)])


def _bold(text: str, name: str) -> str:
    return f"**{text}**" if name == LIFE else text


def _order(study: Study, group: str, name: str, rates: list[float]) -> tuple[float, ...]:
    """Best at 0.7 first, then best at the highest rate there is, and so on."""
    found = [study.stat(group, name, rate) for rate in (0.7, *rates)]
    return tuple(-stat.mean if stat is not None else 0.0 for stat in found)


def _cost(study: Study, name: str, rates: list[float], group: str = "main") -> str:
    ratios = [
        outcome["flops"] / outcome["target_flops"]
        for row in study.of(group)
        for outcome in row["evals"]
        if row["variant"] == name and outcome["keep_rate"] == row["train_rate"] and row["train_rate"] in rates
    ]
    if not ratios:
        return "—"
    low, high = f"{min(ratios):.3f}", f"{max(ratios):.3f}"
    return low if low == high else f"{low} to {high}"


def _epochs(study: Study) -> str:
    by_epochs: dict[float, list[str]] = {}
    for row in study.of("main"):
        names = by_epochs.setdefault(row["epochs"], [])
        if label(row["method"]) not in names:
            names.append(label(row["method"]))
    if len(by_epochs) == 1:
        return f"{next(iter(by_epochs)):g} for all"
    return "; ".join(f"{epochs:g} for {', '.join(names)}" for epochs, names in by_epochs.items())


def _beside_paper(study: Study) -> str:
    """The change against the dense model at 0.7, ours beside the papers' figures for each backbone."""
    tables = paper_tables()
    printed: dict[str, list[str]] = {}
    for key in ("table1_deit", "table2_vit"):
        entries = tables[key]
        dense = {e["method"]: e for e in entries if e["epochs"] is None}
        for entry in entries:
            if entry["epochs"] is None:
                continue
            name, backbone = entry["method"].removesuffix(")").split(" (")
            base = dense[backbone]
            change = f"{entry['top1'] - base['top1']:+.1f} ({backbone}, {base['flops'] / entry['flops']:.2f}x fewer)"
            printed.setdefault(name, []).append(change)
    rows = []
    for name in study.variants("main"):
        found = study.by_seed("main", name, 0.7)
        theirs = printed.get(label(name).replace("²", "2").replace("life", "Life"), [])
        if found and (theirs or name in (LIFE, "random")):
            change = difference(found, dict.fromkeys(found, study.dense))
            flops = study.stat("main", name, 0.7, key="flops")
            assert change is not None and flops is not None
            fewer = f"{study.facts['dense']['flops'] / flops.mean:.2f}x"
            rows.append([_bold(label(name), name), change.text(), fewer, "; ".join(theirs) or "—"])
    if not rows:
        return ""
    text = (
        "At keep rate 0.7, top-1 minus the dense model that training starts from, in points. The papers' figures are "
        "for ImageNet-1k, their FLOPs differ from method to method, and their methods were tuned for 30 epochs, life "
        "regression for 2."
    )
    header = ["method", "ours, points", "ours, fewer multiply-adds", "papers, points"]
    return "\n\n".join([text, table(header, rows)])


def keep_rates(study: Study) -> str:
    """Table III."""
    theirs = paper_tables()["table3_keep_rate"]
    printed = {rate: i for i, rate in enumerate(theirs["keep_rate"])}
    rows, cells = [], []
    for rate in study.train_rates("main"):
        found = study.by_seed("main", LIFE, rate)
        if not found:
            continue
        stat, top5 = pool(found), study.stat("main", LIFE, rate, key="top5")
        change = difference(found, dict.fromkeys(found, study.dense))
        flops = study.stat("main", LIFE, rate, key="flops")
        assert change is not None and flops is not None
        cells.append(stat)
        i = printed.get(rate)
        paper = ["—"] * 3
        if i is not None:
            gap = [theirs[key][i] - theirs[key][0] for key in ("top1", "top5")]
            paper = [f"{gap[0]:+.1f}", f"{gap[1]:+.1f}", f"{theirs['flops'][0] / theirs['flops'][i]:.2f}"]
        fewer = study.facts["dense"]["flops"] / flops.mean
        rows.append(
            [rate_text(rate), percent(stat), change.text(), paper[0], percent(top5), paper[1], f"{fewer:.2f}", paper[2]]
        )
    if not rows:
        return "Not measured yet."
    header = ["keep rate", "top-1, %", "minus dense, points", "paper", "top-5, %", "paper, minus dense"]
    header += ["x fewer multiply-adds", "paper"]
    return f"Trained and deployed at the same rate, {seeds_of(*cells)}.\n\n" + table(header, rows)


def stages(study: Study) -> str:
    """Table IV."""
    theirs = paper_tables()["table4_stages"]
    rows, cells = [], []
    for rate in study.train_rates("stages"):
        single, two = (study.by_seed("stages", name, rate) for name in ("single stage", "two stages"))
        if not single and rate not in theirs["keep_rate"]:
            continue  # a two-stage run of another table
        gap = difference(two, single)
        cells += [pool(single), pool(two)]
        paper = ["—"] * 3
        if rate in theirs["keep_rate"]:
            i = theirs["keep_rate"].index(rate)
            one, both = theirs["single_top1"][i], theirs["two_top1"][i]
            paper = [f"{one:.1f}", f"{both:.1f}", f"{both - one:+.1f}"]
        rows.append([rate_text(rate), percent(pool(single)), percent(pool(two)), gap.text() if gap else "—", *paper])
    if not rows:
        return "Not measured yet."
    header = ["keep rate", "single stage, %", "two stages, %", "two - single, points"]
    header += ["paper: single", "paper: two", "paper: two - single"]
    return f"Top-1, {seeds_of(*cells)}; the same number of epochs.\n\n" + table(header, rows)


def temperatures(study: Study) -> str:
    """Table V."""
    theirs = paper_tables()["table5_temperature"]
    rows, cells = [], []
    for name in sorted(study.variants("temperature"), key=temperature_of):
        rate = study.train_rates("temperature")[0]
        stat, top5 = (study.stat("temperature", name, rate, key=key) for key in ("accuracy", "top5"))
        cells.append(stat)
        i = theirs["U"].index(temperature_of(name)) if temperature_of(name) in theirs["U"] else None
        paper = ["—"] * 2 if i is None else [f"{theirs[key][i]:.1f}" for key in ("top1", "top5")]
        rows.append([f"{temperature_of(name):g}", percent(stat), percent(top5), *paper])
    if not rows:
        return "Not measured yet."
    header = ["temperature U", "top-1, %", "top-5, %", "paper: top-1", "paper: top-5"]
    return f"At keep rate {rate_text(rate)}, {seeds_of(*cells)}.\n\n" + table(header, rows)


def temperature_of(variant: str) -> float:
    """U of a variant named "U=1.5"."""
    return float(variant.removeprefix("U="))


def ablations(study: Study) -> str:
    """The questions of our own: one table each, best first."""
    parts = [_ablation(study, group, title) for group, title in QUESTIONS.items()]
    return "\n\n".join(parts)


def _ablation(study: Study, group: str, title: str) -> str:
    rates = study.train_rates(group)
    head = f"#### {title}"
    if not rates:
        return f"{head}\n\nNot measured yet."
    names = study.variants(group)
    mean = lambda name: [s.mean for rate in rates if (s := study.stat(group, name, rate)) is not None]
    rows, cells = [], []
    for name in sorted(names, key=lambda name: -sum(mean(name)) / len(mean(name))):
        row = [name]
        for rate in rates:
            learned, chance = (study.by_seed(group, name, rate, lives=lives) for lives in ("learned", "random"))
            lead = difference(learned, chance)
            cells.append(pool(learned))
            row += [percent(pool(learned)), lead.text() if lead else "—"]
        rows.append(row)
    header = ["variant", *[h for r in rates for h in (f"{rate_text(r)}: top-1, %", "learned minus random lives")]]
    return "\n\n".join([head, f"Trained and deployed at the same rate, {seeds_of(*cells)}.", table(header, rows)])
