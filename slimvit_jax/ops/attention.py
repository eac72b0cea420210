"""Attention as pure functions on arrays, with one optional weight per key.

Layout: queries, keys and values are (B, N, H, D), the way a ``qkv`` projection leaves them; what a function needs in
another order it moves itself.  Softmax and its sums are float32 whatever the compute dtype.  The logits are scaled by
``D ** -0.5``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.ops.pieces import piece

BACKENDS = ("auto", "xla", "cudnn")
#: On a CPU, attention goes by groups of heads whose logits take LOGITS_PER_GROUP bytes, where those of one head take
#: LARGE_HEAD (512 tokens) and those of all more than LARGE_LOGITS. By CPU time, DINOv2-S: forward 1.7 times as fast at
#: 378 px and batch 4, 1.9 times at 518 px and batch 1, its gradient 1.1 times. Smaller heads are left alone: at 224 px
#: and batch 16 a gradient took longer.
LARGE_HEAD, LARGE_LOGITS, LOGITS_PER_GROUP = 2**20, 16 * 2**20, 8 * 2**20


def _heads_first(x: Array) -> Array:
    """(B, N, H, D) to (B, H, N, D).

    On CPU the batched products of XLA are fastest on operands whose batch axes come first; left to an einsum, XLA
    would transpose the far larger logits instead.
    """
    return x.transpose(0, 2, 1, 3)


@piece
def split_heads(qkv: Array, count: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values, (B, N, H, D) each, of what one projection makes of the tokens, (B, N, 3 H D)."""
    qkv = qkv.reshape(*qkv.shape[:2], 3, count, qkv.shape[2] // (3 * count))
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def _logits(q: Array, k: Array, log_weight: Array | None, bias: Array | None = None) -> Array:
    """Scaled logits of queries and keys (B, H, N, D) plus the keys' (B, Nk) log weights: float32 (B, H, Nq, Nk).

    A bias (H, Nq, Nk) is added to the logits of every image.
    """
    scale = q.shape[-1] ** -0.5
    # The scale goes into the queries: (B, H, Nq, D) numbers instead of the (B, H, Nq, Nk) of the logits.  Under
    # bfloat16 it waits for the float32 logits, because a rounded scale is only exact for a power of four.
    early = q.dtype == jnp.float32
    q = q * jnp.asarray(scale, q.dtype) if early else q
    logits = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    logits = logits if early else logits * scale
    if log_weight is not None:
        logits = logits + log_weight.astype(jnp.float32)[:, None, None, :]
    return logits if bias is None else logits + bias.astype(jnp.float32)


def _shifted_exp(logits: Array) -> Array:
    """exp(logits - max over keys): the softmax before its division, in (0, 1]."""
    return jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))


@piece
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    log_weight: Array | None = None,
    bias: Array | None = None,
    backend: str = "auto",
) -> Array:
    """Softmax attention, key j weighted by exp(log_weight_j).

    Args:
      q: (B, Nq, H, D) queries.
      k, v: (B, Nk, H, D) keys and values, in the dtype of ``q``; "xla" takes values of another width D' as well.
      log_weight: None or float32 (B, Nk), added to the logits of key j for every query and head.
      bias: None or float32 (H, Nq, Nk), added to the logits of every image; "xla" only.
      backend: "xla", "cudnn" (fused, GPU only) or "auto", which takes the fused kernel on a GPU for 16-bit inputs
        without log_weight and bias.

    Returns:
      (B, Nq, H, D') in the dtype of ``q``.

    Raises:
      SlimError: for an unknown backend, and for "cudnn" with inputs it cannot take.
    """
    if backend not in BACKENDS:
        raise unknown("attention backend", backend, BACKENDS)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if backend == "auto":
        plain = log_weight is None and bias is None and v.shape[-1] == q.shape[-1]
        backend = "cudnn" if half and plain and jax.default_backend() == "gpu" else "xla"
    if backend == "cudnn":
        if not half:
            raise SlimError(f"attention backend 'cudnn' needs bfloat16 or float16, got {q.dtype.name}: use 'xla'")
        if bias is not None:
            raise SlimError("attention backend 'cudnn' takes no bias per query and key: use 'xla'")
        weight = None if log_weight is None else log_weight.astype(q.dtype)[:, None, None, :]
        return jax.nn.dot_product_attention(q, k, v, bias=weight, implementation="cudnn")
    q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
    out = _by_heads(_read, q, k, v, log_weight) if bias is None else _read(q, k, v, log_weight, bias)
    return _heads_first(out)


@piece
def attention_and_received(q: Array, k: Array, v: Array, *, log_weight: Array | None = None) -> tuple[Array, Array]:
    """`attention` by "xla", and how much each key is looked at.

    Returns:
      What the queries read, (B, Nq, H, D'), and the mean over queries of the softmax, float32 (B, H, Nk). Large images
      go by groups of heads here too, so the whole matrix is never in memory.
    """
    q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
    out, received = _by_heads(_read_and_received, q, k, v, log_weight)
    return _heads_first(out), received


