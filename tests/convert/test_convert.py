"""State dicts to variables and back: names, layouts, the options, the errors; goldens of the dense backbones."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import HERE
from state_dicts import assert_equal_states, build, random_state

import slimvit_jax as slim
from slimvit_jax.convert import from_torch, rules, to_torch
from slimvit_jax.errors import SlimError

LIFE = {"method": "life_regression", "locations": (1, 2), "keep_rate": 0.7}
FAMILIES = {
    "vit": ("vit", {}),
    "average pooling": ("vit", {"global_pool": "avg", "class_token": False}),
    "registers": ("vit", {"reg_tokens": 2, "no_embed_class": True}),
    "layer scale": ("vit", {"init_values": 1e-5}),
    "qk norm": ("vit", {"qk_norm": True}),
    "no qkv bias": ("vit", {"qkv_bias": False}),
    "no head": ("vit", {"num_classes": 0}),
    "distilled": ("deit_distilled", {}),
    "life regression": ("vit", LIFE),
}


def error_of(model, state, **options):
    with pytest.raises(SlimError) as caught:
        from_torch(model, state, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load_golden(case):
    """(model, state dict, arrays) of a golden file."""
    arrays = np.load(HERE / f"{case}.npz", allow_pickle=False)
    meta = json.loads(str(arrays["meta"]))
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    options = meta.get("constructor_kwargs") or {name: meta[name] for name in names}
    if case == "life_regression":
        options |= {"method": case} | {name: meta[name] for name in ("locations", "keep_rate", "temperature", "t_base")}
    family = "deit_distilled" if case == "deit_distilled" else "vit"
    state = {name[3:]: arrays[name] for name in arrays.files if name.startswith("sd/")}
    return slim.create_model(family, **options), state, arrays


# Names and layouts ---------------------------------------------------------------------------------------------------


def test_names():
    assert rules.torch_name(("params", "blocks_11", "attn", "qkv", "kernel"), 2) == "blocks.11.attn.qkv.weight"
    assert rules.torch_name(("params", "slim", "life_predictor", "norm", "scale"), 1) == "life_predictor.norm.weight"
    assert rules.torch_name(("params", "slim", "tsm_0", "weight_1", "kernel"), 2) == "tsm.0.weight.1.weight"
    assert rules.torch_name(("params", "slim", "tsm_0", "scale"), 3) == "tsm.0.scale"
    assert rules.torch_name(("batch_stats", "stem", "bn1", "var"), 1) == "stem.bn1.running_var"
    assert rules.torch_name(("params", "cls_token"), 3) == "cls_token"


def test_a_convolution_is_laid_out_as_torch_does():
    model = build()
    state = to_torch(model, model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3))))
    assert state["patch_embed.proj.weight"].shape == (12, 3, 7, 7)
    assert state["blocks.0.mlp.fc1.weight"].shape == (48, 12)
    assert all(array.flags.c_contiguous for array in state.values())


class _WithBatchNorm(nn.Module):
    """Stands for a backbone with running statistics."""

    img_size = (8, 8)
    in_chans = 3

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="conv1")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn1")(x)
        return nn.Dense(2, name="head")(x.mean((1, 2)))


def test_batch_normalisation():
    model = _WithBatchNorm()
    state = random_state(model)
    assert state["bn1.running_var"].shape == (4,)
    counted = state | {"bn1.num_batches_tracked": np.int64(7) * np.ones((), np.int64)}
    variables = from_torch(model, counted)
    assert set(variables) == {"params", "batch_stats"}
    assert np.array_equal(variables["batch_stats"]["bn1"]["mean"], state["bn1.running_mean"])
    zero = {"bn1.num_batches_tracked": np.zeros((), np.int64)}
    assert_equal_states(to_torch(model, variables), state | zero)
    assert "conv1.num_batches_tracked" in error_of(model, state | {"conv1.num_batches_tracked": np.zeros(())})


# There and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, options", FAMILIES.values(), ids=FAMILIES)
def test_there_and_back_is_bit_exact(family, options):
    model = build(family, **options)
    state = random_state(model)
    variables = from_torch(model, state)
    assert_equal_states(to_torch(model, variables), state)
    fresh = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    again = from_torch(model, to_torch(model, fresh))
    assert jax.tree.structure(fresh) == jax.tree.structure(again)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(fresh), jax.tree.leaves(again), strict=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_floating_types_become_float32(dtype):
    model = build()
    state = {name: array.astype(dtype) for name, array in random_state(model).items()}
    back = to_torch(model, from_torch(model, state))
    assert_equal_states(back, {name: array.astype(np.float32) for name, array in state.items()})


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    model = build()
    state = random_state(model)
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in state.items()}
    assert_equal_states(to_torch(model, from_torch(model, tensors)), state)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    want = {name: tensor.detach().float().numpy() for name, tensor in half.items()}
    assert_equal_states(to_torch(model, from_torch(model, half)), want)


def test_variables_are_copies():
    model = build()
    state = random_state(model)
    variables = from_torch(model, state)
    state["cls_token"][:] = 0
    assert np.all(np.asarray(variables["params"]["cls_token"]) != 0)


# Goldens -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["vit", "vit_gap", "vit_layerscale", "vit_qknorm", "vit_reg4", "deit_distilled"])
def test_golden(case):
    model, state, arrays = load_golden(case)
    images = arrays["images"].transpose(0, 2, 3, 1)
    variables = from_torch(model, state)
    got, aux = jax.jit(lambda v, x: model.apply(v, x, return_aux=True))(variables, images)
    assert np.abs(np.asarray(got) - arrays["out/logits"]).max() < 1e-4
    tokens = arrays["out/tokens"]
    assert np.abs(np.asarray(aux.features) - tokens).max() < 1e-4 * max(1, np.abs(tokens).max())
    if case == "deit_distilled":
        assert np.abs(np.asarray(aux.taps["head_logits"]) - arrays["out/logits_cls"]).max() < 1e-4
        assert np.abs(np.asarray(aux.taps["dist_logits"]) - arrays["out/logits_dist"]).max() < 1e-4


@pytest.mark.parametrize("case", ["vit_reg4", "deit_distilled", "life_regression"])
def test_golden_there_and_back(case):
    model, state, _ = load_golden(case)
    back = to_torch(model, from_torch(model, state))
    assert_equal_states(back, {name: array.astype(np.float32) for name, array in state.items()})


# Options -------------------------------------------------------------------------------------------------------------


def test_absent_method_parameters_are_fresh_only_when_asked_for():
    dense, model = build(), build(**LIFE)
    state = random_state(dense)
    assert "init_missing=('life_predictor',)" in error_of(model, state)
    variables = from_torch(model, state, init_missing=("life_predictor",))
    want = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]["slim"]
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), variables["params"]["slim"], want))
    kept = {name: array for name, array in to_torch(model, variables).items() if not name.startswith("life_predictor")}
    assert_equal_states(kept, state)
    other = from_torch(model, state, init_missing="life_predictor", rng=jax.random.key(1))["params"]["slim"]
    assert not jax.tree.all(jax.tree.map(np.array_equal, other, want))


def test_what_fits_is_used_even_under_init_missing():
    model = build(**LIFE)
    state = random_state(model)
    assert_equal_states(to_torch(model, from_torch(model, state, init_missing=("life_predictor", "head"))), state)


@pytest.mark.parametrize("family", ["vit", "deit_distilled"])
def test_a_head_of_another_size(family):
    model, state = build(family, num_classes=7), random_state(build(family))
    heads = ("head", "head_dist") if family == "deit_distilled" else ("head",)
    message = error_of(model, state)
    assert "head.weight is (5, 12), the model has (7, 12)" in message and f"init_missing={heads}" in message
    variables = from_torch(model, state, init_missing=heads)
    assert all(variables["params"][head]["kernel"].shape == (12, 7) for head in heads)


def test_a_classifier_without_its_head():
    model, state = build(num_classes=0), random_state(build())
    assert "2 unexpected (head.weight, head.bias)" in error_of(model, state).replace(
        "head.bias, head.weight", "head.weight, head.bias"
    )
    back = to_torch(model, from_torch(model, state, ignore="head"))
    assert "head.weight" not in back and np.array_equal(back["cls_token"], state["cls_token"])


@pytest.mark.parametrize("extra", [{}, {"reg_tokens": 2, "no_embed_class": True}], ids=["class", "registers"])
def test_positions_of_another_grid(extra):
    model, state = build(img_size=(28, 42), **extra), random_state(build(**extra))
    assert "resample_pos_embed=True" in error_of(model, state)
    got = to_torch(model, from_torch(model, state, resample_pos_embed=True))["pos_embed"]
    prefix = 0 if extra else 1
    assert got.shape == (1, prefix + 24, 12)
    assert np.array_equal(got[:, :prefix], state["pos_embed"][:, :prefix])


def test_resampling_leaves_the_same_grid_alone():
    model = build(img_size=(28, 42))
    state = random_state(model)
    assert_equal_states(to_torch(model, from_torch(model, state, resample_pos_embed=True)), state)


def test_positions_of_a_grid_that_is_not_square():
    model, state = build(), random_state(build(img_size=(28, 42)))
    assert "give the grid they come from" in error_of(model, state, resample_pos_embed=True)
    got = to_torch(model, from_torch(model, state, resample_pos_embed=(4, 6)))["pos_embed"]
    assert got.shape == (1, 17, 12)
    assert "5 x 5 grid" in error_of(model, state, resample_pos_embed=(5, 5))
    turned = to_torch(build(img_size=(42, 28)), from_torch(build(img_size=(42, 28)), state, resample_pos_embed=(4, 6)))
    assert not np.array_equal(turned["pos_embed"], state["pos_embed"])  # same length, another grid


# Errors --------------------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshaped_in_one_error():
    model = build()
    state = random_state(model)
    del state["norm.bias"]
    state["extra.weight"] = np.zeros(3, np.float32)
    state["cls_token"] = np.zeros((1, 2, 12), np.float32)
    message = error_of(model, state)
    assert "1 missing (norm.bias)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "cls_token is (1, 2, 12), the model has (1, 1, 12)" in message


def test_long_lists_are_shortened():
    message = error_of(build(), {})
    assert "and " in message and " more)" in message and len(message) < 400


def test_weights_of_another_architecture_are_described():
    tiny = slim.create_model("deit_tiny_patch16_224")
    state = {name: np.broadcast_to(np.float32(0), leaf.torch_shape) for name, leaf in rules.expected(tiny).items()}
    message = error_of(slim.create_model("deit_small_patch16_224"), state)
    assert "embed_dim 192, depth 12" in message and "vit_tiny_patch16_224" in message
    assert "the model is a ViT with embed_dim 384" in message
    assert "no vision transformer known here" in error_of(build(), {"layer1.0.conv1.weight": np.zeros((2, 2))})
    assert "a distilled ViT" in error_of(build(), random_state(build("deit_distilled")))


def test_values_that_are_no_weights():
    model = build()
    state = random_state(model)
    assert "cls_token is a list" in error_of(model, state | {"cls_token": [1.0]})
    assert "cls_token holds int64" in error_of(model, state | {"cls_token": np.zeros((1, 1, 12), np.int64)})
    for value in (np.full((1, 1, 12), np.nan, np.float32), np.full((1, 1, 12), 1e300)):  # the second is no float32
        said = error_of(model, state | {"cls_token": value})
        assert "1 hold values that are no finite numbers (cls_token)" in said
    assert "mapping" in error_of(model, [1, 2])


def test_a_prefix_that_names_nothing():
    message = error_of(build(), random_state(build()), init_missing=("haed",))
    assert "haed" in message and "did you mean 'head'" in message


def test_to_torch_checks_the_variables():
    model = build()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    with pytest.raises(SlimError, match="the variables do not fit the model: .*head.weight is .5, 12."):
        to_torch(build(num_classes=7), variables)
    with pytest.raises(SlimError, match="missing"):
        to_torch(model, {"params": {}})
