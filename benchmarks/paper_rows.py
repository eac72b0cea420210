"""Every row of the papers' tables as a model of ours: what tests, report and benchmarks read, written down once.

The figures are in paper_tables.json; here stands which model and options each row means, and, where a printed figure
cannot follow from them, why. Life regression's rows are counted as the paper counts its predictor and as ours costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from slimvit_jax.build import create_model
from slimvit_jax.inference.evaluate import count_parameters
from slimvit_jax.inference.flops import flops
from slimvit_jax.named import UNNAMED
from slimvit_jax.plan import shrinking_counts
from slimvit_jax.reports.report_text import paper_tables
from slimvit_jax.slimming import Slimming

#: SiT's and LV-ViT's FLOPs: our count, which has no norms, activations and biases, lies up to so much below theirs.
SIT_TOLERANCE = 0.015
ROUNDING = 0.05 + 1e-9  # G: half a unit of the last digit of all printed FLOPs

_HALTING = (
    "a mean over images: each image halts its own tokens, no static plan has this cost. Ours runs static budgets"
    " chosen near the printed figure, so their agreement shows nothing"
)
_SAMPLED = (
    "a mean over images: patches of probability above 0.5 are kept, so every image has its own cost. Ours runs the"
    " static keep rate whose cost comes nearest, so their agreement shows nothing"
)
_DYNAMICVIT = (
    "the paper gives no keep rate; 3.4 lies between our count at 0.8 without the three predictors (3.35) and with them"
    " (3.46). The accuracies printed beside it, 79.3 and 94.6, are those of the authors' model at 0.7, for which their"
    " release's README prints 2.9 and we count 2.98 with and 2.88 without predictors"
)
_EVO_BASE = (
    "the paper prints 12.0 here and 11.7 for Evo-ViT on DeiT-B, which is the same architecture with the same plan; the"
    " count gives 11.7 for both"
)
_EVIT_BASE = (
    "keep rate 0.7, which gives the printed 3.0 on DeiT-S, gives 11.6 at this width; 12.1 would need a keep rate of"
    " 0.73, which the paper does not mention"
)


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes:
      table: its key in paper_tables.json.
      label: the row's name there.
      model: a name for `create_model`.
      method: the slimming method; None for a dense row.
      options: of the method.
      figures: what the paper prints of "flops" (G), "params_m", "top1", "top5", "throughput", "epochs".
      reason: why the printed FLOPs do not follow from a static plan; "" where they do.
      dynamic: the printed FLOPs are a mean over images.
    """

    table: str
    label: str
    model: str
    method: str | None
    options: Mapping[str, Any]
    figures: Mapping[str, Any]
    reason: str = ""
    dynamic: bool = False

    def build(self, **more: Any) -> Any:
        """The row's model. How images are prepared does not tell models apart here: DeiT-S and ViT-S are equal."""
        method = self.method if self.method is not None else Slimming()
        return create_model(self.model, method, **{**self.options, **more}).clone(preprocess=UNNAMED)

    def build_dense(self, **more: Any) -> Any:
        """The dense model that the row is a faster form of."""
        return create_model(self.model, Slimming(), **more).clone(preprocess=UNNAMED)

    @property
    def tolerance(self) -> float:
        """What a count may differ from the printed FLOPs, in G: its rounding, or 1.5 % for SiT and LV-ViT."""
        return max(ROUNDING, SIT_TOLERANCE * self.figures["flops"]) if "params_m" in self.figures else ROUNDING


@dataclasses.dataclass(frozen=True)
class Count:
    """Our count of one row, in G and M.

    Attributes:
      flops: what the model computes.
      as_paper: counted as its paper counts; differs from `flops` for life regression only.
      dense: of the dense model of the same size.
      parameters: of inference.
      agrees: `as_paper` is within the row's tolerance of the printed figure.
    """

    flops: float
    as_paper: float
    dense: float
    parameters: float
    agrees: bool


def count(row: PaperRow) -> Count:
    """Counts a row; nothing is computed."""
    model = row.build()
    ours = flops(model).total / 1e9
    as_paper = flops(model, paper_predictor=True).total / 1e9 if model.slim.paper_flops() is not None else ours
    return Count(
        flops=ours,
        as_paper=as_paper,
        dense=flops(row.build_dense()).total / 1e9,
        parameters=count_parameters(model) / 1e6,
        agrees=abs(as_paper - row.figures["flops"]) <= row.tolerance,
    )


def paper_speedup(row: PaperRow) -> float | None:
    """The paper's images/s of a row over those of its dense backbone; None where it prints none."""
    if row.method is None or not row.figures.get("throughput"):
        return None
    same = [r for r in paper_rows() if r.table == row.table and r.model == row.model and r.method is None]
    return row.figures["throughput"] / same[0].figures["throughput"]


