"""What the methods share that leave a share of the patches at chosen layers."""

from __future__ import annotations

from typing import ClassVar

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
    def plan(self) -> Plan:
        return self.schedule.plan(self.bound)

    def check_options(self) -> None:
        super().check_options()
        _ = self.schedule  # raises

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        self.schedule.plan(geometry)
