"""The pretrained weights of the benchmarks: an ONNX file whose matrices have lost their names."""

import numpy as np
import pytest
from state_dicts import build, random_state

from slimvit_jax.convert import from_torch, to_torch

onnx = pytest.importorskip("onnx")


def exported(state):
    """The graph that torch's exporter makes of transformers' Dinov2: matrices transposed, under numbers."""
    arrays, nodes = {}, []

    def matrix(module, array):
        name = f"onnx::MatMul_{1000 + len(nodes)}"
        arrays[name] = array.T
        nodes.append(onnx.helper.make_node("MatMul", [f"x{len(nodes)}", name], [f"y{len(nodes)}"], f"/{module}/MatMul"))

    for name in ("weight", "bias"):
        arrays[f"backbone.embeddings.patch_embeddings.projection.{name}"] = state[f"patch_embed.proj.{name}"]
        arrays[f"backbone.layernorm.{name}"] = state[f"norm.{name}"]
    arrays["backbone.embeddings.cls_token"] = state["cls_token"]
    arrays["onnx::Concat_900"], arrays["onnx::Reshape_901"] = np.split(state["pos_embed"], [1], axis=1)
    for layer in range(3):
        ours, theirs = f"blocks.{layer}.", f"backbone.encoder.layer.{layer}."
        for one, other in (("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1")):
            arrays[theirs + other] = state[ours + one]
        for norm in ("norm1", "norm2"):
            for name in ("weight", "bias"):
                arrays[f"{theirs}{norm}.{name}"] = state[f"{ours}{norm}.{name}"]
        query, key, value = np.split(state[ours + "attn.qkv.weight"], 3)
        biases = np.split(state[ours + "attn.qkv.bias"], 3)
        graph = theirs.replace(".", "/").replace(f"layer/{layer}", f"layer.{layer}")
        for part, rows in (("key", key), ("value", value), ("query", query)):  # the exporter's order
            matrix(f"{graph}attention/attention/{part}", rows)
        for part, bias in zip(("query", "key", "value"), biases, strict=True):
            arrays[f"{theirs}attention.attention.{part}.bias"] = bias
        for one, other in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            matrix(graph + other.replace(".", "/"), state[f"{ours}{one}.weight"])
            arrays[f"{theirs}{other}.bias"] = state[f"{ours}{one}.bias"]
    decoder = {"decoder.final_conv.bias": np.ones(1, np.float32)}
    tensors = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in (arrays | decoder).items()]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors))


def test_every_matrix_belongs_to_the_node_that_reads_it(tmp_path):
    from benchmarks import pretrained

    model = build(init_values=1e-5, num_classes=0)
    state = random_state(model)
    onnx.save(exported(state), str(tmp_path / "a.onnx"))
    backbone, decoder = pretrained.state_dicts(tmp_path / "a.onnx")
    got = to_torch(model, from_torch(model, backbone))
    assert got.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
    assert list(decoder) == ["final_conv.bias"]
