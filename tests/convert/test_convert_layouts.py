"""What a state dict may be wrapped in, and the names of other libraries: all come out as the same weights."""

import json
import logging

import numpy as np
import pytest
from golden import HERE
from state_dicts import TINY, assert_equal_states, build, of_transformers, random_state
from test_convert import error_of
from test_convert_files import error_of as call_error
from test_convert_files import google_arrays

import slimvit_jax as slim
from slimvit_jax.convert import from_torch, huggingface, load, read_state_dict, save, to_torch

BARE = {"init_values": 1e-5, "num_classes": 0}


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def state(model):
    return random_state(model)


def prefixed(state, prefix):
    return {prefix + name: array for name, array in state.items()}


def shifted(state):
    return {name: array + 1 for name, array in state.items()}


# Wrappers and prefixes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "our.own."])
def test_a_prefix_in_every_format(tmp_path, model, state, prefix):
    torch, st = pytest.importorskip("torch"), __import__("safetensors.numpy")
    named = prefixed(state, prefix)
    np.savez(tmp_path / "a.npz", **named)
    st.numpy.save_file(named, tmp_path / "a.safetensors")
    torch.save({"state_dict": {n: torch.from_numpy(a) for n, a in named.items()}, "epoch": 3}, tmp_path / "a.ckpt")
    for name in ("a.npz", "a.safetensors", "a.ckpt"):
        assert_equal_states(to_torch(model, load(model, tmp_path / name)), state)
    assert_equal_states(to_torch(model, from_torch(model, {"model": {"module": named}})), state)


def test_a_part_compiled_by_itself(model, state):
    names = {name.replace("blocks.1.", "blocks.1._orig_mod."): array for name, array in state.items()}
    assert_equal_states(to_torch(model, from_torch(model, names)), state)


def test_what_stands_beside_the_weights_is_reported_or_ignored(model, state):
    whole = prefixed(state, "model.") | {"loss.weight": np.ones(3, np.float32), "epoch": 3}
    assert "epoch is a int" in error_of(model, whole)
    assert "loss.weight" in error_of(model, whole, ignore="epoch")
    assert_equal_states(to_torch(model, from_torch(model, whole, ignore=("epoch", "loss"))), state)


@pytest.mark.parametrize(
    "average, plain",
    [("model_ema", "model"), ("state_dict_ema", "state_dict"), ("teacher", "student"), ("ema", "state_dict")],
)
def test_the_average_is_taken_and_said_so(model, state, caplog, average, plain):
    nested = {plain: shifted(state), average: state, "optimizer": {"lr": 1.0}}
    flat = prefixed(shifted(state), f"{plain}.") | prefixed(state, f"{average}.")
    for content in (nested, flat):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            got = to_torch(model, from_torch(model, content))
        assert_equal_states(got, state)
        assert average in caplog.text and plain in caplog.text
        caplog.clear()
        got = to_torch(model, from_torch(model, content, checkpoint_key=plain))
        assert_equal_states(got, shifted(state))
        assert_equal_states(to_torch(model, from_torch(model, content, checkpoint_key=average)), state)
        assert not caplog.text
    assert_equal_states(to_torch(model, from_torch(model, {plain: state, "ema": None, "model_ema": 0.99})), state)


def test_two_copies_that_are_no_average(model, state):
    content = {"state_dict": prefixed(state, "a.b.") | prefixed(shifted(state), "a.c.")}
    assert "2 sets of weights" in error_of(model, content) and "'a.b'" in error_of(model, content)
    assert_equal_states(to_torch(model, from_torch(model, content, checkpoint_key="a.c")), shifted(state))
    assert "checkpoint_key 'x'" in error_of(model, content, checkpoint_key="x")
    assert "checkpoint_key 'x'" in error_of(model, {"model": state, "model_ema": state}, checkpoint_key="x")


def test_a_pickled_module_gets_one_line(tmp_path, model):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    message = call_error(load, model, tmp_path / "a.pth")
    assert "torch.nn.modules.linear.Linear" in message and "state_dict()" in message and len(message) < 250
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "b.pth")
    assert "Linear" in call_error(load, model, tmp_path / "b.pth")
    assert "state_dict()" in error_of(model, torch.nn.Linear(2, 2))


def test_plain_values_of_training_scripts_do_no_harm(tmp_path, model, state):
    torch = pytest.importorskip("torch")
    extra = {"best": np.float64(81.2), "step": np.int64(3), "output": tmp_path}
    torch.save({"model": {n: torch.from_numpy(a) for n, a in state.items()}} | extra, tmp_path / "a.pth.tar")
    assert_equal_states(to_torch(model, load(model, tmp_path / "a.pth.tar")), state)


