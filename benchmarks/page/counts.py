"""The page's table of multiply-adds and parameters, every row of the papers' tables beside our count."""

from __future__ import annotations

from benchmarks.page.cells import table
from slimvit_jax.analysis.paper_rows import ROUNDING, SIT_TOLERANCE, Count, PaperRow, count, paper_rows

TABLES = {
    "table1_deit": "Life regression, Table I",
    "table2_vit": "Life regression, Table II",
    "table3_keep_rate": "Life regression, Table III (DeiT-S)",
    "sit": "SiT",
    "lvvit": "LV-ViT",
}


def counts() -> str:
    """All rows, and the reasons of those that do not follow."""
    rows: list[list[str]] = []
    reasons: dict[str, list[str]] = {}
    verdicts: list[str] = []
    for row in paper_rows():
        counted, printed = count(row), row.figures["flops"]
        verdicts.append(_verdict(row, counted))
        if row.reason:
            reasons.setdefault(row.reason, []).append(f"{row.label}, {printed:.1f} G")
        mark = f" ({list(reasons).index(row.reason) + 1})" if row.reason else ""
        millions = f"{row.figures['params_m']:g}" if "params_m" in row.figures else "—"
        own = f"{counted.flops:.3f}" if row.method == "life_regression" else ""
        off = f"{100 * (counted.as_paper / printed - 1):+.1f} %"
        cells = [TABLES[row.table], row.label, f"{printed:.1f}", f"{counted.as_paper:.3f}", off]
        rows.append([*cells, verdicts[-1] + mark, own, millions, f"{counted.parameters:.2f}"])
    many = {verdict: verdicts.count(verdict) for verdict in verdicts}
    text = (
        "Multiply-adds in G, parameters of inference in M (`slim.flops`, `tests/test_paper_flops.py`). Of the "
        f"{len(rows)} printed FLOPs {many.get(YES, 0)} follow within their rounding, {many.get(NEARLY, 0)} more of SiT "
        f"and LV-ViT within {100 * SIT_TOLERANCE:g} %, {many.get(NO, 0)} do not, and {many.get(MEAN, 0)} are means "
        "over images. Life regression is counted as its paper counts it, with two linear layers over all tokens in the "
        "predictor (`slim.flops(model, paper_predictor=True)`); what ours costs stands beside it. Tables I to III "
        "print no parameters. Numbers in brackets lead to the reasons below."
    )
    header = ["table", "row", "printed G", "counted", "off", "follows", "our predictor", "printed M", "counted"]
    said = [f"{i}. {'; '.join(where)}: {reason}." for i, (reason, where) in enumerate(reasons.items(), start=1)]
    return "\n\n".join([text, table(header, rows, 2), "\n".join(said)])


YES, NEARLY, NO, MEAN = "yes", f"within {100 * SIT_TOLERANCE:g} %", "no", "a mean over images"


def _verdict(row: PaperRow, counted: Count) -> str:
    if row.dynamic:
        return MEAN
    if abs(counted.as_paper - row.figures["flops"]) <= ROUNDING:
        return YES
    return NEARLY if counted.agrees else NO