def _by_heads(read: Callable[..., Any], q: Array, k: Array, v: Array, log_weight: Array | None) -> Any:
    """read(q, k, v, log_weight) of operands with their heads first, by groups of heads where the logits are large."""
    at_once = _heads_at_once(q, k)
    if at_once is None:
        return read(q, k, v, log_weight)
    heads = [x.reshape(-1, 1, 1, *x.shape[2:]) for x in (q, k, v)]  # every head of every image by itself
    weight = None if log_weight is None else jnp.repeat(log_weight[:, None], q.shape[1], axis=0)
    one = lambda head: jax.tree.map(lambda x: x[0, 0], read(*head))
    found = jax.lax.map(one, (*heads, weight), batch_size=at_once)
    return jax.tree.map(lambda x: x.reshape(*q.shape[:2], *x.shape[1:]), found)


def _read(q: Array, k: Array, v: Array, log_weight: Array | None, bias: Array | None = None) -> Array:
    """What the queries read, (B, H, Nq, D'), of operands with their heads first."""
    weights = _shifted_exp(_logits(q, k, log_weight, bias))
    out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    # Dividing the (Nq, D) output by the row sums instead of the (Nq, Nk) weights saves a pass over the larger array.
    return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)


def _read_and_received(q: Array, k: Array, v: Array, log_weight: Array | None) -> tuple[Array, Array]:
    """Likewise, and what the keys receive, (B, H, Nk): here the matrix is divided, since both are made of it."""
    weights = jax.nn.softmax(_logits(q, k, log_weight))
    out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype), weights.mean(axis=2)


def _heads_at_once(q: Array, k: Array) -> int | None:
    """How many heads, of any image, to take at a time so that their logits stay in the caches; None: all of them.

    Only on a single CPU device: a loop over images that are spread over devices would gather them, and accelerators
    have kernels of their own. Symbolic shapes, of an export, stay whole.
    """
    sizes = (*q.shape, *k.shape)
    if jax.default_backend() != "cpu" or jax.device_count() > 1 or not all(isinstance(size, int) for size in sizes):
        return None
    per_head = 4 * q.shape[2] * k.shape[2]
    if per_head < LARGE_HEAD or q.shape[0] * q.shape[1] * per_head <= LARGE_LOGITS:
        return None
    return max(1, LOGITS_PER_GROUP // per_head)


@piece
def attention_probabilities(q: Array, k: Array, *, log_weight: Array | None = None) -> Array:
    """The full softmax, float32 (B, H, Nq, Nk), for methods that read the whole matrix; arguments as `attention`."""
    weights = _shifted_exp(_logits(_heads_first(q), _heads_first(k), log_weight))
    return weights / weights.sum(-1, keepdims=True)


@piece
def weighted_values(weights: Array, v: Array) -> Array:
    """What each query reads: (B, H, Nq, Nk) weights of the values (B, Nk, H, D), as (B, Nq, H, D) in their dtype."""
    return _heads_first(jnp.matmul(weights.astype(v.dtype), _heads_first(v)))


def class_attention(q_row: Array, k: Array, *, log_weight: Array | None = None) -> Array:
    """The softmaxed row of one query, float32 (B, H, Nk).

    One query against all keys costs 1/N of the attention matrix, so a method that ranks patches by the class token's
    attention asks for this row and leaves the layer itself to whatever fused kernel is fastest.

    Args:
      q_row: (B, 1, H, D), the query of one token.
      k: (B, Nk, H, D).
      log_weight: None or float32 (B, Nk).
    """
    return attention_probabilities(q_row, k, log_weight=log_weight)[:, :, 0]


def policy_attention(
    q: Array, k: Array, v: Array, policy: Array, *, log_weight: Array | None = None, eps: float = 1e-6
) -> Array:
    """Attention under a multiplicative keep policy, as DynamicViT trains (Rao et al. 2021, section 3.3).

    e_ij = exp(a_ij - max_k a_ik) * G_ij with G_ij = policy_j, and 1 on the diagonal.
    Weights: (e_ij + eps/N) / (sum_k e_ik + eps).
    The maximum runs over all keys, dropped ones included.  The policy multiplies instead of adding its logarithm, so a
    hard zero keeps a finite gradient.

    Args:
      q, k, v: (B, N, H, D).
      policy: (B, N), 1 keeps and 0 drops a key; any float dtype.
      log_weight: None or float32 (B, N), added to the logits of key j for every query, itself included.
      eps: the smoothing of the published formula.

    Returns:
      (B, N, H, D) in the dtype of ``q``.
    """
    n = k.shape[1]
    q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
    logits = _logits(q, k, log_weight)
    keep = policy.astype(jnp.float32)[:, None, None, :]
    keep = keep + (1.0 - keep) * jnp.eye(n, dtype=jnp.float32)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True)) * keep
    weights = (weights + eps / n) / (weights.sum(-1, keepdims=True) + eps)
    out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _heads_first(out.astype(q.dtype))
