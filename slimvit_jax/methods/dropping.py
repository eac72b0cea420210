"""What the methods share that drop patches: what becomes of the dropped."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from jax import Array

from slimvit_jax.errors import SlimError
from slimvit_jax.ops import select
from slimvit_jax.ops import squeeze as squeezing
from slimvit_jax.options import Positive, Range
from slimvit_jax.plan import Plan
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Tokens


class Dropping(Slimming, kw_only=True):
    """Dropped patches vanish, or are *squeezed*: each joins the survivor it is most similar to. They may *rejoin*.

    Similarity is the cosine of the patch tokens as they are at the drop, not normalised; prefix tokens take no part. A
    survivor keeps its place and its index in `aux.kept`. Training that really drops squeezes too; training that masks
    (DynamicViT, IA-RED2, life regression with `hard`) squeezes in the masked tokens what inference squeezes at that
    place, so that it sees what will be computed; where weights are soft nothing is gone and nothing is squeezed.
    Cost per drop: 2 n_kept n_dropped D.

    Rejoining is Cropr's last-layer fusion (Bergner et al. 2024) for any method: from one layer on all patches are
    computed again, in raster order, those that were dropped with the features they had then, or as `fill` says. Made-up
    tokens (EViT's fused one) end there, and so does all masking and weighing, in training too. `aux.kept` still says
    what was dropped. Cost: those layers compute all patches, which plan and FLOPs say.

    Attributes:
      squeeze: False: they vanish. True: TPS (Wei et al. 2023, "Joint Token Pruning and Squeezing"), the survivor
        becomes the average with weight e for itself and exp(cosine / squeeze_temperature) for each that joins. "mean":
        the average weighted by the number of patches that each stands for; these sizes are carried along, their
        logarithm is added to the attention logits of the keys (ToMe's proportional attention, on top of whatever weight
        the method gives a key), and average pooling weighs by them.
      squeeze_temperature: of squeeze=True.
      rejoin: 1-based layer in front of which the dropped come back, behind the last drop; None: never.
      fill: what a dropped patch has in `grid_features`, and with what it rejoins: "last", its features when it was
        dropped; "nearest", those of the survivor most similar to it then, with squeeze the one that it joined; "moved",
        its last ones and what that survivor has changed by since. None: "nearest" with squeeze, unless patches rejoin,
        else "last". The survivors cost N² D per drop, which FLOPs count where patches rejoin with it; else it is only
        paid where the features are asked for.
    """

    squeeze: bool | Literal["mean"] = False
    squeeze_temperature: Positive = 1.0
    rejoin: Annotated[int, Range(least=2)] | None = None
    fill: Literal["last", "nearest", "moved"] | None = None

    @property
    def grid_fill(self) -> str:
        return self.fill or ("nearest" if self.squeeze and self.rejoins_at is None else "last")

    def check_options(self) -> None:
        super().check_options()
        if self.squeeze_temperature != 1.0 and self.squeeze is not True:
            raise SlimError(
                f"squeeze_temperature={self.squeeze_temperature} is of squeeze=True; squeeze={self.squeeze!r} has none"
            )

    def check_plan(self) -> None:
        super().check_plan()
        back, depth = self.rejoins_at, self.bound.depth
        if back is None:
            return
        last = self.dropping_plan.last_drop
        if not last < back <= depth:
            room = f"must lie in {last + 1}..{depth}" if last + 1 < depth else f"must be {depth}"
            room = room if last < depth else "cannot be had with these drops"
            raise SlimError(f"rejoin={back} {room}: method {self.method!r} still drops patches at layer {last}")

    @property
    def rejoins_at(self) -> int | None:
        return self.rejoin

    @property
    def dropping_plan(self) -> Plan:
        """The plan as if nobody came back."""
        return super().plan

    @property
    def plan(self) -> Plan:
        plan, back = self.dropping_plan, self.rejoins_at
        return plan if back is None else plan.full_from(back, self.bound.num_patches)

    def has_rejoined(self, layer: int) -> bool:
        """Whether all patches are back in this layer."""
        return self.rejoins_at is not None and layer >= self.rejoins_at

    def drop(self, tokens: Tokens, left: int, scores: Array | None = None) -> Tokens:
        """The `left` patches of highest score in descending order; without scores the first `left`, as they are held.

        Args:
          tokens: with n patches.
          left: how many stay, 1..n.
          scores: (B, n).
        """
        if self.squeeze is False or left == tokens.n:
            return tokens.first(left) if scores is None else tokens.take(select.top(scores, left))
        everyone = tokens if scores is None else tokens.take(select.top(scores, tokens.n))
        return self._squeezed(everyone.first(left), everyone, slice(left, None))

    def absorb(self, hosts: Tokens, tokens: Tokens, leaving: Array, staying: Array | None = None) -> Tokens:
        """`hosts` after they took in those of `tokens` that leave, where masks decide that.

        Args:
          hosts: the tokens that go on; may be the very rows of `tokens`.
          tokens: as before the drop, n patches.
          leaving: (B, n) float32, 1 for a patch that is dropped here, else 0.
          staying: (B, n of the hosts), 1 for a row that goes on, 0 for one that is masked; None: all go on.
        """
        if self.squeeze is False:
            return hosts
        return self._squeezed(hosts, tokens, slice(None), leaving, staying)

    def _squeezed(
        self,
        hosts: Tokens,
        tokens: Tokens,
        rows: slice,
        leaving: Array | None = None,
        staying: Array | None = None,
    ) -> Tokens:
        guests = tokens.patches[:, rows]
        if self.squeeze is True:
            patches = squeezing.squeeze_exponential(hosts.patches, guests, self.squeeze_temperature, staying, leaving)
            return hosts.with_patches(patches, hosts.origin)
        guest_size = tokens.patch_sizes[:, rows]
        guest_size = guest_size if leaving is None else guest_size * leaving
        patches, size = squeezing.squeeze_mean(hosts.patches, guests, hosts.patch_sizes, guest_size, staying)
        return hosts.with_patches(patches, hosts.origin).replace(size=hosts.per_token(size, 1.0))

    def with_rejoin_flops(self, costs: dict[int, int]) -> dict[int, int]:
        """`costs` by layer, with what it takes to find the survivors whose features rejoining patches have."""
        back, plan = self.rejoins_at, self.dropping_plan
        if back is None or self.grid_fill == "last":
            return costs
        drops = sum(after < before for before, after in itertools.pairwise(plan.halves))
        return {**costs, back: costs.get(back, 0) + drops * self.bound.num_patches**2 * self.bound.dim}

    def with_squeeze_flops(self, costs: dict[int, int]) -> dict[int, int]:
        """`costs` by layer, with what squeezing adds wherever the plan drops; between layers, to the layer before."""
        costs = self.with_rejoin_flops(costs)
        if self.squeeze is False:
            return costs
        costs, n = dict(costs), self.bound.num_patches
        for layer, (attention, mlp) in enumerate(zip(self.plan.attention, self.plan.mlp, strict=True), start=1):
            for after, place in ((attention, max(1, layer - 1)), (mlp, layer)):
                if after < n:
                    more = squeezing.squeeze_flops(after, n - after, self.bound.dim)
                    costs[place] = costs.get(place, 0) + more
                n = after
        return costs