def paper_rows() -> tuple[PaperRow, ...]:
    """All rows: Tables I-III of life regression, then SiT's and LV-ViT's."""
    tables = paper_tables()
    rows = []
    for table in ("table1_deit", "table2_vit"):
        for entry in tables[table]:
            model, method, options, *reason = _MEANING[entry["method"]]
            figures = {key: value for key, value in entry.items() if key != "method"}
            rows.append(PaperRow(table, entry["method"], model, method, options, figures, *reason))
    rows += _keep_rates(tables["table3_keep_rate"])
    for table in ("sit", "lvvit"):
        for entry in tables[table]:
            name = entry["model"].lower().replace("lv-vit", "lvvit").replace("-", "_")
            figures = {key: entry[key] for key in ("top1", "params_m", "flops")}
            slimmed = table == "sit"
            # the name "sit_s" implies method and options; its dense form is the teacher
            rows.append(PaperRow(table, entry["model"], name, "sit" if slimmed else None, {}, figures))
    return tuple(rows)


def _keep_rates(table: Mapping[str, Any]) -> list[PaperRow]:
    rows = []
    for i, rate in enumerate(table["keep_rate"]):
        figures = {key: table[key][i] for key in ("top1", "top5", "flops", "throughput")}
        method = None if rate == 1 else "life_regression"
        options = {} if rate == 1 else {"keep_rate": rate}
        rows.append(PaperRow("table3_keep_rate", f"keep rate {rate:g}", _DEIT_S, method, options, figures))
    return rows


def _budgets(rate: float) -> tuple[int, ...]:
    """Life regression's schedule on 196 patches and 12 layers, for a method that takes budgets only."""
    first, second, third = shrinking_counts(196, (rate,) * 3)
    return (196,) * 4 + (first,) * 3 + (second,) * 3 + (third,) * 2


_DEIT_S, _DEIT_B = "deit_small_patch16_224", "deit_base_patch16_224"
_VIT_T, _VIT_S, _VIT_B = (f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))

# label -> model, method, options[, why the printed FLOPs do not follow[, they are a mean over images]]
_MEANING: dict[str, tuple[Any, ...]] = {
    "DeiT-S": (_DEIT_S, None, {}),
    "IA-RED2 (DeiT-S)": (_DEIT_S, "ia_red2", {"keep_rate": 0.85}, _SAMPLED, True),
    "EViT (DeiT-S)": (_DEIT_S, "evit", {"keep_rate": 0.7}),
    "DynamicViT (DeiT-S)": (_DEIT_S, "dynamicvit", {"keep_rate": 0.8}, _DYNAMICVIT),
    "Life regression (DeiT-S)": (_DEIT_S, "life_regression", {"keep_rate": 0.7}),
    "DeiT-B": (_DEIT_B, None, {}),
    "IA-RED2 (DeiT-B)": (_DEIT_B, "ia_red2", {"keep_rate": 0.81}, _SAMPLED, True),
    "Evo-ViT (DeiT-B)": (_DEIT_B, "evo", {"keep_rate": 0.5}),
    "Life regression (DeiT-B)": (_DEIT_B, "life_regression", {"keep_rate": 0.7}),
    "ViT-T": (_VIT_T, None, {}),
    "DynamicViT (ViT-T)": (_VIT_T, "dynamicvit", {"keep_rate": 0.8}),
    "A-ViT (ViT-T)": (_VIT_T, "avit", {"budgets": _budgets(0.65)}, _HALTING, True),
    "Evo-ViT (ViT-T)": (_VIT_T, "evo", {"keep_rate": 0.5}),
    "Life regression (ViT-T)": (_VIT_T, "life_regression", {"keep_rate": 0.7}),
    "ViT-S": (_VIT_S, None, {}),
    "Evo-ViT (ViT-S)": (_VIT_S, "evo", {"keep_rate": 0.5}),
    "A-ViT (ViT-S)": (_VIT_S, "avit", {"budgets": _budgets(0.8)}, _HALTING, True),
    "Life regression (ViT-S)": (_VIT_S, "life_regression", {"keep_rate": 0.7}),
    "ViT-B": (_VIT_B, None, {}),
    "Evo-ViT (ViT-B)": (_VIT_B, "evo", {"keep_rate": 0.5}, _EVO_BASE),
    "EViT (ViT-B)": (_VIT_B, "evit", {"keep_rate": 0.7}, _EVIT_BASE),
    "Life regression (ViT-B)": (_VIT_B, "life_regression", {"keep_rate": 0.7}),
}
