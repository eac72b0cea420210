"""`slim.export`: files that compute what the model does at any batch, and carry what their user has to know."""

from __future__ import annotations

import functools
import json
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from golden import random_variables

import slimvit_jax as slim
from slimvit_jax.__main__ import main
from slimvit_jax.errors import SlimError
from slimvit_jax.images import Preprocess
from slimvit_jax.inference import export, onnx_pieces, onnx_trace
from slimvit_jax.ops import attention, elementwise, merge, select

SMALL = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)
NAMES = ("cat", "dog [b]", "café", "d", "e")
#: Together they reach every way in which tokens leave: dropped, merged by a matching, clustered, shared out.
CASES = {
    "life_regression": ("vit", {"keep_rate": 0.5, "locations": (1, 2)}),
    "tome": ("deit_distilled", {"r": 3}),
    "ats": ("vit", {"keep_rate": 0.5, "locations": (2,), "reg_tokens": 2}),
    "dpcknn": ("vit", {"keep_rate": 0.5, "locations": (2,), "k_neighbors": 2}),
    "evo": ("vit", {"keep_rate": 0.5, "locations": (2, 3)}),
}


@functools.cache
def built(method):
    name, options = CASES[method]
    model = slim.create_model(name, method=method, **SMALL, **options)
    return model, random_variables(model)


@pytest.mark.parametrize("method", CASES)
def test_onnx_computes_the_same_at_any_batch(method, tmp_path):
    """All methods and backbones: benchmarks/export_matrix.py."""
    model, variables = built(method)
    outputs = ("logits",) if model.slim.merges else ("logits", "kept")
    report = slim.export(model, variables, tmp_path / "m.onnx", outputs=outputs)
    assert report.agreeing >= 3 and report.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    images = np.random.default_rng(2).standard_normal((16, 16, 16, 3), np.float32)
    logits, aux = jax.jit(lambda x: model.apply(variables, x, return_aux=True))(images)
    for batch in (1, 3, 16):
        theirs = dict(zip(report.outputs, session.run(None, {"images": images[:batch]}), strict=True))
        np.testing.assert_allclose(theirs["logits"], logits[:batch], atol=1e-4)
        for place, kept in enumerate(aux.kept or (), start=1):
            np.testing.assert_array_equal(np.sort(theirs[f"kept_{place}"]), np.sort(kept[:batch]))
    if method == "life_regression":
        kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
        assert (kinds.count("LayerNormalization"), kinds.count("Gelu"), kinds.count("Softmax")) == (
            9,
            3,
            3,
        )  # 3 x 2, the last, and 2 in front of lives
        assert not {"Loop", "Scan", "If", "Dropout"} & set(kinds)


def test_what_travels_in_the_files(tmp_path):
    model, variables = built("life_regression")
    prepare = Preprocess(img_size=16, mean=(0.1, 0.2, 0.3), interpolation="bilinear")
    for name in ("m.onnx", "m.stablehlo"):
        slim.export(model, variables, tmp_path / name, batch_size=2, preprocess=prepare, class_names=NAMES)
        found = export.read_metadata(tmp_path / name)
        assert Preprocess(**found["preprocess"]) == prepare and tuple(found["class_names"]) == NAMES
        assert found["token_counts"] == [16, 8, 4] and found["batch_size"] == 2
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")  # without this library
    assert json.loads(session.get_modelmeta().custom_metadata_map["slimvit.json"]) == found
    with zipfile.ZipFile(tmp_path / "m.stablehlo") as archive:
        assert json.loads(archive.read("slimvit.json")) == found
    exported = jax.export.deserialize(bytearray((tmp_path / "m.stablehlo").read_bytes()))
    assert exported.in_avals[0].shape == (2, 16, 16, 3)
    (tmp_path / "x.onnx").write_bytes(b"no")
    for name in ("x.onnx", "none.stablehlo"):
        with pytest.raises(SlimError, match=name):
            export.read_metadata(tmp_path / name)


def test_features_without_classes(tmp_path):
    model, variables = built("life_regression")
    bare = model.clone(num_classes=0)
    with pytest.raises(SlimError, match="'features'"):
        slim.export(bare, variables, tmp_path / "m.stablehlo")
    images = np.ones((1, 16, 16, 3), np.float32)
    for one in (bare, model):  # of a model with classes: what its classifier reads
        report = slim.export(one, variables, tmp_path / "m.stablehlo", outputs=("features", "scores"))
        assert report.outputs == {"features": "float32[batch,24]", "scores": "float32[batch,16]"}
        features, _ = jax.export.deserialize(bytearray((tmp_path / "m.stablehlo").read_bytes())).call(images)
        np.testing.assert_allclose(features, jax.jit(bare.apply)(variables, images), atol=1e-5)


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    model, variables = built("life_regression")
    write = onnx_pieces.gelu
    monkeypatch.setitem(onnx_pieces.PIECES, "gelu", lambda writer, x: writer.Neg(write(writer, x)))
    (tmp_path / "m.onnx").write_text("what was there")
    with pytest.raises(SlimError, match="differ by .* random images"):
        slim.export(model, variables, tmp_path / "m.onnx")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("m.onnx", "what was there")]


