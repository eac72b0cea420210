"""What a model without a classifier is worth: k nearest neighbours and a linear probe on its features.

Self-supervised weights such as DINOv2's come with `num_classes=0`: what the model gives are pooled features. Both
measures learn from the features of a training split and count a held-out one; the model itself learns nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from slimvit_jax.errors import SlimError
from slimvit_jax.inference.evaluate import Inference, binomial_stderr


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Shares of held-out images that are told right, in 0..1."""

    knn: float
    linear: float
    neighbours: int
    trained_on: int
    count: int

    def summary(self) -> dict[str, float | int]:
        errors = {f"{name}_stderr": self.stderr(getattr(self, name)) for name in ("knn", "linear")}
        return dataclasses.asdict(self) | errors

    def stderr(self, share: float) -> float:
        """Binomial standard error of one of the two."""
        return binomial_stderr(round(share * self.count), self.count)


def features(
    run: Inference, batches: Iterable[Mapping[str, Any]], progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What the model gives for every image that counts, (N, D) float32, and their labels (N,).

    Args:
      run: of a model with num_classes=0, or of any other whose logits are wanted.
      batches: of `data.eval_batches`.
      progress: called with the number of rows done so far.
    """
    found: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    done = 0
    for batch in batches:
        mask = np.asarray(batch["mask"], bool)
        found.append(np.asarray(run(batch["image"]).logits)[mask])
        labels.append(np.asarray(batch["label"])[mask])
        done += len(mask)
        if progress is not None:
            progress(done)
    return np.concatenate(found), np.concatenate(labels)


def probe(
    train: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray], neighbours: int = 5
) -> ProbeResult:
    """Both measures, of the features and labels of two splits.

    k-NN: the majority of the nearest by cosine. Linear: multinomial logistic regression on standardised features, with
    scikit-learn's default penalty (C=1).

    Args:
      train, held_out: (N, D) features and (N,) labels each, of `features`.
      neighbours: k.

    Raises:
      SlimError: fewer training images than neighbours, or images of one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (held_x, held_y) = train, held_out
    if not 1 <= neighbours <= len(y):
        raise SlimError(f"neighbours={neighbours} must be at least 1 and at most the {len(y)} training images")
    if len(np.unique(y)) < 2:
        raise SlimError(f"the {len(y)} training images are all of one class: there is nothing to tell apart")
    nearest = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute").fit(x, y)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)
    knn, line = (float((one.predict(held_x) == held_y).mean()) for one in (nearest, linear))
    return ProbeResult(knn, line, neighbours, len(y), len(held_y))
