"""Every option of every backbone and method is of the kind that its annotation says, and has one owner."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slimvit_jax as slim
from slimvit_jax.build import FAMILIES, option_kinds
from slimvit_jax.methods import METHODS
from slimvit_jax.options import REFUSALS, Count, Pair, Range, Share, Text, kind_of, kinds_of

OWNERS = {name: cls for name, (cls, _) in FAMILIES.items()} | METHODS
OPTIONS = [(owner, option) for owner, cls in OWNERS.items() for option in kinds_of(cls)]
#: Whatever an option takes, it is none of these.
NONSENSE = [object(), {"a": 1}, {1, 2}, b"1", 1j, lambda: None]
HOSTILE = ["abc", "false", True, False, math.nan, math.inf, -math.inf, -1, 1.5, 10**400, None, (), (math.nan,), ("a",)]
TINY = dict(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def accepts(kind, value):
    try:
        kind.read(value)
    except REFUSALS:
        return False
    return True


def make(owner, **options):
    if owner in METHODS:
        return METHODS[owner](**options)
    return slim.create_model(owner, **options)


@pytest.mark.parametrize(("family", "method"), itertools.product(FAMILIES, METHODS))
def test_option_names_have_one_owner(family, method):
    own, of_method = option_kinds(family, method)
    assert own and not own.keys() & of_method.keys()


@pytest.mark.parametrize(("owner", "option"), OPTIONS)
def test_what_is_no_value_of_an_option_is_refused_in_one_line(owner, option):
    if option in FAMILIES.get(owner, (None, {}))[1]:
        return  # fixed by the family
    kind = kinds_of(OWNERS[owner])[option]
    default = OWNERS[owner].__dataclass_fields__[option].default
    assert accepts(kind, default), f"{option}={default!r} is the default"
    for value in [*NONSENSE, *(value for value in HOSTILE if not accepts(kind, value))]:
        with pytest.raises(slim.SlimError) as error:
            make(owner, **{option: value})
        assert option in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not accepts(kind, "false") or default is None or isinstance(default, str)
    for number in (math.nan, math.inf):
        assert not accepts(kind, number) and not accepts(kind, (number,))


@pytest.mark.parametrize(
    ("annotation", "accepts", "refuses"),
    [
        (bool, [(True, True), (np.bool_(False), False)], [0, 1, "false", None]),
        (int, [(3, 3), (np.int64(3), 3), (np.array(3), 3)], [True, 8.0, "3", 1.5]),
        (float, [(1, 1.0), (np.float32(0.5), 0.5)], [True, "1", math.nan, math.inf, 10**400]),
        (Count, [(1, 1)], [0, -1]),
        (Share, [(1, 1.0), (0.1, 0.1)], [0, 1.01, math.nan]),
        (Annotated[int, Range(least=1, most=3)], [(3, 3)], [4]),
        (Literal["a", 1], [("a", "a"), (1, 1)], ["b", True]),
        (int | None, [(None, None), (2, 2)], ["none"]),
        (tuple[int, ...], [([1, 2], (1, 2)), (np.arange(2), (0, 1)), ((), ())], [1, (1.5,)]),
        (tuple[tuple[float, ...], ...], [([[1], (2,)], ((1.0,), (2.0,)))], [(1,)]),
        (Pair, [(8, (8, 8)), ([8, 4], (8, 4)), (np.int64(8), (8, 8))], [8.0, (8,), (8, 4, 2), 0, "8"]),
        (str, [("a", "a")], [1, None]),
    ],
)
def test_kinds(annotation, accepts, refuses):
    kind = kind_of(annotation)
    for given, stored in accepts:
        value = kind.value("x", given)
        assert value == stored and type(value) is type(stored)
    for given in refuses:
        with pytest.raises(slim.SlimError, match="^(unknown x|x=)"):
            kind.value("x", given)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (bool, "false", False),
        (bool, "True", True),
        (int, "384", 384),
        (float, "1e-5", 1e-5),
        (float | None, "none", None),
        (str, "384", "384"),
        (Literal["mse", "kl"], "kl", "kl"),
        (tuple[int, ...], "4,7", (4, 7)),
        (tuple[int, ...], "(4, 7)", (4, 7)),
        (tuple[int, ...], "4", (4,)),
        (tuple[str, ...], "head, life_predictor", ("head", "life_predictor")),
        (tuple[str, ...], "", ()),
        (Share | tuple[Share, ...], "0.9,0.8", (0.9, 0.8)),
        (Pair, "20,16", (20, 16)),
    ],
)
def test_words_are_read_as_what_their_option_takes(annotation, text, value):
    assert kind_of(annotation).value("x", Text(text)) == value


@pytest.mark.parametrize(
    ("annotation", "text"), [(bool, "0"), (bool, "no"), (int, "8.0"), (float, "nan"), (float, "-inf"), (Count, "x")]
)
def test_words_that_mean_nothing_to_their_option_are_refused(annotation, text):
    with pytest.raises(slim.SlimError, match=f"^x='{text}' must be "):
        kind_of(annotation).value("x", Text(text))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"inference": "false"}, "inference='false' must be True or False"),
        ({"antialias": 1}, "antialias=1 must be True or False"),
        ({"checkpoint_key": 3}, "checkpoint_key=3 must be text or be None|must be None or be text"),
        ({"init_missing": 5}, "init_missing=5 must be text"),
        ({"strict": False}, "unknown option of from_torch 'strict'; choices: antialias"),
    ],
)
def test_keywords_of_functions_are_checked_too(keywords, words):
    with pytest.raises(slim.SlimError, match=words):
        slim.from_torch(slim.create_model("vit", **TINY), {}, **keywords)


def test_a_method_of_ones_own_is_checked_like_the_others():
    class Mine(slim.Slimming, kw_only=True):
        method = "mine"
        speed: Annotated[int, Range(least=2)] = 2

    assert Mine(speed=np.int32(3)).options() == {"speed": 3}
    with pytest.raises(slim.SlimError, match="speed=1 must be a whole number of at least 2"):
        Mine(speed=1)
    with pytest.raises(slim.SlimError, match="speed"):
        Mine().clone(speed="2")


def test_options_of_a_method_without_a_method_say_what_to_add():
    with pytest.raises(slim.SlimError, match="keep_rate is an option of methods: add method=NAME, one of .*topk"):
        slim.create_model("vit", keep_rate=0.7)
    with pytest.raises(slim.SlimError, match=r"r is an option of the method: give it to TopK\(\.\.\.\) itself"):
        slim.create_model("vit", method=slim.methods.TopK(), r=0.7)


def test_a_clone_of_another_size_has_its_own_geometry():
    model = slim.create_model("vit", method="topk", locations=(2,), **TINY)
    assert model.clone(img_size=16).geometry.grid == (4, 4)
    assert model.clone(depth=3).slim.plan.token_counts == (4, 4, 2)
    other = model.clone(slim=slim.methods.EViT(locations=(1,), keep_rate=0.5))
    assert other.slim.plan.mlp == (3, 3)
    for changes in (dict(depth=1), dict(img_size=9), dict(num_heads=3), dict(slim=slim.methods.TopK())):
        with pytest.raises(slim.SlimError):
            model.clone(**changes)
    with pytest.raises(slim.SlimError, match=r"locations=\(5,\)"):
        model.slim.clone(locations=(5,))


@pytest.mark.parametrize("method", [None, "life_regression", "sit", "tome", "ia_red2"])
def test_flax_looks_inside(method):
    """`tabulate` and interceptors see calls of methods that are not set up yet, unless these are plain Python."""
    options = {"locations": (1,)} if method and "locations" in kinds_of(METHODS[method]) else {}
    options |= {"r": 1} if method == "tome" else {}
    model, images = slim.create_model("vit", method=method, **TINY, **options), jnp.zeros((1, 8, 8, 3))
    assert "blocks_1" in model.tabulate(jax.random.key(0), images)
    seen = []

    def watch(call, arguments, keywords, context):
        seen.append(context.method_name)
        return call(*arguments, **keywords)

    with nn.intercept_methods(watch):
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        jax.eval_shape(lambda v: model.apply(v, images), variables)
    assert "__call__" in seen
