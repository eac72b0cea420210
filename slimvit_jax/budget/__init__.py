"""Token counts for a latency: how many patches every layer of a pretrained model may keep, measured and searched for.

    measured cost model (cost.py) -> pure search over counts (schedules.py, search.py) <- agreement (layerwise.py)

`fit.py` puts them together.
"""

from slimvit_jax.budget.fit import Budget, fit_budget, tune

__all__ = ["Budget", "fit_budget", "tune"]