def test_onnx_computes_in_float32_what_trained_in_bfloat16(tmp_path):
    model, variables = built("life_regression")
    half = slim.export(model.clone(dtype="bfloat16"), variables, tmp_path / "half.onnx")
    whole = slim.export(model, variables, tmp_path / "whole.onnx")
    assert half.outputs == whole.outputs and half.difference == whole.difference < 1e-5


@pytest.mark.parametrize(
    ("options", "asked", "words"),
    [
        ({}, {"platforms": ("tpu",)}, "platforms=.*goes with .stablehlo"),
        ({"method": "tome"}, {"outputs": ("kept",)}, "merges patches"),
        ({}, {"class_names": ("a",)}, "1 class names for a model of 5"),
        ({}, {"class_names": "abcde"}, "class_names='abcde' must be"),
        ({}, {"outputs": "logits"}, "outputs='logits' must be a tuple"),
        ({}, {"batch_size": 0}, "batch_size=0 must be"),
        ({}, {"suffix": ".stablehlo", "platforms": "cpu"}, "platforms='cpu' must be"),
        ({}, {"suffix": ".stablehlo", "platforms": ("gpu",)}, "unknown platform 'gpu'"),
        ({}, {"preprocess": Preprocess(img_size=32)}, r"preprocess makes images of shape \(32, 32, 3\)"),
    ],
)
def test_refused_beforehand(options, asked, words, tmp_path):
    model, path = slim.create_model("vit", **SMALL, **options), tmp_path / f"m{asked.pop('suffix', '.onnx')}"
    with pytest.raises(SlimError, match=words):
        slim.export(model, None, path, **asked)
    assert not list(tmp_path.iterdir())


def test_a_folder_and_an_output_that_is_not_there(tmp_path):
    model = slim.create_model("vit", **SMALL)
    with pytest.raises(SlimError, match="is a folder, not a file to write"):
        (tmp_path / "m.stablehlo").mkdir()
        slim.export(model, None, tmp_path / "m.stablehlo")
    with pytest.raises(SlimError, match="method 'dense' has no output 'kept'"):
        slim.export(model, random_variables(model), tmp_path / "n.stablehlo", outputs=("logits", "kept"))


def test_what_onnx_has_no_form_for(tmp_path):
    model = slim.create_model("vit", method="atc", **SMALL, keep_rate=0.5, locations=(1, 2))
    with pytest.raises(SlimError, match="loop .* depends on the images"):
        slim.export(model, random_variables(model), tmp_path / "m.onnx")


def test_without_the_extra_the_line_says_how_to_install(tmp_path, monkeypatch, capsys):
    model, variables = built("life_regression")
    slim.save(model, variables, tmp_path / "w.safetensors")
    words = [f"--set={k}={v}" for k, v in {**SMALL, **CASES["life_regression"][1]}.items()]
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    weights = ["--model=vit", "--method=life_regression", f"--weights={tmp_path / 'w.safetensors'}", *words]
    assert main(["export", str(tmp_path / "m.onnx"), *weights]) == 2
    assert "pip install 'slimvit-jax[onnx]'" in capsys.readouterr().err


def test_loops_are_written_out_and_constants_computed():
    def function(x):
        total, steps = jax.lax.scan(lambda c, row: (c + row, c.sum()), jnp.zeros(3), x.T, length=4)
        noise = jax.random.uniform(jax.random.key(0), (3,))
        back = jax.lax.fori_loop(0, 3, lambda i, c: jnp.where(i == 1, c * 2, c + i), total)
        return jnp.concatenate([back + noise, steps])

    given = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    closed = onnx_trace.traced(function, [given])
    names = {eqn.primitive.name for eqn in closed.jaxpr.eqns}
    assert not names & {"scan", "while", "jit", "random_bits", "random_wrap", "threefry2x32"}
    x = jax.random.normal(jax.random.key(1), (3, 4))
    np.testing.assert_allclose(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, x)[0], function(x), rtol=1e-6)


def test_put_and_argsort_by_hand():
    values, index = jnp.zeros((2, 3), jnp.int32), jnp.array([[2, 0], [3, 1]])
    np.testing.assert_array_equal(select.put(values, index, jnp.array([[5, 6], [7, 8]])), [[6, 0, 5], [0, 8, 0]])
    np.testing.assert_array_equal(select.argsort(jnp.array([[1.0, 0.0, 1.0, -1.0]])), [[3, 1, 0, 2]])
    masked = merge.without_front(jnp.zeros((1, 2, 3)), 1, 2)
    np.testing.assert_array_equal(jnp.isneginf(masked), [[[True, True, True], [True, True, False]]])


def test_every_piece_has_its_words():
    own = {"reshape", "broadcast", "pad"}  # not marked: primitives of jax that the trace rewrites
    marked = {
        name
        for module in (attention, elementwise, select)
        for name, f in vars(module).items()
        if hasattr(f, "__wrapped__")
    }
    assert marked == onnx_pieces.PIECES.keys() - own
