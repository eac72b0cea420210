"""Evo-ViT: parity with the official code, with the paper's algorithm taken literally, and names."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from golden import Golden, close, run, small

import slimvit_jax as slim
from slimvit_jax.methods import evo_names
from slimvit_jax.ops import evolution

TINY = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 16 patches
built = functools.partial(small, **TINY)
IMAGES = jax.random.normal(jax.random.key(7), (3, 16, 16, 3))
KEY = {"dropout": jax.random.key(3)}


def test_evo_goldens():
    golden = Golden.load("evo_deit")
    model, variables = golden.model("evo", representative=False)
    logits, aux = run(model, variables, golden.images)
    close(logits, golden.out("logits"))
    for k, layer in enumerate((4, 8)):
        n = int(golden.out(f"n_keep_layer{layer}"))
        np.testing.assert_array_equal(aux.kept[k], golden.out(f"perm_layer{layer}")[:, :n])
        close(aux.taps["class_attention"][k], golden.out(f"cls_attn_layer{layer}"), 1e-5)
    assert aux.token_counts == (196,) * 4 + (98,) * 8
    back = slim.to_torch(model, variables)
    assert set(back) == set(golden.state())
    assert all(np.array_equal(back[name], value) for name, value in golden.state().items())

    layerwise, _ = golden.model("evo", representative=False, stage_wise=False, tradeoff=(1.0,) * 4 + (0.5,) * 8)
    logits, aux = run(layerwise, variables, golden.images, train=True, rngs=KEY)
    close(logits, golden.out("layerwise_train_logits"))
    close(aux.taps["class_logits"], golden.out("layerwise_train_logits_cls"))


def test_evo_algebra_by_hand():
    np.testing.assert_allclose(evolution.evolve(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]), 0.25), [0.75, 0.5])
    patches = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(evolution.representative_token(patches, jnp.array([[3.0, 1.0]])), [[[0.75, 0.25]]])
    np.testing.assert_allclose(evolution.representative_token(patches, jnp.zeros((1, 2))), [[[0.5, 0.5]]])


def test_evo_names_round_trip_and_timm_names_are_read():
    dense, weights = built(qkv_bias=False)
    model, variables = built(method="evo", locations=(2,), qkv_bias=False)
    timm = slim.to_torch(dense, weights)
    assert evo_names.join_attention(timm) == timm
    split = evo_names.split_attention(timm)
    assert "qks.2.qk.weight" in split and "qks.2.qk.bias" not in split and "norms.0.bias" in split
    joined = evo_names.join_attention(split)
    assert set(joined) == set(timm) and all(np.array_equal(joined[k], timm[k]) for k in timm)
    fresh = slim.from_torch(model, timm, init_missing=("norm_cls", "head_cls"))
    np.testing.assert_array_equal(fresh["params"]["blocks_1"]["attn"]["qkv"]["kernel"],
                                  weights["params"]["blocks_1"]["attn"]["qkv"]["kernel"])  # fmt: skip
    assert set(fresh["params"]["slim"]) == {"norm_cls", "head_cls"}


def evo_reference(model, variables, images):
    """The paper's algorithm literally: representative anew in every layer, placeholders moved in every layer."""
    bound = model.bind(variables)
    method, dim = model.slim, model.embed_dim
    tokens = bound.embed(images, False, None)
    x, p = np.asarray(tokens.x, np.float64), tokens.prefix
    order, left, running = np.arange(x.shape[1] - p)[None].repeat(len(x), 0), x.shape[1] - p, None
    pick = lambda a, index: np.take_along_axis(a, index.reshape(index.shape + (1,) * (a.ndim - 2)), 1)
    standard = lambda y: (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    norm = lambda y, w: standard(y) * w["scale"] + w["bias"]
    lin = lambda y, w: y @ np.asarray(w["kernel"], np.float64) + w["bias"]
    for layer, block in enumerate((variables["params"][f"blocks_{i}"] for i in range(model.depth)), start=1):
        if layer in method.locations:
            index = np.argsort(-running, axis=1, kind="stable")
            order, running = pick(order, index), pick(running, index)
            x = np.concatenate([x[:, :p], pick(x[:, p:], index)], 1)
            left = int(bound.geometry.num_patches * method.keep_rate)
        waiting, weights = x[:, p + left :], running[:, left:] if running is not None else None
        slow = x[:, : p + left]
        if waiting.shape[1]:
            share = weights / weights.sum(1, keepdims=True)
            slow = np.concatenate([slow, np.einsum("bn,bnd->bd", share, waiting)[:, None]], 1)
        b, m, h = slow.shape[0], slow.shape[1], model.num_heads
        qkv = lin(norm(slow, block["norm1"]), block["attn"]["qkv"]).reshape(b, m, 3, h, dim // h)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        a = np.asarray(jax.nn.softmax(q @ k.swapaxes(-1, -2) / (dim // h) ** 0.5))
        first = lin((a @ v).swapaxes(1, 2).reshape(b, m, dim), block["attn"]["proj"])
        hidden = jax.nn.gelu(lin(norm(slow + first, block["norm2"]), block["mlp"]["fc1"]), approximate=False)
        second = lin(np.asarray(hidden), block["mlp"]["fc2"])
        new, alpha = a[:, :, 0, p : p + left].sum(1), 0.5 if layer >= method.locations[0] else 1.0
        if running is None:
            running = new
        else:
            running = np.concatenate([(1 - alpha) * running[:, :left] + alpha * new, running[:, left:]], 1)
        moved = slow + first + second
        if waiting.shape[1]:
            waiting = waiting + first[:, -1:] + second[:, -1:]
        x = np.concatenate([moved[:, : p + left], waiting], 1)
    return lin(norm(x[:, p:].mean(1), variables["params"]["norm"]), variables["params"]["head"])


def test_evo_fast_path_is_the_papers():
    options = dict(method="evo", keep_rate=0.4, locations=(2, 4), depth=5, reg_tokens=2, no_embed_class=True)
    model, variables = built(**options)
    logits, aux = run(model, variables, IMAGES)
    assert aux.token_counts == (16, 7, 7, 7, 7)
    close(logits, evo_reference(model, variables, IMAGES))
    layerwise, _ = built(**options, stage_wise=False)
    assert len(run(layerwise, variables, IMAGES)[1].kept) == 4
