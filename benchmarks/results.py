"""A study's results as numbers: which runs there are, means and spreads over their seeds, differences between them.

A *spread* is the sample standard deviation over seeds; one seed has none. Where rows say of every image whether it was
right, two kinds of runs are compared image by image, which is far sharper than comparing two accuracies. Accuracies are
fractions here; tables print per cent.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slimvit_jax.errors import SlimError
from slimvit_jax.inference.evaluate import paired_difference

LIFE = "life_regression"
#: Variants of life regression's training on Fashion-MNIST that other files name.
PAPER_LOSSES = "the paper's losses"
RECOMMENDED = "hard masks, single stage"
WITH_LOGITS = "hard masks and distillation, single stage"
ANY_BUDGET = "hard masks, distillation, sampled budgets, single stage"
FITTED_GATE = "10, fitted to this model"
#: On photographs: trained at rates drawn anew for every image, so that it counts as trained at each of them.
ONE_FOR_ALL = "one for all budgets"
#: What the page calls the methods.
NAMES = {
    "dense": "dense, trained on",
    "life_regression": "life regression",
    ONE_FOR_ALL: "life regression, squeezed, rates drawn",
    "random": "random patches",
    "topk": "top-k",
    "evit": "EViT",
    "dynamicvit": "DynamicViT",
    "tome": "ToMe",
    "evo": "Evo-ViT",
    "sit": "SiT",
    "avit": "A-ViT",
    "ia_red2": "IA-RED²",
    "ats": "ATS",
    "atc": "ATC",
    "dpcknn": "DPC-KNN",
    "kmedoids": "K-medoids",
    "patchmerger": "PatchMerger",
    "sinkhorn": "Sinkhorn",
    "diffrate": "DiffRate",
    "pitome": "PiToMe",
    "tofu": "ToFu",
    "mctf": "MCTF",
    "dtem": "DTEM",
    "cropr": "Cropr",
}


@dataclasses.dataclass(frozen=True)
class Stat:
    """One quantity over the seeds.

    Attributes:
      values: one per seed.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return statistics.stdev(self.values) if self.n > 1 else None

    def text(self) -> str:
        """Per cent, with the spread where there is one."""
        spread = "" if self.spread is None else f" ± {100 * self.spread:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


@dataclasses.dataclass(frozen=True)
class Difference:
    """first - second.

    Attributes:
      mean: of the difference.
      spread: over the seeds; None where there is no second seed.
      n: seeds that both have; 0 where they share none and their means were compared.
    """

    mean: float
    spread: float | None
    n: int

    def text(self) -> str:
        """Points, signed, with the spread where there is one."""
        spread = "" if self.spread is None else f" ± {100 * self.spread:.2f}"
        return f"{100 * self.mean:+.2f}{spread}"


def difference(first: dict[int, Stat], second: dict[int, Stat]) -> Difference | None:
    """Of two results by seed (`Study.by_seed`); None where one of them is missing."""
    one, other = pool(first), pool(second)
    if one is None or other is None:
        return None
    shared = sorted(first.keys() & second.keys())
    if shared:
        paired = Stat(tuple(first[seed].mean - second[seed].mean for seed in shared))
        return Difference(paired.mean, paired.spread, len(shared))
    both = one.spread is not None and other.spread is not None
    spread = math.hypot(one.spread or 0.0, other.spread or 0.0) if both else None
    return Difference(one.mean - other.mean, spread, 0)


