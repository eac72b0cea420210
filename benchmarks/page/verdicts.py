"""What the study's numbers say, in sentences made from them: goals, and where they differ from the paper.

Every sentence follows from a rule on the numbers (cells.py), so a new run of the study rewrites them all.
"""

from __future__ import annotations

from benchmarks.page.cells import (
    FITTED_GATE,
    LIFE,
    PAPER_LOSSES,
    RECOMMENDED,
    WITH_LOGITS,
    Difference,
    Study,
    difference,
    label,
)
from benchmarks.page.study import QUESTIONS, temperature_of
from slimvit_jax.analysis.report_text import paper_tables

WITHIN, AHEAD = 0.005, 0.003  # the goals: points below dense at 0.7, and of another method above life regression
DEFAULTS = {
    "rates": "ours",
    "gradient": "through the lives",
    "initialisation": "normal 0.02",
    "training": PAPER_LOSSES,
    "gate": FITTED_GATE,
    "search": WITH_LOGITS,
    "schedule": "at three layers",
}


def goals(study: Study) -> str:
    """The three things the study set out to show."""
    lines = [_near_dense(study), _above_random(study), _not_behind(study)]
    text = "\n".join(f"* {line}" for line in lines)
    tried = [name for name in study.variants("training") if name != PAPER_LOSSES]
    if tried:
        text += (
            f"\n\nBeside the paper's losses stands the recommended change of training, one of {len(tried)} (below); it "
            "was picked by the same images, so its figures are on the favourable side."
        )
    return text


def contenders(study: Study, rate: float) -> list[tuple[str, str, str]]:
    """(what it is called, group, variant): the paper's recipe, the recommended one and that with the dense model's
    logits, as far as they are measured."""
    recipes = [(PAPER_LOSSES, "main", LIFE), *[(name, "training", name) for name in (RECOMMENDED, WITH_LOGITS)]]
    return [one for one in recipes if study.by_seed(one[1], one[2], rate)]


def _near_dense(study: Study) -> str:
    goal = f"At 0.7 life regression is within {100 * WITHIN:g} points of the dense model after two epochs"
    said = []
    for name, group, variant in contenders(study, 0.7):
        found = study.by_seed(group, variant, 0.7)
        change = difference(found, dict.fromkeys(found, study.dense))
        if change is not None:
            verdict = "yes" if change.mean >= -WITHIN else "no"
            said.append(f"with {name} **{verdict}**, {change.text()} points{_seeds(change)}")
    return f"{goal}: {'; '.join(said) or 'not measured yet'}."


def _above_random(study: Study) -> str:
    goal = "At 0.5 learned lives are above random ones by more than the seeds' spread"
    said = []
    for name, group, variant in contenders(study, 0.5):
        learned = study.by_seed(group, variant, 0.5)
        same = difference(learned, study.by_seed(group, variant, 0.5, lives="random"))
        tuned = difference(learned, study.by_seed("main", "random", 0.5))
        against_random = [(same, "under the same weights"), (tuned, "against a model tuned with random patches")]
        if variant == WITH_LOGITS:
            taught = difference(learned, study.by_seed("distilled", "random", 0.5))
            against_random.append((taught, "against a model tuned with random patches and the same logits"))
        for lead, against in against_random:
            if lead is not None:
                said.append(f"with {name}, {against} **{_beyond(lead)}**, {lead.text()} points{_seeds(lead)}")
    return f"{goal}: {'; '.join(said) or 'not measured yet'}."


def _beyond(lead: Difference) -> str:
    if lead.spread is None:
        return "undecided with one seed"
    return "yes" if lead.clear and lead.mean > 0 else "no"


def _not_behind(study: Study) -> str:
    goal = f"At 0.7 no other method is more than {100 * AHEAD:g} points above it at matched multiply-adds and epochs"
    said = []
    for what, group, variant in contenders(study, 0.7):
        leads = _leads(study, 0.7, group, variant)
        above = [(name, lead) for name, lead in leads if lead.mean > AHEAD]
        if above:
            said.append(
                f"with {what} **no**, {', '.join(f'{label(name)} {lead.text()}' for name, lead in above)} points"
            )
        elif leads:
            name, lead = leads[0]
            said.append(
                f"with {what} **yes** for the {len(leads)} measured, the best of them, {label(name)}, is at "
                f"{lead.text()} points"
            )
    return f"{goal}: {'; '.join(said) or 'not measured yet'}."