# Names of other libraries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["", "model."])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_names_of_transformers(kind, outer):
    model = build(**[{}, BARE, {"pre_norm": True, "num_classes": 0}][kind])
    state = random_state(model)
    theirs = of_transformers(state, kind) | {"logit_scale": np.ones(()), "text_model.final.weight": np.ones(2)}
    assert len(theirs) == len(state) + 2 * 2 * TINY["depth"] + 2
    got = to_torch(model, from_torch(model, prefixed(theirs, outer)))
    assert_equal_states(got, state)


TRANSFORMERS = ["vit", "deit", "dinov2", "dinov2_registers"]
if "eva" in slim.list_models():  # with the encoders of other pretraining
    TRANSFORMERS += ["clip", "siglip", "dinov3", "dinov3_gated"]


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_models_of_transformers_compute_the_same(case):
    """Names as files and as transformers 5 have them in memory; positions of 4 x 4 patches resampled to 8 x 6."""
    arrays = np.load(HERE / f"transformers_{case}.npz", allow_pickle=False)
    meta = json.loads(str(arrays["meta"]))
    model = slim.create_model(meta["family"], **meta["options"])
    state = {name[3:]: arrays[name] for name in arrays.files if name.startswith("sd/")}
    variables = from_torch(model, state, **meta["load"])
    logits, aux = model.apply(variables, arrays["images"].transpose(0, 2, 3, 1), return_aux=True)
    got = logits if meta["output"] == "logits" else aux.features
    np.testing.assert_allclose(got, arrays["want"], rtol=0, atol=1e-5)


def test_the_vision_tower_of_a_pair():
    """Of transformers' CLIP, with its text tower in the same file."""
    arrays = np.load(HERE / "transformers_clip.npz", allow_pickle=False)
    state = {name[3:]: arrays[name] for name in arrays.files if name.startswith("sd/")}
    model = build(depth=2, pre_norm=True)
    got = to_torch(model, from_torch(model, state))
    assert np.array_equal(got["head.weight"], state["visual_projection.weight"]) and not got["head.bias"].any()
    assert np.array_equal(got["cls_token"][0, 0], state["vision_model.embeddings.class_embedding"])


