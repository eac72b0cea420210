"""Dense features: every patch back on the grid after every method, dropped patches that rejoin, chosen layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_variables

import slimvit_jax as slim
from slimvit_jax.errors import SlimError
from slimvit_jax.methods import METHODS
from slimvit_jax.methods.dropping import Dropping
from slimvit_jax.plan import Plan

#: 5 x 3 patches, so that rows and columns cannot be confused.
TINY = dict(img_size=(20, 12), patch_size=4, embed_dim=32, depth=5, num_heads=2, num_classes=5)
IMAGES = np.random.default_rng(3).normal(size=(2, 20, 12, 3)).astype(np.float32)
DROPPING = [name for name, cls in METHODS.items() if issubclass(cls, Dropping) and name != "cropr"]
#: What keeps everything, and what reduces, where that is no keep rate.
KEEP_ALL = {"cropr": {"pruning_rate": 0}, "tome": {"r": 0}, "dtem": {"r": 0}, "mctf": {"r": 0}}
REDUCE = {
    "avit": {"budgets": (15, 15, 9, 9, 5), "gate_center": 3.0},
    "cropr": {"pruning_rate": 3, "llf": False},
    "dtem": {"r": 3},
    "mctf": {"r": 3},
    "tome": {"r": 3},
}


@functools.cache
def built(method, family="vit", keep_rate=0.5, **options):
    fields = METHODS[method].__dataclass_fields__ if method else {}
    own = (KEEP_ALL if keep_rate == 1.0 else REDUCE).get(method, {})
    given = {k: v for k, v in dict(keep_rate=keep_rate, locations=(2, 3)).items() if k in fields and not own}
    model = slim.create_model(family, method=method, **TINY, **{**given, **own, **options})
    return model, random_variables(model)


def applied(model, variables, **options):
    apply = jax.jit(lambda v, x: model.apply(v, x, return_aux=True, **options))
    return apply(variables, IMAGES)


@pytest.mark.parametrize("method", slim.list_methods())
def test_every_method_gives_the_whole_grid(method):
    model, variables = built(method, family="deit_distilled")
    _, aux = applied(model, variables)
    grid = slim.grid_features(model, aux)
    assert grid.shape == (2, 5, 3, 32) and np.isfinite(grid).all()
    flat = np.asarray(grid).reshape(2, 15, 32)
    if not model.slim.merges and aux.features.shape[1] - 2 < 15:
        last = np.asarray(aux.kept[-1])
        for image, row in enumerate(last):  # every kept token lies on its patch
            for place, patch in enumerate(row):
                if patch >= 0:
                    np.testing.assert_allclose(flat[image, patch], aux.features[image, 2 + place], rtol=0, atol=1e-6)
        gone = [sorted(set(range(15)) - set(row.tolist())) for row in last]
        held = np.asarray(aux.features[:, 2:])
        for image, patches in enumerate(gone):
            for patch in patches:
                assert not (held[image] == flat[image, patch]).all(axis=1).any()  # its own last features
    if method in ("tome", "mctf", "dpcknn", "dtem", "atc"):  # copies of the tokens held, each at least once
        for image in range(2):
            tokens = {row.tobytes() for row in np.asarray(aux.features[image, 2:])}
            assert {row.tobytes() for row in flat[image]} == tokens and len(tokens) < 15


@pytest.mark.parametrize("method", [m for m in slim.list_methods() if METHODS[m].keep_all_is_dense and m != "dpcknn"])
def test_with_everything_kept_it_is_the_dense_model_bit_for_bit(method):
    model, variables = built(method, keep_rate=1.0)
    dense, _ = built(None)
    backbone = {"params": {k: v for k, v in variables["params"].items() if k != "slim"}}
    _, aux = applied(model, variables)
    _, reference = applied(dense, backbone)
    np.testing.assert_array_equal(slim.grid_features(model, aux), reference.features[:, 1:].reshape(2, 5, 3, 32))


def test_a_dropped_patch_has_its_features_of_the_moment():
    """The dense model's tokens after layer 2, normalised: that is where random drops the first patches."""
    model, variables = built("random")
    dense, _ = built(None)
    _, aux = applied(model, variables)
    _, reference = applied(dense, variables, record_tokens=True)
    gone = sorted(set(range(15)) - set(np.asarray(aux.kept[0])[0].tolist()))
    grid = np.asarray(slim.grid_features(model, aux)).reshape(2, 15, 32)
    after, last = (np.asarray(g).reshape(2, 15, 32) for g in slim.grid_features(dense, reference, layers=(2, 5)))
    np.testing.assert_allclose(grid[0, gone], after[0, gone], atol=1e-5)
    assert np.abs(grid[0, gone] - last[0, gone]).max() > 1e-2
    norm = lambda x: dense.apply(variables, jnp.asarray(x), method=lambda m, x: m.classifier.norm(x))
    np.testing.assert_allclose(norm(reference.taps["tokens"][1]), after, atol=1e-5)


