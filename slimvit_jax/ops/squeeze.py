"""Token pruning and squeezing (TPS, Wei et al. 2023): what is dropped joins its most similar survivor.

Two kinds of tokens: *hosts* stay, *guests* go, each into the host of greatest cosine similarity. Either the guests are
other rows than the hosts (they really go), or both are the same rows and masks say which is which (masked training).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax.ops.elementwise import unit
from slimvit_jax.ops.merge import membership
from slimvit_jax.ops.select import first_highest

NOWHERE = -2.0  # in place of the cosine with a row that is no host: below any cosine


def nearest_host(hosts: Array, guests: Array, staying: Array | None = None) -> tuple[Array, Array]:
    """The host most similar to every guest; of equally similar ones the first.

    Args:
      hosts: (B, k, D).
      guests: (B, m, D).
      staying: (B, k), above 0.5 where the row really is a host; None for all.

    Returns:
      (B, m) int32 positions among the hosts, and (B, m) float32 cosines.
    """
    similarity = jnp.einsum("bmd,bkd->bmk", unit(guests), unit(hosts), preferred_element_type=jnp.float32)
    if staying is not None:
        similarity = jnp.where(staying[:, None] > 0.5, similarity, NOWHERE)
    return first_highest(similarity, axis=2)


def squeeze_exponential(
    hosts: Array,
    guests: Array,
    temperature: float = 1.0,
    staying: Array | None = None,
    leaving: Array | None = None,
) -> Array:
    """TPS's fusion: x <- (e x + sum_i exp(c_i / temperature) y_i) / (e + sum_i exp(c_i / temperature)).

    The sums run over the guests y_i of the host x, c_i is their cosine with it. Equal to the release (TPSModule), but a
    common factor is taken out so that no temperature overflows, and of equally similar hosts only the first gets a
    guest.

    Args:
      hosts: (B, k, D).
      guests: (B, m, D).
      temperature: divides the cosines; the host's own weight stays e, as released.
      staying: (B, k), 1 where the row really is a host, 0 where not; None for all. Rows that are none may change.
      leaving: (B, m), likewise for the guests; a guest of 0 goes nowhere. Gradients flow into it.

    Returns:
      (B, k, D) in the dtype of `hosts`. A host without guests is unchanged.
    """
    host, cosine = nearest_host(hosts, guests, staying)
    exponent = jnp.where(membership(host, hosts.shape[1]) > 0, (cosine / temperature)[:, None], -jnp.inf)  # (B, k, m)
    highest = jax.lax.stop_gradient(jnp.maximum(exponent.max(axis=-1, keepdims=True), 1.0))
    weights = jnp.exp(exponent - highest)
    if leaving is not None:
        weights = weights * leaving[:, None].astype(jnp.float32)
    return _weighted(hosts, guests, jnp.exp(1.0 - highest), weights)


def squeeze_mean(
    hosts: Array,
    guests: Array,
    host_size: Array,
    guest_size: Array,
    staying: Array | None = None,
) -> tuple[Array, Array]:
    """The mean of every host and its guests, weighted by how many patches each stands for (ToMe's average).

    Args:
      hosts: (B, k, D).
      guests: (B, m, D).
      host_size: (B, k) float32.
      guest_size: (B, m) float32; 0 for a guest that goes nowhere. Gradients flow into it.
      staying: as of `squeeze_exponential`.

    Returns:
      (B, k, D) in the dtype of `hosts`, and the hosts' new sizes (B, k) float32.
    """
    host, _ = nearest_host(hosts, guests, staying)
    weights = membership(host, hosts.shape[1]).astype(jnp.float32) * guest_size[:, None]
    return _weighted(hosts, guests, host_size[..., None], weights), host_size + weights.sum(axis=-1)


def _weighted(hosts: Array, guests: Array, own: Array, weights: Array) -> Array:
    """(own x + weights @ guests) / (own + sum of weights), for own (B, k, 1) and weights (B, k, m)."""
    total = own + weights.sum(axis=-1, keepdims=True)
    # Shares first: a host without guests has the share 1 exactly and passes through unchanged.
    arrivals = jnp.einsum(
        "bkm,bmd->bkd", (weights / total).astype(guests.dtype), guests, preferred_element_type=jnp.float32
    )
    return (hosts.astype(jnp.float32) * (own / total) + arrivals).astype(hosts.dtype)


def squeeze_flops(hosts: int, guests: int, dim: int) -> int:
    """Multiply-adds of either: the similarities and the sums."""
    return 2 * hosts * guests * dim
