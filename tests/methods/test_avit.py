"""A-ViT: parity with the official code, the halting prior by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, run

import slimvit_jax as slim
from slimvit_jax import losses as loss_functions
from slimvit_jax.methods import avit


@pytest.mark.parametrize("case", ["avit", "avit_soft"])
def test_avit_goldens(case):
    golden, hyper = Golden.load(case), Golden.load(case).meta["hyper"]
    gate = dict(gate_scale=hyper["gate_scale"], gate_center=hyper["gate_center"])
    model, variables = golden.model("avit", **gate)
    logits, aux = run(model, variables, golden.images)
    close(logits, golden.out("logits"))
    close(aux.taps["rho"], golden.out("rho_token"))
    close(jnp.stack(aux.taps["halting_scores"]), golden.out("halting_score"))
    np.testing.assert_array_equal(aux.taps["counter"], golden.out("counter_token"))
    np.testing.assert_array_equal(jnp.stack(aux.taps["active_masks"]), golden.out("active_mask"))
    losses = model.losses(logits, aux, slim.Targets(jnp.full((2, 20), 0.05)))
    losses = {name: loss_functions.mean(value) for name, value in losses.items()}
    close(losses["ponder"] * hyper["ponder_token_scale"], golden.out("ponder_loss"), 1e-7)
    close(losses["distribution_prior"] * hyper["distr_prior_alpha"], golden.out("distr_prior_loss"), 1e-6)
    close(avit.layer_scores(jnp.stack(aux.taps["halting_scores"]), "official"), golden.out("halting_score_layer"))
    close(avit.target_distribution(12, 8), golden.out("distr_target"), 1e-6)
    if case == "avit_soft":  # budgets that cut halted patches alone change nothing
        most = golden.out("active_mask")[:, :, 1:].sum(-1).max(1)
        budgeted, _ = golden.model("avit", **gate, budgets=tuple(map(int, most)))
        fast, fast_aux = run(budgeted, variables, golden.images)
        close(fast, golden.out("logits"))
        close(fast_aux.taps["rho"], golden.out("rho_token"))
        close(fast_aux.features, np.asarray(aux.features))
        assert fast_aux.token_counts == tuple(most) and len(fast_aux.kept) == len(set(most)) - 1


def test_halting_prior_by_hand():
    np.testing.assert_allclose(avit.target_distribution(12, 8).sum(), 3.26, atol=5e-3)
    np.testing.assert_allclose(avit.target_distribution(40, 3)[:3].sum(), 0.98)
    halting = jnp.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_allclose(avit.layer_scores(halting, "official"), [4, 10])  # the second image alone
    np.testing.assert_allclose(avit.layer_scores(halting, "all"), [2.5, 8.5])
    np.testing.assert_allclose(avit.layer_scores(halting[:, :1], "official"), [1, 7])  # one image: used whole
    target = np.array([0.25, 0.75])
    expected = (target * np.log(2 * target)).sum() / 2
    close(avit.distribution_prior(jnp.array([1.0, 1.0]), target), expected, 1e-7)
    assert avit.distribution_prior(jnp.array([1.0, 3.0]), target * 0.5) == 0  # negative: not added
    assert jnp.isfinite(avit.distribution_prior(jnp.zeros(40), avit.target_distribution(40, 27)))