@pytest.mark.parametrize("options", [{"fill": "nearest"}, {"squeeze": True}], ids=["filled", "squeezed"])
def test_a_dropped_patch_has_what_its_most_similar_survivor_has(options):
    """Also where that one is dropped later; similar by the dense model's tokens after layer 2, the first drop."""
    model, variables = built("random", **options)
    dense, _ = built(None)
    _, aux = applied(model, variables)
    _, reference = applied(dense, variables, record_tokens=True)
    grid = np.asarray(slim.grid_features(model, aux)).reshape(2, 15, 32)
    first, last = (np.asarray(kept) for kept in (aux.kept[0], aux.kept[-1]))
    assert first.shape[1] > last.shape[1]
    for image in range(2):
        np.testing.assert_allclose(grid[image, last[image]], aux.features[image, 1:], atol=1e-5)
        then = np.asarray(reference.taps["tokens"][1][image])
        then = then / np.linalg.norm(then, axis=1, keepdims=True)
        for patch in set(range(15)) - set(first[image].tolist()):
            host = first[image][(then[first[image]] @ then[patch]).argmax()]
            np.testing.assert_allclose(grid[image, patch], grid[image, host], atol=1e-5)


def test_a_dropped_patch_moves_as_its_most_similar_survivor_does():
    rejoined, plain = (slim.flops(built("random", rejoin=5, **more)[0]) for more in ({"fill": "moved"}, {}))
    assert rejoined.per_layer[4] - plain.per_layer[4] == 2 * 15 * 15 * 32  # two drops
    model, variables = built("random", locations=(2,), fill="moved")
    _, aux = applied(model, variables, record_tokens=True)
    grid = np.asarray(slim.grid_features(model, aux)).reshape(2, 15, 32)
    _, reference = applied(built(None)[0], variables, record_tokens=True)
    then, last, kept = (np.asarray(x[0]) for x in (reference.taps["tokens"][1], aux.taps["tokens"][4], aux.kept[0]))
    norm = lambda x: np.asarray(model.apply(variables, jnp.asarray(x), method=lambda m, x: m.classifier.norm(x)))
    unit = then / np.linalg.norm(then, axis=1, keepdims=True)
    for patch in set(range(15)) - set(kept.tolist()):
        place = (unit[kept] @ unit[patch]).argmax()
        expected = then[patch] + last[place] - then[kept[place]]
        np.testing.assert_allclose(grid[0, patch], norm(expected), atol=1e-5)


@pytest.mark.parametrize("method", ["evit", "tome", "sinkhorn", "evo"])
def test_chosen_layers(method):
    model, variables = built(method)
    _, aux = applied(model, variables, record_tokens=(5, 1))
    first, last = slim.grid_features(model, aux, layers=(1, 5))
    np.testing.assert_array_equal(last, slim.grid_features(model, aux))
    assert first.shape == last.shape == (2, 5, 3, 32) and "tokens" not in aux.taps
    with pytest.raises(SlimError, match=r"layers \(2,\) were not recorded; apply the model with record_tokens"):
        slim.grid_features(model, aux, layers=(1, 2))
    with pytest.raises(SlimError, match=r"layers=\(6,\) must lie in 1..5"):
        slim.grid_features(model, aux, layers=(6,))
    with pytest.raises(SlimError, match="record_tokens"):
        model.apply(variables, IMAGES, return_aux=True, record_tokens=(0,))


def test_what_is_no_list_of_layers():
    model, variables = built("evit")
    logits, aux = applied(model, variables, record_tokens={2, 4})
    assert sorted(aux.layer_grids) == [2, 4]
    got = [slim.grid_features(model, aux, layers) for layers in (range(2, 5, 2), [2, 4], np.array([2, 4]))]
    for grids in got[1:]:
        jax.tree.map(np.testing.assert_array_equal, grids, got[0])
    for wrong in (2, (2.0,), ("2",), "24", (True,), (None,), (jnp.int32(2),), float("nan"), {2: 4}):
        with pytest.raises(SlimError, match="layers=.* must be a tuple, each entry of which must be a whole number$"):
            slim.grid_features(model, aux, wrong)
        with pytest.raises(SlimError, match="record_tokens=.* must be a tuple, each entry of"):
            model.apply(variables, IMAGES, return_aux=True, record_tokens=wrong)
    for pair in ((model, None), (model, (logits, aux)), (aux, model), (None, aux), (model, logits)):
        with pytest.raises(SlimError, match=r"^grid_features\(.*\): wanted are a model"):
            slim.grid_features(*pair)