def _leads(study: Study, rate: float, group: str = "main", variant: str = LIFE) -> list[tuple[str, Difference]]:
    """Every other slimming method's difference to life regression, best first."""
    life = study.by_seed(group, variant, rate)
    found = []
    for name in study.variants("main", rate):
        lead = difference(study.by_seed("main", name, rate), life)
        if name not in (LIFE, "dense", "random") and lead is not None:
            found.append((name, lead))
    return sorted(found, key=lambda pair: -pair[1].mean)


def _seeds(gap: Difference) -> str:
    return " (one seed)" if gap.spread is None else f" ({gap.n} seeds)" if gap.n else " (different seeds)"


def differences(study: Study) -> str:
    """Where the study agrees with the paper, where not, and what else was measured that explains it."""
    parts = [
        _ranks(study),
        _merging(study),
        _what_costs(study),
        _order_matters(study),
        _two_stages(study),
        _temperature(study),
        _any_budget(study),
    ]
    parts += [_ablation(study, group) for group in QUESTIONS]
    lines = [
        "Other data (Fashion-MNIST, not ImageNet-1k), a smaller model and fewer steps an epoch: only signs and orders "
        "can agree or not.",
        *[part for part in parts if part],
    ]
    return "\n".join(f"* {line}" for line in lines)


def _ranks(study: Study) -> str:
    leads = _leads(study, 0.7)
    if not leads:
        return ""
    theirs = [e for e in paper_tables()["table1_deit"] if "(DeiT-S)" in e["method"]]
    best = max(e["top1"] for e in theirs)
    own = next(e["top1"] for e in theirs if e["method"].startswith("Life"))
    paper = "has the highest top-1" if own == best else f"is {best - own:.1f} points below the best"
    ahead = sum(lead.mean > 0 for _, lead in leads)
    clear = [label(name) for name, lead in leads if lead.mean > 0 and lead.clear]
    behind = [label(name) for name, lead in leads if lead.mean < 0 and lead.clear]
    text = (
        f"**Methods (Tables I, II).** Among the paper's slimmed DeiT-S models life regression {paper}. Here, at 0.7, "
        f"it is number {ahead + 1} of {len(leads) + 1}"
    )
    text += f"; above it by more than the seeds' spread: {', '.join(clear)}" if clear else "; none is clearly above it"
    return text + (
        f"; below it by more than the spread: {', '.join(behind)}." if behind else "; none is clearly below."
    )


def _merging(study: Study) -> str:
    """What merging and dropping do to weights that were never tuned for it, which explains who leads after tuning."""
    dense = lambda found: difference(found, dict.fromkeys(found, study.dense))
    merged, dropped = (study.by_seed("untuned", name, 0.7) for name in ("tome", "topk"))
    first, second = dense(merged), dense(dropped)
    if first is None or second is None:
        return ""
    text = (
        f"**Merging against dropping.** Under the dense weights, before any tuning, ToMe changes the accuracy by "
        f"{first.text()} points at 0.7, top-k by {second.text()}."
    )
    tuned = difference(study.by_seed("main", "tome", 0.7), merged)
    if tuned is not None:
        text += f" Two epochs add {tuned.text()} points to ToMe."
    if abs(first.mean) < WITHIN < abs(second.mean):
        text += (
            " On these images merging alike patches costs next to nothing, as much of each is empty background; a "
            "method that drops patches has to tune the attention to their absence. The paper compares with none that "
            "merges alike patches."
        )
    return text


def _what_costs(study: Study) -> str:
    """Slimming and tuning apart, and how the epochs are spent."""
    tuned = study.by_seed("main", "dense", 1.0)
    life = study.by_seed("main", LIFE, 0.7)
    own, cost = difference(tuned, dict.fromkeys(tuned, study.dense)), difference(life, tuned)
    if own is None or cost is None:
        return ""
    text = (
        f"**What tuning gives and slimming costs.** Tuned for as long without slimming, the dense model changes by "
        f"{own.text()} points; life regression at 0.7 ends {cost.text()} points from there."
    )
    spent = [study.config(f"stages.{stage}.epochs") for stage in ("predictor", "backbone", "finetune")]
    if None not in spent:
        text += (
            f" Its epochs go to the predictor first ({spent[0]:g}), so that its backbone is tuned for {spent[1]:g}, "
            f"that of the methods with one stage for {spent[2]:g}."
        )
    chance = difference(life, study.by_seed("main", LIFE, 0.7, lives="random"))
    if chance is not None:
        text += f" Under the same weights a random order is {100 * -chance.mean:+.2f} points from the learned one."
    return text


