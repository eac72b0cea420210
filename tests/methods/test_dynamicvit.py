"""DynamicViT: its training path and losses against the official code, decisions, extremes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, drawn, run, small

import slimvit_jax as slim
from slimvit_jax import losses

TINY = dict(img_size=24, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5)  # 36 patches
built = functools.partial(small, **TINY)
TWO = dict(locations=(2, 3))
IMAGES = jax.random.normal(jax.random.key(7), (2, 24, 24, 3))


@functools.cache
def _dynamicvit_train():
    golden = Golden.load("dynamicvit_train")
    model, variables = golden.model("dynamicvit", gumbel=False)
    student = run(model, variables, golden.images, train=True)
    teacher, teacher_variables = golden.model(None, prefix="teacher_sd/")
    return golden, model, student, run(teacher, teacher_variables, golden.images)


def test_dynamicvit_training_path_golden():
    golden, _, (logits, aux), (teacher_logits, teacher_aux) = _dynamicvit_train()
    close(logits, golden.out("train_logits"))
    close(aux.features[:, 1:], golden.out("train_features"))
    close(teacher_logits, golden.out("teacher_logits"))
    close(teacher_aux.features[:, 1:], golden.out("teacher_tokens"))
    for stage in range(3):
        close(aux.taps["decisions"][stage], golden.out(f"keep_stage{stage}"), 1e-6)
        close(aux.taps["log_probabilities"][stage], golden.out(f"pred_score_stage{stage}"))
    assert aux.token_counts == (196,) * 10


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_dynamicvit_losses_golden(kind, dynamic):
    golden, model, (logits, aux), teacher = _dynamicvit_train()
    method = model.slim.clone(token_loss=kind, dynamic=dynamic)
    parts = model.clone(slim=method).losses(logits, aux, slim.Targets(golden.arrays["in/targets"], teacher=teacher))
    ours = {name: losses.mean(value) for name, value in parts.items()}
    reference = {
        name: golden.out(f"loss_{kind}{'_dynamic' * dynamic}_{name}")
        for name in ("cls", "ratio", "cls_kl", "token", "total")
    }
    close(ours["classification"], reference["cls"])
    close(ours["ratio"] * 3, reference["ratio"])  # stored as the sum over the stages
    close(ours["distillation"], reference["cls_kl"])
    close(ours["token_distillation"], reference["token"])
    assert set(ours) == set(method.loss_weights)
    close(sum(method.loss_weights[name] * value for name, value in ours.items()), reference["total"])


def test_losses_by_hand():
    decisions = (jnp.asarray([[1.0, 1, 0, 0], [1, 1, 1, 1]]),)
    close(losses.keep_ratio(decisions, (0.5,)), np.float64([0, 0.25]))
    close(losses.keep_ratio(decisions, (0.5,), per_image=False), np.float64([0.25**2] * 2))
    close(losses.keep_ratio(decisions, (0.5,), per_image=False, mask=jnp.asarray([1.0, 0])), np.float64([0, 0]))
    tokens, teacher = jnp.asarray([[[1.0, 2], [5, 5]]]), jnp.asarray([[[1.0, 0], [0, 0]]])
    close(losses.token_distillation(tokens, teacher, jnp.asarray([[1.0, 0]])), np.float64([2.0]))
    for kind in ("mse", "kl"):
        nothing = lambda t, kind=kind: losses.token_distillation(t, teacher, jnp.zeros((1, 2)), kind).sum()
        value, gradient = jax.value_and_grad(nothing)(tokens)
        assert value == 0 and (gradient == 0).all()


def test_dynamicvit_decisions():
    model, variables = built("vit", "dynamicvit", keep_rate=0.5, **TWO)
    auxes = drawn(model, variables, IMAGES, (0, 0, 1))
    decisions = [np.asarray(aux.taps["decisions"]) for aux in auxes]
    np.testing.assert_array_equal(decisions[0], decisions[1])
    assert (decisions[0] != decisions[2]).any()
    np.testing.assert_allclose(decisions[0], decisions[0].round(), atol=1e-6)
    assert (decisions[0][1] <= decisions[0][0] + 1e-6).all()  # dropped patches do not come back
    np.testing.assert_array_equal(auxes[0].scores, auxes[0].taps["log_probabilities"][0][..., 0])


@pytest.mark.parametrize("teacher", [False, True])
def test_dynamicvit_stays_finite_where_an_image_drops_everything(teacher):
    model, variables = built("vit", "dynamicvit", gumbel=False, **TWO)
    params = jax.tree.map(lambda a: a, variables["params"])
    params["slim"]["score_predictor_0"]["out_conv_4"]["bias"] = jnp.asarray([-30.0, 30.0])
    labels = jax.nn.one_hot(jnp.asarray([0, 1]), 5)

    def loss(params):
        logits, aux = model.apply({"params": params}, IMAGES, train=True, return_aux=True)
        parts = model.losses(logits, aux, slim.Targets(labels, teacher=(logits, aux) if teacher else None))
        return sum(parts.values()).mean(), (logits, aux.taps["decisions"], parts)

    (_, (logits, decisions, parts)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert decisions[-1].max() < 1e-6 and np.isfinite(logits).all()
    assert set(parts) == (set(model.slim.loss_weights) if teacher else {"classification", "ratio"})
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
