"""A transformer layer: its attention, with what methods ask to see of it, and its two residual branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.layers import DropPath, LayerNorm, LayerScale, Linear, Mlp
from slimvit_jax.ops import attention as attention_ops
from slimvit_jax.ops.rotary import Rotary
from slimvit_jax.plan import block_flops
from slimvit_jax.tokens import Tokens


class Attention(nn.Module):
    """Multi-head self-attention over the tokens, with what a method asks to see of it.

    Attributes:
      dim: D.
      num_heads: H; must divide D.
      qkv_bias: whether the projection to queries, keys and values has a bias.
      qk_norm: layer-normalise queries and keys per head (over D / H channels) before the product.
      eps: of those norms.
      backend: "auto", "xla" or "cudnn"; see `ops.attention.attention`.
      class_token: the first token is a class token; else "class_attention" is the attention that a token receives.
      rotary: turns queries and keys of the patches by their places; None for no rotary positions.
    """

    dim: int
    num_heads: int
    qkv_bias: bool = True
    qk_norm: bool = False
    proj_drop: float = 0.0
    eps: float = 1e-6
    dtype: Any = jnp.float32
    backend: str = "auto"
    class_token: bool = True
    rotary: Rotary | None = None

    def setup(self) -> None:
        self.qkv = Linear(3 * self.dim, use_bias=self.qkv_bias, dtype=self.dtype)
        if self.qk_norm:
            self.q_norm, self.k_norm = LayerNorm(self.eps, self.dtype), LayerNorm(self.eps, self.dtype)
        self.proj = Linear(self.dim, dtype=self.dtype)
        self.dropout = nn.Dropout(self.proj_drop)

    def __call__(
        self,
        y: Array,
        log_weight: Array | None,
        policy: Array | None,
        needs: Sequence[str],
        train: bool,
        positions: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the branch (B, M, D) and the probe, a dict with the entries named in `needs`.

        `positions` (B, n, 2) of the patches, for rotary positions. The probe's keys are those before norm and turn.
        """
        query, key, value = self.heads(y)
        probe = {"inputs": y, "keys": key, "values": value}
        query, key = self.placed(query, key, positions)
        receives = "received" in needs or ("class_attention" in needs and not self.class_token)
        if "attention" in needs:
            weights = attention_ops.attention_probabilities(query, key, log_weight=log_weight)
            probe |= {"attention": weights, "received": weights.mean(axis=2)}
        if policy is not None:
            out = attention_ops.policy_attention(query, key, value, policy, log_weight=log_weight)
        elif "attention" in needs:
            out = attention_ops.weighted_values(weights, value)
        elif receives:
            # A mean over all queries needs every logit: a fused kernel is done without in these layers, which are
            # those that the method ranks in.
            out, probe["received"] = attention_ops.attention_and_received(query, key, value, log_weight=log_weight)
        else:
            out = attention_ops.attention(query, key, value, log_weight=log_weight, backend=self.backend)
        if receives and "received" not in probe:
            probe["received"] = attention_ops.attention_and_received(query, key, value, log_weight=log_weight)[1]
        if "class_attention" in needs:
            # One extra query row, so that a fused attention kernel stays usable for everything else.
            probe["class_attention"] = (
                attention_ops.class_attention(query[:, :1], key, log_weight=log_weight)
                if self.class_token
                else probe["received"]
            )
        return self.project(out, train), {name: probe[name] for name in needs}

    def heads(self, y: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, (B, M, H, D / H) each."""
        return attention_ops.split_heads(self.qkv(y), self.num_heads)

    def part(self, y: Array, part: int) -> Array:
        """Queries (0), keys (1) or values (2) alone, (B, M, H, D / H)."""
        columns = slice(part * self.dim, (part + 1) * self.dim)
        return self.qkv(y, columns).reshape(*y.shape[:2], self.num_heads, self.dim // self.num_heads)

    def placed(self, query: Array, key: Array, positions: Array | None) -> tuple[Array, Array]:
        """Queries and keys as they meet: normalised, and turned by their positions (B, n, 2), where there are such."""
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rotary is None:
            return query, key
        if positions is None:
            raise SlimError("rotary positions: the tokens have no coordinates; the backbone sets Tokens.places")
        angles = self.rotary.angles(positions)
        return self.rotary.turn(query, angles), self.rotary.turn(key, angles)

    def probabilities(self, y: Array, log_weight: Array | None, positions: Array | None = None) -> Array:
        """(B, H, M, M) float32, the softmax alone; values are not computed."""
        query, key = self.placed(self.part(y, 0), self.part(y, 1), positions)
        return attention_ops.attention_probabilities(query, key, log_weight=log_weight)

    def values(self, y: Array) -> Array:
        """(B, M, H, D / H)."""
        return self.part(y, 2)

    def project(self, out: Array, train: bool) -> Array:
        """The branch (B, M, D) of what the heads have read, (B, M, H, D / H)."""
        branch: Array = self.dropout(self.proj(out.reshape(*out.shape[:2], self.dim)), deterministic=not train)
        return branch


class Block(nn.Module):
    """A pre-norm transformer layer, as its two residual branches.

    Attributes:
      mlp_ratio: hidden width of the MLP over D.
      init_values: initial LayerScale gain, None for none.
      drop_path: stochastic depth of both branches.
      residual_scale: both branches are divided by it (LV-ViT's skip_lam).
      activation, gated: of the MLP, see `Mlp`.
      class_token, rotary: of the attention, see there.
    """

    dim: int
    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: float | None = None
    proj_drop: float = 0.0
    drop_path: float = 0.0
    eps: float = 1e-6
    residual_scale: float = 1.0
    dtype: Any = jnp.float32
    backend: str = "auto"
    activation: str = "gelu"
    gated: bool = False
    class_token: bool = True
    rotary: Rotary | None = None

    def setup(self) -> None:
        self.norm1 = LayerNorm(self.eps, self.dtype)
        self.attn = self.attention()
        self.norm2 = LayerNorm(self.eps, self.dtype)
        self.mlp = self.feed_forward_module()
        if self.init_values is not None:
            self.layer_scales()
        self.stochastic_depth = DropPath(self.drop_path)

    @property
    def hidden(self) -> int:
        """Width inside the MLP, behind the gate where it is gated."""
        return int(self.dim * self.mlp_ratio)

    def flops(self, attention_tokens: int, mlp_tokens: int) -> int:
        """Multiply-adds on so many tokens in the attention and in the MLP; prefix tokens are among them."""
        gate = mlp_tokens * self.dim * self.hidden if self.gated else 0  # the product that the gate takes besides
        return block_flops(attention_tokens, mlp_tokens, self.dim, self.hidden) + gate

    def attention(self, kind: type[Attention] = Attention, **more: Any) -> nn.Module:
        """The module "attn", of this kind and with more options."""
        return kind(
            dim=self.dim,
            num_heads=self.num_heads,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            proj_drop=self.proj_drop,
            eps=self.eps,
            dtype=self.dtype,
            backend=self.backend,
            class_token=self.class_token,
            rotary=self.rotary,
            **more,
        )

    def layer_scales(self) -> None:
        """Makes the gains of the branches."""
        self.ls1, self.ls2 = LayerScale(self.init_values), LayerScale(self.init_values)  # type: ignore[arg-type]

    def gain(self, branch: Array, scale: str) -> Array:
        """A branch, "ls1" or "ls2", times its gains."""
        gained: Array = getattr(self, scale)(branch)
        return gained

    def feed_forward_module(self) -> nn.Module:
        """The module "mlp"."""
        return Mlp(self.hidden, self.dim, self.proj_drop, self.dtype, self.activation, self.gated)

    def attend(self, tokens: Tokens, needs: Sequence[str], train: bool) -> tuple[Tokens, dict[str, Array]]:
        """The tokens after the attention, its residual added, and the probe."""
        branch, probe = self.branch(tokens, needs, train)
        return tokens.add(branch), probe

    def branch(self, tokens: Tokens, needs: Sequence[str], train: bool) -> tuple[Array, dict[str, Array]]:
        """The attention branch (B, P + n, D), still to be added to the tokens, and the probe."""
        y = _masked(self.norm1(tokens.x), tokens.input_mask)
        branch, probe = self.attn(y, tokens.key_log_weight, tokens.policy, needs, train, tokens.positions)
        return self._scaled(branch, "ls1", train), probe

    def attention_map(self, tokens: Tokens) -> Array:
        """(B, H, P + n, P + n) float32: who looks at whom, softmaxed over the keys."""
        y = _masked(self.norm1(tokens.x), tokens.input_mask)
        probabilities: Array = self.attn.probabilities(y, tokens.key_log_weight, tokens.positions)
        return probabilities

    def attention_values(self, tokens: Tokens) -> Array:
        """(B, P + n, H, D / H): what there is to read at each token."""
        values: Array = self.attn.values(_masked(self.norm1(tokens.x), tokens.input_mask))
        return values

    def attention_branch(self, read: Array, train: bool) -> Array:
        """The attention branch (B, P + n, D) of what was read, (B, P + n, D), before the output projection."""
        return self._scaled(self.attn.project(read, train), "ls1", train)

    def feed_forward(self, tokens: Tokens, train: bool) -> Array:
        """The MLP branch (B, P + n, D), still to be added to the tokens."""
        branch = self.mlp(_masked(self.norm2(tokens.x), tokens.input_mask), train)
        return self._scaled(branch, "ls2", train)

    def _scaled(self, branch: Array, scale: str, train: bool) -> Array:
        if self.init_values is not None:
            branch = self.gain(branch, scale)
        branch = self.stochastic_depth(branch, train)
        return branch if self.residual_scale == 1.0 else branch / self.residual_scale


class RematBlock(Block):
    """The same layer and parameters; activations inside a branch are recomputed in the backward pass, not stored."""

    def branch(self, tokens: Tokens, needs: Sequence[str], train: bool) -> tuple[Array, dict[str, Array]]:
        return nn.remat(lambda block, tokens: Block.branch(block, tokens, needs, train))(self, tokens)

    def feed_forward(self, tokens: Tokens, train: bool) -> Array:
        return nn.remat(lambda block, tokens: Block.feed_forward(block, tokens, train))(self, tokens)


def _masked(y: Array, mask: Array | None) -> Array:
    return y if mask is None else y * mask[..., None].astype(y.dtype)
