"""GELU and layer normalisation against float64: values, gradients, dtypes, hard inputs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slimvit_jax.ops.elementwise import gelu, layer_norm


def _gelu64(x):
    x = np.asarray(x, np.float64)
    return np.array([0.5 * t * math.erfc(-t / math.sqrt(2)) for t in x.ravel()]).reshape(x.shape)


def _gelu_slope64(x):
    x = np.asarray(x, np.float64)
    cdf = np.array([0.5 * math.erfc(-t / math.sqrt(2)) for t in x.ravel()]).reshape(x.shape)
    return cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def test_gelu_values():
    x = np.linspace(-12, 12, 40_001, dtype=np.float32)
    error = np.abs(np.asarray(jax.jit(gelu)(x), np.float64) - _gelu64(x))
    assert error.max() < 1.2e-6  # float32 spacing at 12 is 9.5e-7
    assert error[np.abs(x) < 4].max() < 6e-7
    extreme = np.array([0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e30, -1e30, np.inf], np.float32)
    np.testing.assert_allclose(gelu(extreme), np.where(extreme > 1, extreme, extreme * (extreme > -1) * 0.5), rtol=1e-6)
    assert np.isnan(gelu(jnp.float32(np.nan)))


def test_gelu_gradient():
    x = np.linspace(-10, 10, 10_001, dtype=np.float32)
    slope = jax.jit(jax.vmap(jax.grad(gelu)))(x)
    np.testing.assert_allclose(slope, _gelu_slope64(x), atol=2e-6)
    extreme = jnp.asarray([1e30, -1e30, 100.0, -100.0], jnp.float32)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(extreme), [1, 0, 1, 0], atol=1e-6)


def test_gelu_second_derivative_and_forward_mode():
    x = jnp.asarray([-3.0, -0.5, 0.0, 0.5, 3.0])
    curve = jax.vmap(jax.grad(jax.grad(gelu)))(x)
    want = np.exp(-(np.asarray(x) ** 2) / 2) / math.sqrt(2 * math.pi) * (2 - np.asarray(x) ** 2)
    np.testing.assert_allclose(curve, want, atol=1e-5)
    np.testing.assert_allclose(jax.jvp(gelu, (x,), (jnp.ones_like(x),))[1], _gelu_slope64(x), atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 16)) * 2, dtype)
    scale, bias = jnp.linspace(0.5, 1.5, 16), jnp.linspace(-1, 1, 16)
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    assert gelu(x).dtype == dtype and layer_norm(x, scale, bias, 1e-6).dtype == dtype
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), _gelu64(x), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(
        np.asarray(layer_norm(x, scale, bias, 1e-6), np.float64),
        _norm64(x, scale, bias, 1e-6),
        atol=tolerance,
        rtol=tolerance,
    )


def _norm64(x, scale, bias, eps):
    x, scale, bias = (np.asarray(a, np.float64) for a in (x, scale, bias))
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * scale + bias


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 7, 48), (3, 384), (2, 3, 5, 10)])
def test_layer_norm_values(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32) * 3 + 1
    scale, bias = np.linspace(0.5, 1.5, shape[-1], dtype=np.float32), np.linspace(-1, 1, shape[-1], dtype=np.float32)
    np.testing.assert_allclose(layer_norm(x, scale, bias, 1e-6), _norm64(x, scale, bias, 1e-6), atol=5e-6)


def test_layer_norm_far_from_zero_and_constant():
    x = np.random.default_rng(2).normal(size=(4, 64)).astype(np.float32) + 1000
    one, zero = np.ones(64, np.float32), np.zeros(64, np.float32)
    np.testing.assert_allclose(layer_norm(x, one, zero, 1e-6), _norm64(x, one, zero, 1e-6), atol=5e-4)
    flat = jnp.full((2, 64), 3.0)
    assert np.all(np.asarray(layer_norm(flat, one, zero, 1e-6)) == 0)
    assert np.isfinite(jax.grad(lambda a: jnp.sum(layer_norm(a, one, zero, 1e-6) ** 2))(flat)).all()


def test_layer_norm_eps_shows_in_small_tokens():
    x = np.random.default_rng(3).normal(size=(2, 16)).astype(np.float32) * 1e-3
    one, zero = np.ones(16, np.float32), np.zeros(16, np.float32)
    for eps in (1e-5, 1e-6):
        np.testing.assert_allclose(layer_norm(x, one, zero, eps), _norm64(x, one, zero, eps), atol=1e-5)


def test_layer_norm_gradients():
    rng = np.random.default_rng(4)
    x, target = (jnp.asarray(rng.normal(size=(2, 5, 12)), jnp.float32) for _ in range(2))
    scale, bias = jnp.asarray(rng.normal(size=12), jnp.float32), jnp.asarray(rng.normal(size=12), jnp.float32)

    def plain(x, scale, bias):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * scale + bias

    got = jax.grad(lambda *a: jnp.sum(layer_norm(*a, 1e-6) * target), (0, 1, 2))(x, scale, bias)
    want = jax.grad(lambda *a: jnp.sum(plain(*a) * target), (0, 1, 2))(x, scale, bias)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5)
