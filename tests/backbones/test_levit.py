"""LeViT: timm's numbers, batch norms folded away, what its grid rules out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden, close, random_variables

import slimvit_jax as slim
from slimvit_jax.backbones.levit_layers import bias_index
from slimvit_jax.convert import rules

TINY = dict(img_size=48, embed_dim=(16, 24), depth=(1, 2), num_heads=(2, 3), key_dim=8, num_classes=5)


def build(name="levit", **options):
    model = slim.create_model(name, **{**TINY, **options})
    images = jnp.asarray(np.random.default_rng(1).standard_normal((3, *model.img_size, 3)), jnp.float32)
    return model, random_variables(model), images


@pytest.mark.parametrize("case", ["levit", "levit_distilled"])
def test_golden_the_way_back_and_fused(case):
    golden = Golden.load(case)
    model = slim.create_model(case, **golden.meta["constructor_kwargs"])
    state = golden.state()
    variables = slim.from_torch(model, state)
    forward = lambda model: jax.jit(lambda v, x: model.apply(v, x, return_aux=True))
    logits, aux = forward(model)(variables, golden.images)
    close(logits, golden.out("logits"))
    close(aux.features, golden.out("tokens"))
    if case == "levit_distilled":
        close(aux.taps["head_logits"], golden.out("logits_cls"))
        close(aux.taps["dist_logits"], golden.out("logits_dist"))
    back = slim.to_torch(model, variables)
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    fused, folded = slim.fuse(model, variables)
    assert "batch_stats" not in folded
    close(forward(fused)(folded, golden.images)[0], golden.out("logits"))


@pytest.mark.parametrize(
    ("name", "mflops", "millions"),
    [  # timm's table
        ("levit_128s", 305, 7.78),
        ("levit_128", 406, 9.21),
        ("levit_192", 658, 10.95),
        ("levit_256", 1120, 18.89),
        ("levit_384", 2353, 39.13),
    ],
)
def test_published_sizes(name, mflops, millions):
    model = slim.create_model(name)
    assert slim.flops(model).total / 1e6 == pytest.approx(mflops, rel=0.015)
    parameters = sum(np.prod(leaf.shape) for key, leaf in rules.expected(model).items() if "running" not in key)
    assert parameters / 1e6 == pytest.approx(millions, rel=0.001)


def test_layers_are_the_blocks_and_what_subsamples():
    model, variables, images = build(img_size=(48, 80))
    apply = lambda v: model.apply(v, images, return_aux=True, record_tokens=True)
    logits, aux = jax.eval_shape(apply, variables)
    assert aux.token_counts == model.slim.plan.token_counts == (15, 15, 6, 6)
    assert model.slim.plan.mlp == (15, 6, 6, 6)
    assert [tokens.shape for tokens in aux.taps["tokens"]] == [(3, 15, 16), (3, 6, 24), (3, 6, 24), (3, 6, 24)]
    assert len(slim.flops(model).per_layer) == 4 and logits.shape == (3, 5)


def test_a_bias_depends_on_the_distances_alone():
    index = bias_index((2, 3))
    assert index.shape == (6, 6) and (index == index.T).all()
    assert index[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert index[4].tolist() == [4, 3, 4, 1, 0, 1]
    assert bias_index((3, 3), stride=2).shape == (4, 9)


def test_training_moves_every_statistic_and_fusing_follows():
    model, variables, images = build("levit_distilled", drop_rate=0.1)
    step = jax.jit(
        lambda v: model.apply(v, images, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])
    )
    _, updates = step(variables)
    moved = lambda a, b: bool(jnp.abs(a - b).max() > 0)
    assert all(jax.tree.leaves(jax.tree.map(moved, variables["batch_stats"], updates["batch_stats"])))
    trained = {**variables, **updates}
    fused, folded = slim.fuse(model, trained)
    np.testing.assert_allclose(jax.jit(fused.apply)(folded, images), jax.jit(model.apply)(trained, images), atol=1e-4)
    assert "stages.1.downsample.attn_downsample.q.ln.linear.bias" in slim.to_torch(fused, folded)
    assert slim.flops(fused) == slim.flops(model)
    with pytest.raises(slim.SlimError, match="inference only"):
        fused.apply(folded, images, train=True)
    with pytest.raises(slim.SlimError, match="fused already"):
        slim.fuse(fused, folded)


def test_lvvit_fuses_too_and_vit_has_nothing_to_fuse():
    model = slim.create_model("lvvit", img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=5, p_emb="6c")
    variables = random_variables(model)
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 32, 32, 3)), jnp.float32)
    fused, folded = slim.fuse(model, variables)
    np.testing.assert_allclose(jax.jit(fused.apply)(folded, images), jax.jit(model.apply)(variables, images), atol=1e-4)
    with pytest.raises(slim.SlimError, match="no batch norm"):
        slim.fuse(slim.create_model("vit"), {})


@pytest.mark.parametrize("method", sorted(set(slim.list_methods()) - {"dense"}))
def test_methods_are_refused_with_the_reason(method):
    with pytest.raises(slim.SlimError, match=f"{method!r} cannot run on this backbone: it subsamples the grid"):
        slim.create_model("levit", method=method, **TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 40}, "image height 40 is not divisible by 16"),
        ({"depth": (1, 2, 3)}, r"depth=\(1, 2, 3\) must be one value, or one for each of the 2 stages"),
        ({"num_heads": (2, 0)}, "num_heads"),
        ({"embed_dim": (12, 24)}, "divisible by 8"),
        ({"embed_dim": ()}, "at least one"),
        ({"key_dim": 32}, "key_dim=32 is wider than embed_dim=16"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
        ({"patch_size": 16}, "unknown option .*'patch_size'"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(slim.SlimError, match=message):
        slim.create_model("levit", **{**TINY, **options})


def test_scores_and_wrong_images_are_refused():
    model, variables, images = build()
    with pytest.raises(slim.SlimError, match="nothing to rank"):
        model.apply(variables, images, scores=jnp.zeros((3, 9)))
    with pytest.raises(slim.SlimError, match="this model takes"):
        model.apply(variables, images[:, :32])