class Study:
    """What a study left in its folder.

    Args:
      path: with study.json, and results.jsonl as far as it exists.

    Raises:
      SlimError: a file is not what the study writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts: dict[str, Any] = read_json(self.path / "study.json")
        lines = self.path / "results.jsonl"
        self.rows: list[dict[str, Any]] = _read(lines, _lines) if lines.exists() else []
        for row in self.rows:
            missing = {"cell", "group", "variant", "method", "train_rate", "seed", "evals"} - row.keys()
            if missing:
                raise SlimError(f"{lines}: a row lacks {', '.join(sorted(missing))}")

    @property
    def scale(self) -> str:
        return str(self.facts.get("scale", self.path.name))

    @property
    def dense(self) -> Stat:
        """The accuracy all runs start from."""
        facts = self.facts["dense"]
        return Stat((facts["accuracy"],))

    @property
    def seeds(self) -> int:
        return len({row["seed"] for row in self.rows})

    def config(self, field: str, default: Any = None) -> Any:
        """A field of the flattened config."""
        return self.facts["config"].get(field, default)

    def model_options(self) -> dict[str, Any]:
        """The backbone's options, for create_model."""
        start = "model.options."
        return {key.removeprefix(start): v for key, v in self.facts["config"].items() if key.startswith(start)}

    def of(self, group: str) -> list[dict[str, Any]]:
        """The rows with results of a group, in the order they were made."""
        return [row for row in self.rows if row["group"] == group and row["evals"]]

    def variants(self, group: str, train_rate: float | None = None) -> list[str]:
        """The variants of a group, in the order they were made."""
        rows = [row for row in self.of(group) if train_rate in (None, row["train_rate"])]
        return list(dict.fromkeys(row["variant"] for row in rows))

    def train_rates(self, group: str) -> list[float]:
        """Rates trained at, highest first."""
        return sorted({row["train_rate"] for row in self.of(group)}, reverse=True)

    def deploy_rates(self) -> list[float]:
        """Rates that the main cells of methods with lives were evaluated at, highest first."""
        found = {o["keep_rate"] for row in self.of("main") for o in row["evals"] if o.get("lives")}
        return sorted(found, reverse=True)

    def by_seed(
        self,
        group: str,
        variant: str,
        train_rate: float,
        keep_rate: float | None = None,
        lives: str = "learned",
        key: str = "accuracy",
    ) -> dict[int, Stat]:
        """The result of each seed: {} where there is none.

        Args:
          group, variant, train_rate: which runs.
          keep_rate: evaluated at; None: the rate trained at.
          lives: "learned" or "random", for methods that have lives.
          key: "accuracy", "top5" or "flops".
        """
        wanted = train_rate if keep_rate is None else keep_rate
        found = {}
        for row in self.of(group):
            if row["variant"] != variant or train_rate not in _trained_at(row):
                continue
            for outcome in row["evals"]:
                if outcome["keep_rate"] == wanted and outcome.get("lives") in (None, lives):
                    if lives == "random" and outcome.get("lives") is None:
                        continue
                    found[row["seed"]] = Stat((outcome[key],))
        return found

    def hits(self, group: str, variant: str, train_rate: float, keep_rate: float | None = None) -> np.ndarray | None:
        """(images,) of 0..1: the share of the seeds that were right; None where no run says it."""
        found = [
            np.unpackbits(np.frombuffer(bytes.fromhex(outcome["hits"]), np.uint8), count=outcome["examples"])
            for row in self.of(group)
            for outcome in row["evals"]
            if row["variant"] == variant and train_rate in _trained_at(row) and "hits" in outcome
            if outcome["keep_rate"] == (train_rate if keep_rate is None else keep_rate)
        ]
        return np.mean(found, axis=0) if found else None

    def stat(self, *args: Any, **options: Any) -> Stat | None:
        """`by_seed` as one Stat; None where there is no run."""
        return pool(self.by_seed(*args, **options))


def _trained_at(row: dict[str, Any]) -> set[float]:
    """The keep rates that a run learned."""
    return {outcome["keep_rate"] for outcome in row["evals"]} if row["variant"] == ONE_FOR_ALL else {row["train_rate"]}


def paired(first: np.ndarray | None, second: np.ndarray | None) -> str:
    """first - second in points, with its standard error over the images; a dash where one is missing."""
    if first is None or second is None or len(first) != len(second):
        return "—"
    mean, error = paired_difference(first, second)
    return f"{100 * mean:+.2f} ± {100 * error:.2f}"


def pool(results: dict[int, Stat]) -> Stat | None:
    """Over the seeds; None for none."""
    if not results:
        return None
    return Stat(tuple(results[seed].mean for seed in sorted(results)))


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
      SlimError: it is missing, or no JSON.
    """
    return _read(path, json.loads)


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SlimError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise SlimError(f"{path} is no JSON: {error}") from error


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; the first `text_columns` columns are text, the others right-aligned."""
    align = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    lines = [header, align, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def label(variant: str) -> str:
    """What the page calls a method, or a variant of one: "life_regression, squeezed"."""
    method, comma, how = variant.partition(", ")
    return NAMES.get(method, method) + comma + how
