"""Attention against straightforward float64 references: values, gradients, dtypes, extreme weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slimvit_jax.errors import SlimError
from slimvit_jax.ops.attention import (
    attention,
    attention_and_received,
    attention_probabilities,
    class_attention,
    policy_attention,
)


def _inputs(b=2, n=7, h=3, d=8, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(b, n, h, d)), dtype) for _ in range(3))
    return q, k, v, jnp.asarray(rng.normal(size=(b, n)) * 3, jnp.float32)


def _reference(q, k, v, log_weight=None):
    """Plain softmax attention in float64: (probabilities, output)."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    if log_weight is not None:
        logits = logits + np.asarray(log_weight, np.float64)[:, None, None, :]
    e = np.exp(logits - logits.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, np.einsum("bhqk,bkhd->bqhd", p, v)


def _plain(q, k, v, log_weight):
    """The definition in differentiable form, for gradients."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + log_weight[:, None, None]
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_values(weighted, batch):
    q, k, v, log_weight = _inputs(batch)
    log_weight = log_weight if weighted else None
    probabilities, out = _reference(q, k, v, log_weight)
    np.testing.assert_allclose(attention(q, k, v, log_weight=log_weight), out, atol=1e-6)
    np.testing.assert_allclose(attention_probabilities(q, k, log_weight=log_weight), probabilities, atol=1e-6)
    both = attention_and_received(q, k, v, log_weight=log_weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both, (out, probabilities.mean(axis=2)))
    row = class_attention(q[:, :1], k, log_weight=log_weight)
    np.testing.assert_allclose(row, probabilities[:, :, 0], atol=1e-6)


@pytest.mark.parametrize("received", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_large_logits_are_computed_by_groups_of_heads(weighted, received):
    """Four images of four heads and 520 tokens, 17 MiB of logits, in a loop; one image of them is done at once."""
    q, k, v, log_weight = _inputs(4, 520, 4, 4)

    def some(q, i):
        weight = log_weight[i] if weighted else None
        if not received:
            return attention(q[i], k[i], v[i], log_weight=weight)
        out, shares = attention_and_received(q[i], k[i], v[i], log_weight=weight)  # (B, N, H, D) and (B, H, N)
        return jnp.concatenate([out, 20.0 * shares.swapaxes(1, 2)[..., None]], axis=-1)

    def loss(q, size):
        return sum(jnp.square(some(q, slice(n, n + size))).sum() for n in range(0, 4, size))

    looped = [
        any(w in str(jax.make_jaxpr(lambda q, n=n: some(q, slice(n)))(q)) for w in ("scan", "while")) for n in (1, 4)
    ]
    assert looped == [False, True]
    one = [some(q, slice(n, n + 1)) for n in range(4)]
    np.testing.assert_allclose(some(q, slice(4)), jnp.concatenate(one), atol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(q, 4), jax.grad(loss)(q, 1), rtol=1e-5, atol=1e-5)


def test_fewer_queries_than_keys():
    q, k, v, _ = _inputs()
    np.testing.assert_allclose(attention(q[:, :3], k, v), attention(q, k, v)[:, :3], atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_attention_gradients(weighted):
    q, k, v, log_weight = _inputs(n=9)
    target = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(f):
        return lambda *a: jnp.sum(f(*a) * target)

    def ours(q, k, v, w):
        return attention(q, k, v, log_weight=w if weighted else None)

    def plain(q, k, v, w):
        return _plain(q, k, v, w if weighted else jnp.zeros_like(w))

    got = jax.grad(loss(ours), (0, 1, 2, 3))(q, k, v, log_weight)
    want = jax.grad(loss(plain), (0, 1, 2, 3))(q, k, v, log_weight)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-6)


def test_log_weight_matches_multiplied_weights():
    q, k, v, log_weight = _inputs()
    p, _ = _reference(q, k, v)
    beta = np.exp(np.asarray(log_weight, np.float64))[:, None, None]
    weighted = p * beta / (p * beta).sum(-1, keepdims=True)
    np.testing.assert_allclose(attention_probabilities(q, k, log_weight=log_weight), weighted, atol=1e-6)


def test_extreme_log_weight_equals_removal():
    q, k, v, _ = _inputs()
    log_weight = jnp.zeros((2, 7)).at[:, 4:].set(-1e9)
    np.testing.assert_allclose(attention(q, k, v, log_weight=log_weight), attention(q, k[:, :4], v[:, :4]), atol=1e-6)
    grads = jax.grad(lambda *a: attention(*a[:3], log_weight=a[3]).sum(), (0, 1, 2, 3))(q, k, v, log_weight)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_large_logits_stay_finite():
    q, k, v, _ = _inputs()
    _, out = _reference(q * 1000, k, v)
    np.testing.assert_allclose(attention(q * 1000, k, v), out, atol=1e-3)


def test_bfloat16():
    q, k, v, log_weight = _inputs(dtype=jnp.bfloat16)
    out = attention(q, k, v, log_weight=log_weight)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), _reference(q, k, v, log_weight)[1], atol=3e-2)
    assert attention_probabilities(q, k).dtype == jnp.float32
    np.testing.assert_allclose(attention_probabilities(q, k), _reference(q, k, v)[0], atol=1e-5)
    assert policy_attention(q, k, v, jnp.ones((2, 7))).dtype == jnp.bfloat16


def test_bad_backends():
    q, k, v, _ = _inputs()
    with pytest.raises(SlimError, match="flash.*cudnn"):
        attention(q, k, v, backend="flash")
    with pytest.raises(SlimError, match="bfloat16"):
        attention(q, k, v, backend="cudnn")


def _policy_reference(q, k, v, policy, eps=1e-6):
    q, k, v, policy = (np.asarray(a, np.float64) for a in (q, k, v, policy))
    n = k.shape[1]
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    keep = np.where(np.eye(n) > 0, 1.0, policy[:, None, None, :])
    e = np.exp(logits - logits.max(-1, keepdims=True)) * keep
    return np.einsum("bhqk,bkhd->bqhd", (e + eps / n) / (e.sum(-1, keepdims=True) + eps), v)


def test_policy_attention_values():
    q, k, v, _ = _inputs()
    policy = jnp.asarray(np.random.default_rng(2).integers(0, 2, (2, 7)), jnp.float32)
    np.testing.assert_allclose(policy_attention(q, k, v, policy), _policy_reference(q, k, v, policy), atol=1e-6)
    soft = jnp.asarray(np.random.default_rng(3).uniform(size=(2, 7)), jnp.float32)
    np.testing.assert_allclose(policy_attention(q, k, v, soft), _policy_reference(q, k, v, soft), atol=1e-6)
    np.testing.assert_allclose(policy_attention(q, k, v, jnp.ones((2, 7))), attention(q, k, v), atol=1e-5)


def test_policy_attention_gradients_with_hard_zeros():
    q, k, v, _ = _inputs()
    target = jnp.asarray(np.random.default_rng(4).normal(size=q.shape), jnp.float32)
    policy = jnp.zeros((2, 7)).at[:, 0].set(1.0)
    grads = jax.grad(lambda *a: jnp.sum(policy_attention(*a) * target), (0, 1, 2, 3))(q, k, v, policy)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert float(jnp.abs(grads[3][:, 1:]).max()) > 0  # a dropped key still hears that it would help
    step = 1e-3
    for j in (0, 3):
        ends = [_policy_reference(q, k, v, policy.at[0, j].add(s)) for s in (step, -step)]
        slope = ((ends[0] - ends[1]) * np.asarray(target)).sum() / (2 * step)
        np.testing.assert_allclose(grads[3][0, j], slope, rtol=2e-3, atol=2e-3)
