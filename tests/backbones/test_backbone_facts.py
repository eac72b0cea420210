"""Every backbone by the table: what its class declares of it is so, and the encoder checks its plan."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import slimvit_jax as slim
from slimvit_jax.backbones import FAMILIES
from slimvit_jax.backbones.base import Backbone
from slimvit_jax.convert import describe, rules
from slimvit_jax.plan import Plan
from slimvit_jax.training.optim import decay_mask, flat, group_of

families = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def model_of(family):
    return slim.create_model(family, **FAMILIES[family][0].tiny())


@functools.cache
def shapes_of(family):
    model = model_of(family)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.img_size, model.in_chans)))


@families
def test_every_parameter_is_of_one_group_and_every_layer_has_some(family):
    model, paths = model_of(family), flat(shapes_of(family)["params"])
    groups = model.layer_groups
    assert len(groups) == 1 + model.geometry.depth
    for path in paths:
        assert sum(re.fullmatch(group, path) is not None for group in groups) <= 1, path
    found = {path: group_of(path, groups) for path in paths}
    assert set(found.values()) == set(range(len(groups) + 1))
    assert {path.split("/")[0] for path, place in found.items() if place == len(groups)} <= {
        *("norm", "fc_norm", "attn_pool", "head", "head_dist", "aux_head", "head_cls", "head_cls_dist")
    }


@families
def test_what_decays_are_the_matrices(family):
    params = shapes_of(family)["params"]
    decays = flat(decay_mask(params, model_of(family).no_weight_decay))
    assert {path for path, decayed in decays.items() if decayed} == {p for p in flat(params) if p.endswith("/kernel")}


@families
def test_it_is_known_by_its_weights(family):
    model = model_of(family)
    if "seen_in" not in {name for cls in type(model).__mro__ if cls is not Backbone for name in vars(cls)}:
        return  # it need not be
    found = describe.facts({name: leaf.torch_shape for name, leaf in rules.expected(model).items()})
    assert found["family"] in FAMILIES and issubclass(FAMILIES[family][0], FAMILIES[found["family"]][0])
    sizes = {key: value for key, value in found.items() if key not in ("kind", "family")}
    assert {"embed_dim", "depth"} <= sizes.keys()
    for key, value in sizes.items():
        own = getattr(model, key)
        assert value == (own[0] if key == "patch_size" else own), key


@families
def test_the_encoder_checks_its_plan(family):
    class Liar(slim.Slimming):
        method = "liar"
        runs_on_pyramids = True

        @property
        def plan(self):
            dense = self.bound.dense_plan
            return Plan(dense.attention, (*dense.mlp[:-1], dense.mlp[-1] - 1))

    model = slim.create_model(family, Liar(), **FAMILIES[family][0].tiny())
    images = jnp.zeros((1, *model.img_size, 3))
    with pytest.raises(
        slim.SlimError, match=f"'liar' holds .* at the MLP of layer {model.geometry.depth}, but its plan"
    ):
        jax.eval_shape(model.init, jax.random.key(0), images)


@families
def test_batch_norms_have_the_partners_that_it_names(family):
    model, shapes = model_of(family), shapes_of(family)
    norms = {path.rpartition("/")[0] for path in flat(shapes.get("batch_stats", {}))}
    assert bool(norms) == bool(model.fuse_partners)
    for norm in norms:
        folder, _, name = norm.rpartition("/")
        (partner,) = (re.sub(own, other, name) for own, other in model.fuse_partners.items() if re.fullmatch(own, name))
        assert f"{folder}/{partner}/kernel" in flat(shapes["params"]), norm