def _order_matters(study: Study) -> str:
    """The most that a choice of patches can win, by rate."""
    said = []
    for rate in study.train_rates("main"):
        chance = study.by_seed("main", "random", rate)
        loss = difference(chance, dict.fromkeys(chance, study.dense))
        if rate < 1 and loss is not None:
            said.append(f"{loss.text()} at {rate:g}")
    if not said:
        return ""
    return (
        "**How much the choice of patches can matter here.** A model tuned with patches dropped at random changes by "
        f"{', '.join(said)} points against the dense model. That is the room in which rankings can differ; the paper "
        "has no such row."
    )


def _two_stages(study: Study) -> str:
    theirs = paper_tables()["table4_stages"]
    said = []
    for rate in study.train_rates("stages"):
        two, single = (study.by_seed("stages", name, rate) for name in ("two stages", "single stage"))
        gap = difference(two, single)
        if gap is not None:
            said.append((rate, gap))
    if not said:
        return ""
    paper = [two - one for one, two in zip(theirs["single_top1"], theirs["two_top1"], strict=True)]
    agree = [rate for rate, gap in said if gap.clear and gap.mean > 0]
    against = [rate for rate, gap in said if gap.clear and gap.mean < 0]
    numbers = ", ".join(f"{gap.text()} at {rate:g}" for rate, gap in said)
    return (
        f"**One or two stages (Table IV).** The paper's two stages are {min(paper):+.1f} to {max(paper):+.1f} points "
        f"above its single one; ours {numbers}. {_agreement(agree, against)}"
    )


def _agreement(agree: list[float], against: list[float]) -> str:
    parts = []
    if agree:
        parts.append(f"It agrees beyond the seeds' spread at {', '.join(f'{rate:g}' for rate in agree)}.")
    if against:
        parts.append(f"It is the other way round beyond the spread at {', '.join(f'{rate:g}' for rate in against)}.")
    return " ".join(parts) or "None of these is beyond the seeds' spread: undecided here."


def _temperature(study: Study) -> str:
    names = study.variants("temperature")
    if len(names) < 2:
        return ""
    rate = study.train_rates("temperature")[0]
    results = {name: study.by_seed("temperature", name, rate) for name in names}
    means = {name: sum(s.mean for s in found.values()) / len(found) for name, found in results.items() if found}
    best = max(means, key=means.__getitem__)
    theirs = paper_tables()["table5_temperature"]
    paper = theirs["U"][theirs["top1"].index(max(theirs["top1"]))]
    text = (
        f"**Temperature (Table V).** The paper's best is U = {paper:g}, "
        f"{max(theirs['top1']) - min(theirs['top1']):.1f} points above its worst. "
    )
    if temperature_of(best) == paper:
        return text + f"Ours is U = {paper:g} too; all measured lie within {100 * _range(means):.2f} points."
    gap = difference(results[best], results.get(f"U={paper:g}", {}))
    if gap is None:
        return text + f"Ours, as far as measured, is U = {temperature_of(best):g}."
    decided = "beyond the seeds' spread" if gap.clear else "not beyond the seeds' spread, so they are not told apart"
    return text + f"Ours is U = {temperature_of(best):g}, {gap.text()} above U = {paper:g}: {decided}."


def _range(means: dict[str, float]) -> float:
    return max(means.values()) - min(means.values())


def _any_budget(study: Study) -> str:
    said = []
    for rate in study.train_rates("main"):
        native = study.by_seed("main", LIFE, rate)
        loss = difference(study.by_seed("main", LIFE, 0.7, keep_rate=rate), native) if rate != 0.7 else None
        if loss is not None:
            said.append(f"{loss.text()} points at {rate:g}")
    if not said:
        return ""
    return (
        "**One model, any budget** (not in the paper). The weights trained at 0.7, deployed at other rates, against "
        f"weights trained at those: {', '.join(said)}."
    )


def _ablation(study: Study, group: str) -> str:
    said = []
    for rate in study.train_rates(group):
        default = study.by_seed(group, DEFAULTS[group], rate)
        gaps = []
        for name in study.variants(group, rate):
            gap = difference(study.by_seed(group, name, rate), default)
            if name != DEFAULTS[group] and gap is not None:
                gaps.append((name, gap))
        if not gaps:
            continue
        gaps.sort(key=lambda pair: -pair[1].mean)
        clear = [f"{name} {gap.text()}" for name, gap in gaps if gap.clear]
        nothing = "nothing differs beyond the seeds' spread"
        if all(gap.spread is None for _, gap in gaps):
            nothing = f"undecided with one seed; the best of the others is {gaps[0][0]}, {gaps[0][1].text()} points"
        said.append(f"at {rate:g}, {'; '.join(clear) + ' points' if clear else nothing}")
    if not said:
        return ""
    return f"**{QUESTIONS[group]}**, against *{DEFAULTS[group]}*: {'. '.join(said).replace('. at', '. At')}."
