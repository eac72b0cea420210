"""What the methods share that leave a share of the patches at chosen layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from slimvit_jax.options import Share
from slimvit_jax.plan import Geometry, Plan, Schedule
from slimvit_jax.slimming import Slimming


class Located(Slimming, kw_only=True):
    """Keeps a share of the patches at each of some layers; how, and where in the layer, is the subclass's.

    Attributes:
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers, ascending.
    """

    #: See `Schedule`.
    where: ClassVar[str] = "inside"
    of: ClassVar[str] = "grid"

    keep_rate: Share | tuple[Share, ...] = 0.7
    locations: tuple[int, ...] = (4, 7, 10)

    @property
    def schedule(self) -> Schedule:
        """What is left where."""
        return Schedule(self.keep_rate, self.locations, self.where, self.of)

    @property
    def counts(self) -> tuple[int, ...]:
        """Patch tokens left at every location."""
        return self.schedule.counts(self.bound.num_patches)

    @property
    def before_and_after(self) -> dict[int, tuple[int, int]]:
        """Location to (patch tokens before, patch tokens after)."""
        pairs = zip((self.bound.num_patches, *self.counts), self.counts, strict=False)
        return dict(zip(self.schedule.locations, pairs, strict=True))

    @property
    def plan(self) -> Plan:
        return self.schedule.plan(self.bound)

    def check_options(self) -> None:
        super().check_options()
        _ = self.schedule  # raises

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        self.schedule.plan(geometry)

    @property
    def learns_places(self) -> bool:
        """Whether every location has parameters of its own, so that trained weights cannot drop elsewhere."""
        return False

    def at_counts(self, counts: Sequence[int]) -> dict[str, Any] | None:
        if not self.any_budget:
            return None
        drops, before = {}, self.bound.num_patches
        for layer, after in enumerate(counts, start=1):
            if after < before or (self.learns_places and layer + self._shift in self.locations):
                drops[layer + self._shift] = self.rate_for(before, after)
                before = after
        others = {name: None for name in self.in_place_of_keep_rate if getattr(self, name) is not None}
        where = {"locations": tuple(drops), "keep_rate": tuple(drops.values())} if drops else {"keep_rate": 1.0}
        return {**others, **where}

    def rate_for(self, before: int, after: int) -> float:
        """The keep rate of a location that makes `after` patches of `before`, in the middle of those that do."""
        rate = (after - 0.5) / before if self.of == "left" else (after + 0.5) / (before + 0.5)
        return 1.0 if after == before else round(rate, 6)

    @property
    def _shift(self) -> int:
        """From the layer that leaves few patches to the location: what drops before a layer drops behind the last."""
        return int(self.where == "before")

    def fewest(self, layer: int, patches: int) -> int:
        last = layer == self.bound.depth and self.where != "inside"  # nothing is computed behind it
        fixed = self.learns_places and layer + self._shift not in self.locations
        return patches if last or fixed or not self.any_budget else 1