def test_a_linear_patch_embedding_of_siglip_2():
    pixels = np.random.default_rng(0).standard_normal((7, 7, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).standard_normal((12, 7 * 7 * 3)).astype(np.float32)
    names = {"vision_model.embeddings.patch_embedding.weight": kernel}
    conv = huggingface.to_timm(names)["patch_embed.proj.weight"]
    np.testing.assert_allclose(
        np.einsum("ohwc,hwc->o", conv.transpose(0, 2, 3, 1), pixels), kernel @ pixels.ravel(), rtol=1e-4
    )


def test_deit_of_transformers():
    model = build("deit_distilled")
    state = random_state(model)
    theirs = {name.replace("vit.", "deit."): array for name, array in of_transformers(state, 0).items()}
    theirs["cls_classifier.weight"] = theirs.pop("classifier.weight")
    theirs["cls_classifier.bias"] = theirs.pop("classifier.bias")
    assert_equal_states(to_torch(model, from_torch(model, theirs)), state)


def test_clips_projection_is_the_head():
    model = build(pre_norm=True, num_classes=7)
    state = random_state(model)
    state["head.bias"][:] = 0
    theirs = of_transformers(state, 2)
    theirs["visual_projection.weight"] = theirs.pop("classifier.weight")
    del theirs["classifier.bias"]
    assert_equal_states(to_torch(model, from_torch(model, theirs)), state)


@pytest.mark.parametrize("hub", [True, False])
def test_registers_of_dinov2(hub):
    """In DINOv2's own files and in transformers the class token has a position, the registers have none."""
    model = build(reg_tokens=2, no_embed_class=True, **BARE)
    state = random_state(model)
    first = np.full((1, 1, 12), 0.25, np.float32)
    theirs = dict(state)
    theirs["cls_token"] = state["cls_token"] - first
    theirs["pos_embed"] = np.concatenate([first, state["pos_embed"]], axis=1)
    registers = theirs.pop("reg_token")
    if hub:
        theirs |= {"register_tokens": registers, "mask_token": np.ones((1, 12), np.float32)}
    else:
        theirs = of_transformers(theirs, 1)
        theirs["dinov2.embeddings.register_tokens"] = registers
        theirs["dinov2.embeddings.mask_token"] = np.ones((1, 12), np.float32)
    got = to_torch(model, from_torch(model, theirs))
    np.testing.assert_allclose(got.pop("cls_token"), state.pop("cls_token"), rtol=0, atol=1e-6)
    assert_equal_states(got, state)


def test_dinov2_files_without_registers_and_in_chunks():
    model = build(**BARE)
    state = random_state(model)
    mask = {"mask_token": np.ones((1, 12), np.float32)}
    assert_equal_states(to_torch(model, from_torch(model, state | mask)), state)
    chunks = {name.replace("blocks.", "blocks.0."): array for name, array in state.items()} | mask
    assert_equal_states(to_torch(model, from_torch(model, prefixed(chunks, "teacher.backbone."))), state)


def test_a_layer_without_its_key(model, state):
    theirs = of_transformers(state, 0)
    del theirs["vit.encoder.layer.1.attention.attention.key.weight"]
    assert "layer 1 has only q, v" in error_of(model, theirs)


# big_vision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("prefix", ["params/", "params/img/"])
def test_big_vision(tmp_path, model, state, prefix, scanned):
    arrays = {}
    for name, array in google_arrays(state, 3).items():
        name = name.replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
        name = name.replace("LayerNorm_2", "LayerNorm_1").replace("MlpBlock_3", "MlpBlock_0")
        arrays[name.replace("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")] = array
    if scanned:
        first = [name for name in arrays if "encoderblock_0/" in name]
        for name in first:
            layers = [arrays.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(TINY["depth"])]
            arrays[name.replace("encoderblock_0/", "encoderblock/", 1)] = np.stack(layers)
    arrays = prefixed(arrays, prefix)
    if prefix == "params/img/":
        arrays |= {"params/t": np.ones(1), "params/txt/head/kernel": np.ones((2, 2))}
    np.savez(tmp_path / "a.npz", **arrays)
    assert_equal_states(to_torch(model, load(model, tmp_path / "a.npz")), state)


# Files of transformers -----------------------------------------------------------------------------------------------


def shards(folder, state, suffix):
    """A checkpoint in two files and its index."""
    names, index = sorted(state), {}
    write = {"safetensors": _safetensors, "bin": _torch}[suffix]
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        write({name: state[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    path = folder / f"{stem}.{suffix}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return path


def _safetensors(state, path):
    import safetensors.numpy

    safetensors.numpy.save_file(state, path)


def _torch(state, path):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files_and_folders_of_transformers(tmp_path, model, state, suffix):
    theirs = of_transformers(state, 0)
    index = shards(tmp_path, theirs, suffix)
    for path in (index, tmp_path):
        assert_equal_states(to_torch(model, load(model, path)), state)
    assert read_state_dict(index).keys() == state.keys()
    index.unlink()
    assert "no weights in this folder" in call_error(load, model, tmp_path)
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    {"safetensors": _safetensors, "bin": _torch}[suffix](theirs, tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        assert_equal_states(to_torch(model, load(model, path)), state)


def test_a_damaged_index(tmp_path, model, state):
    index = shards(tmp_path, state, "safetensors")
    content = json.loads(index.read_text())
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "elsewhere.safetensors")
    assert "model-00002-of-00002.safetensors', which is not there" in call_error(load, model, index)
    content["weight_map"] = dict.fromkeys(content["weight_map"], "model-00001-of-00002.safetensors")
    index.write_text(json.dumps(content))
    assert "promises" in call_error(load, model, index)
    for place in ("../x.safetensors", "x.txt", "model.safetensors.index.json", 3):
        index.write_text(json.dumps({"weight_map": {"cls_token": place}}))
        assert str(place) in call_error(load, model, index)
    for text in ("[]", "{", '{"weight_map": {}}', "\ufeff{}"):
        index.write_text(text, encoding="utf-8")
        assert "index.json" in call_error(load, model, index)


# What is saved can be loaded -----------------------------------------------------------------------------------------

TYPES = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float6_e2m3fn"]


@pytest.mark.parametrize("kind", [".safetensors", ".npz", ".pth", ".orbax"])
def test_every_type_in_every_format(tmp_path, model, state, kind):
    import jax
    import ml_dtypes

    if kind == ".pth":
        pytest.importorskip("torch")
    variables = from_torch(model, state)
    for name in TYPES[: 5 if kind == ".orbax" else None]:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        given = jax.tree.map(lambda leaf, dtype=dtype: np.asarray(leaf).astype(dtype), variables)
        save(model, given, tmp_path / f"{name}{kind}")
        got = load(model, tmp_path / f"{name}{kind}")
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(given), strict=True):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, other.astype(np.float32), err_msg=name)
    whole = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.int32), variables)
    assert "int32" in call_error(save, model, whole, tmp_path / f"whole{kind}")
