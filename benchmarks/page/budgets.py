"""What one set of weights gives at other budgets, learned against random lives, methods untuned, and longer runs."""

from __future__ import annotations

from benchmarks.page.cells import LIFE, RECOMMENDED, Stat, Study, difference, label, pool, seeds_of, table
from benchmarks.page.study import percent, rate_text


def budgets(study: Study) -> str:
    """One model, any budget: trained at one rate, deployed at all of them."""
    answers = [v for v in study.variants("training") if v == RECOMMENDED or "budgets" in v]
    grids = [("main", LIFE)] + [("training", v) for v in answers]
    rows, cells = [], []
    deployed = study.deploy_rates()
    for group, name in grids:
        for rate in study.train_rates(group):
            found = [study.stat(group, name, rate, keep_rate=other) for other in deployed]
            if any(found):
                what = label(name) if group == "main" else name
                rows.append(
                    [what, rate_text(rate), *[_marked(s, rate == o) for s, o in zip(found, deployed, strict=True)]]
                )
                cells += found
    if not rows:
        return "Not measured yet."
    header = ["weights", "trained at", *[f"deployed at {rate_text(rate)}, %" for rate in deployed]]
    text = f"Top-1 with learned lives, {seeds_of(*cells)}; bold where the rate is the one trained at."
    return f"{text}\n\n{table(header, rows, 2)}"


def _marked(stat: Stat | None, same: bool) -> str:
    return f"**{stat.text()}**" if stat is not None and same else percent(stat)


def margins(study: Study) -> str:
    """Learned against random lives under the same weights, and against patches dropped at random throughout."""
    rows, cells = [], []
    for rate in study.train_rates("main"):
        learned = study.by_seed("main", LIFE, rate)
        if not learned:
            continue
        shuffled = study.by_seed("main", LIFE, rate, lives="random")
        trained = study.by_seed("main", "random", rate)
        same, other = difference(learned, shuffled), difference(learned, trained)
        cells.append(pool(learned))
        row = [rate_text(rate), percent(pool(learned)), percent(pool(shuffled)), same.text() if same else "—"]
        rows.append([*row, percent(pool(trained)), other.text() if other else "—"])
    if not rows:
        return "Not measured yet."
    text = (
        f"{seeds_of(*cells)}. *Same weights*: the order of the patches replaced by a random one, at a disadvantage "
        "because these weights were tuned under the learned order. *Tuned with random patches*: a model that was "
        "trained with patches dropped at random for as many epochs, the stricter comparison."
    )
    header = ["keep rate", "learned lives, %", "random lives, same weights, %", "lead, points"]
    return "\n\n".join([text, table([*header, "tuned with random patches, %", "lead, points"], rows)])


def untuned(study: Study) -> str:
    """Methods without parameters under the dense model's weights as they are."""
    rates = study.train_rates("untuned")
    if not rates:
        return "Not measured yet."
    mean = lambda name: sum(s.mean for r in rates if (s := study.stat("untuned", name, r)) is not None)
    rows = []
    for name in sorted(study.variants("untuned"), key=mean, reverse=True):
        found = [study.by_seed("untuned", name, rate) for rate in rates]
        gain = difference(study.by_seed("main", name, 0.7), study.by_seed("untuned", name, 0.7))
        rows.append([label(name), *[percent(pool(one)) for one in found], gain.text() if gain else "—"])
    text = (
        "Top-1 of the methods that have no parameters, under the dense weights before any tuning, and what two epochs "
        "add at 0.7."
    )
    header = ["method", *[f"{rate_text(rate)}: top-1, %" for rate in rates], "0.7: gain by tuning, points"]
    return f"{text}\n\n{table(header, rows)}"


def long_runs(study: Study) -> str:
    """The one-stage methods tuned for longer, if they were."""
    rows, cells = [], []
    for name in study.variants("long"):
        rate = study.train_rates("long")[0]
        long, short = study.by_seed("long", name, rate), study.by_seed("main", name, rate)
        gain, lead = difference(long, short), difference(long, study.by_seed("main", LIFE, rate))
        epochs = next(row["epochs"] for row in study.of("long") if row["variant"] == name)
        cells.append(pool(long))
        row = [label(name), f"{epochs:g}", percent(pool(long)), gain.text() if gain else "—"]
        rows.append([*row, lead.text() if lead else "—"])
    if not rows:
        return ""
    header = ["method", "epochs", "top-1, %", "against its short run, points", "against life regression, points"]
    return f"At keep rate {rate_text(rate)}, {seeds_of(*cells)}.\n\n" + table(header, rows)
