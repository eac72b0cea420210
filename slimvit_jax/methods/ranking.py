"""What the methods that rank patches share."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from slimvit_jax.errors import SlimError
from slimvit_jax.ops import select
from slimvit_jax.plan import absolute_counts, check_keep_rate
from slimvit_jax.tokens import Tokens

Array = jax.Array


def ranking(tokens: Tokens, own: Array) -> Array:
    """(B, n) scores to rank the patch tokens by: the imposed ones where there are any, else the method's `own`.

    Imposed scores (`model.apply(..., scores=)`) belong to patches; a fused token keeps the method's score.
    """
    given = tokens.memory.get("given_scores")
    if given is None:
        return own
    imposed = select.gather(given, jnp.maximum(tokens.origin, 0))
    return jnp.where(tokens.origin >= 0, imposed, own.astype(imposed.dtype))


def check_token_ratio(token_ratio: object, locations: Sequence[int]) -> tuple[float, ...]:
    """One share of the original patches per location, each in (0, 1], never growing.

    Raises:
      SlimError: for anything else.
    """
    try:
        if not isinstance(token_ratio, (tuple, list)):
            raise SlimError("not a tuple")
        ratios = check_keep_rate(token_ratio, tuple(locations))
    except SlimError:
        raise SlimError(
            f"token_ratio={token_ratio!r} must hold one share in (0, 1] of the original patches for each of the"
            f" {len(locations)} locations {tuple(locations)}"
        ) from None
    if any(b > a for a, b in zip(ratios, ratios[1:], strict=False)):
        raise SlimError(f"token_ratio={ratios} must not grow: dropped patches do not come back")
    return ratios


def cumulative_shares(
    keep_rate: float | tuple[float, ...], token_ratio: tuple[float, ...] | None, locations: Sequence[int]
) -> tuple[float, ...]:
    """The share of the original patches left at each location; keep rates multiply up, token ratios are it already."""
    if token_ratio is not None:
        return check_token_ratio(token_ratio, locations)
    shares: list[float] = []
    rates = check_keep_rate(keep_rate, tuple(locations))
    for k, rate in enumerate(rates, start=1):
        same = len(set(rates[:k])) == 1
        shares.append(rate**k if same else shares[-1] * rate)
    return tuple(shares)


def counts_of_the_grid(
    num_patches: int,
    keep_rate: float | tuple[float, ...],
    token_ratio: tuple[float, ...] | None,
    locations: Sequence[int],
) -> tuple[int, ...]:
    """int(share * N), at least 1, per location.

    >>> counts_of_the_grid(196, 0.7, None, (4, 7, 10))
    (137, 96, 67)
    >>> counts_of_the_grid(196, 0.7, (0.7, 0.49, 0.343), (4, 7, 10))
    (137, 96, 67)
    """
    if token_ratio is None:
        return absolute_counts(num_patches, check_keep_rate(keep_rate, tuple(locations)))
    return tuple(max(1, int(num_patches * ratio)) for ratio in check_token_ratio(token_ratio, locations))
