"""Plans: keep rates become the token counts that the papers' tables imply, and bad ones are refused."""

import pytest

import slimvit_jax as slim
from slimvit_jax.plan import Geometry, Plan, check_budgets, check_keep_rate, check_locations
from slimvit_jax.plan import shrinking_counts as shrinking

GEOMETRY = Geometry(grid=(14, 14), depth=12, dim=384, heads=6)


def test_counts_of_the_paper():
    assert shrinking(196, (0.7,) * 3) == (138, 97, 68)


@pytest.mark.parametrize(
    ("where", "attention", "mlp"),
    [
        ("before", (9, 5, 5, 2), (9, 5, 5, 2)),
        ("inside", (9, 9, 5, 5), (9, 5, 5, 2)),
        ("after", (9, 9, 5, 5), (9, 9, 5, 5)),
    ],
)
def test_where_a_drop_takes_effect(where, attention, mlp):
    geometry = Geometry(grid=(3, 3), depth=4, dim=8, heads=2)
    assert Plan.drop(geometry, (2, 4), (5, 2), where) == Plan(attention, mlp)


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, "0.7", None, True, float("nan"), (0.7, 0.0, 0.5)])
def test_keep_rates_outside_0_1_are_refused(rate):
    with pytest.raises(slim.SlimError, match=r"keep_rate=.*\(0, 1\]"):
        check_keep_rate(rate, (4, 7, 10))


def test_as_many_rates_as_locations():
    with pytest.raises(slim.SlimError, match="2 rates for 3 locations"):
        check_keep_rate((0.7, 0.5), (4, 7, 10))


@pytest.mark.parametrize("locations", [(), (4, 4), (7, 4), (0, 3), (4, 13), (4.5,), "4", (True,)])
def test_bad_locations_are_refused(locations):
    with pytest.raises(slim.SlimError, match="locations="):
        check_locations(locations, 12)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ((196,) * 11, "11 entries for 12 layers"),
        ((196,) * 4 + (100,) * 4 + (101,) * 4, "must not grow: layer 8 has 100 patches, layer 9 has 101"),
        ((190,) * 12, "must begin with the 196 patches"),
        ((196,) * 11 + (0,), "at least 1"),
    ],
)
def test_bad_budgets_are_refused(budgets, message):
    with pytest.raises(slim.SlimError, match=message):
        check_budgets(budgets, GEOMETRY)