@pytest.mark.parametrize("method", DROPPING)
def test_dropped_patches_rejoin(method):
    model, variables = built(method, rejoin=5)
    one, _ = built(method)
    assert model.slim.plan.mlp[:4] == one.slim.plan.mlp[:4] and model.slim.plan.mlp[4] == 15
    more = slim.flops(model).per_layer[4] - slim.flops(one).per_layer[4]
    dense = slim.flops(slim.create_model("vit", **TINY)).per_layer[4]
    assert slim.flops(model).per_layer[4] == dense and more > 0
    # what enters the last layer is what the slimmed model had left of every patch in front of it
    logits, aux = applied(model, variables, record_tokens=(4,))
    _, before = applied(one, variables, record_tokens=(4,))
    np.testing.assert_allclose(aux.layer_grids[4], before.layer_grids[4], atol=1e-5)
    assert aux.token_counts[4] == 15 and np.isfinite(logits).all()
    assert [k.shape for k in aux.kept] == [k.shape for k in before.kept]
    np.testing.assert_array_equal(slim.grid_features(model, aux).reshape(2, 15, 32), aux.features[:, 1:])


def test_rejoining_by_hand():
    """Random drops after layer 2: layer 4 gets the survivors as of layer 3, and the others as of layer 2."""
    model, variables = built("random", rejoin=4, locations=(2,))
    _, aux = applied(model, variables, record_tokens=True)
    dense, _ = built(None)
    _, reference = applied(dense, variables, record_tokens=True)
    expected = np.array(reference.taps["tokens"][1][0])
    expected[np.asarray(aux.kept[0][0])] = aux.taps["tokens"][2][0]
    norm = lambda x: np.asarray(model.apply(variables, jnp.asarray(x), method=lambda m, x: m.classifier.norm(x)))
    np.testing.assert_allclose(aux.layer_grids[3][0], norm(expected), atol=1e-5)
    assert aux.taps["tokens"][2].shape == (2, 8, 32) and aux.taps["tokens"][3].shape == (2, 15, 32)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "topk", "rejoin": 3}, "rejoin=3 must lie in 4..5: method 'topk' still drops patches at layer 3"),
        ({"method": "random", "rejoin": 4}, "rejoin=4 must be 5"),
        ({"method": "random", "locations": (4,), "rejoin": 5}, "rejoin=5 cannot be had"),
        ({"method": "evit", "rejoin": 6}, "rejoin=6 must lie in 4..5"),
        ({"method": "evit", "rejoin": True}, "rejoin=True"),
        ({"method": "evit", "fill": "first"}, "unknown fill 'first'; choices: None, last, moved, nearest"),
        ({"method": "tome", "locations": None, "fill": "last"}, "fill is for methods that only drop patches"),
    ],
)
def test_bad_rejoining(options, words):
    with pytest.raises(SlimError, match=words):
        options = {"locations": (2, 3), **options}
        slim.create_model("vit", **TINY, **{k: v for k, v in options.items() if v is not None})


def test_last_drop_of_a_plan():
    assert Plan((9, 9, 9), (9, 9, 9)).last_drop == 0
    assert Plan((9, 9, 4), (9, 9, 4)).last_drop == 3  # before layer 3
    assert Plan((9, 9, 4), (9, 4, 4)).last_drop == 2  # inside layer 2
    assert Plan((9, 9, 4, 4), (9, 4, 4, 4)).full_from(4, 9) == Plan((9, 9, 4, 9), (9, 4, 4, 9))


def test_backbones_that_subsample_their_grid():
    model = slim.create_model(
        "levit", img_size=(64, 96), embed_dim=(16, 24), depth=(1, 1), num_heads=(2, 3), key_dim=8, num_classes=5
    )
    images = jnp.zeros((1, 64, 96, 3))
    run = lambda v: model.apply(v, images, return_aux=True, record_tokens=(1,))[1]
    aux = jax.eval_shape(run, jax.eval_shape(model.init, jax.random.key(0), images))
    grids = jax.eval_shape(lambda aux: (slim.grid_features(model, aux), *slim.grid_features(model, aux, (1,))), aux)
    assert [grid.shape for grid in grids] == [(1, 2, 3, 24), (1, 4, 6, 16)]
