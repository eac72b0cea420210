"""What the methods share that leave a share of the patches at chosen layers."""

from __future__ import annotations

from slimvit_jax.plan import Geometry, check_keep_rate, check_locations
from slimvit_jax.slimming import Slimming


class Located(Slimming, kw_only=True):
    """Keeps a share of the patches at each of some layers; how, and where in the layer, is the subclass's.

    Attributes:
      keep_rate: share left at each location of what the location before left; a float or one per location.
      locations: 1-based layers, ascending.
    """

    keep_rate: float | tuple[float, ...] = 0.7
    locations: tuple[int, ...] = (4, 7, 10)

    def check_options(self) -> None:
        check_keep_rate(self.keep_rate, check_locations(self.locations))

    def check_geometry(self, geometry: Geometry) -> None:
        super().check_geometry(geometry)
        check_locations(self.locations, geometry.depth)
