"""Weights files of every kind: there and back, foreign layouts, truncated files, the convert command."""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_dicts import TINY, assert_equal_states, build, random_state
from test_convert import FAMILIES, LIFE

from slimvit_jax.__main__ import parser_of
from slimvit_jax.convert import from_torch, google, hub, io, load, save, to_torch
from slimvit_jax.errors import SlimError

KINDS = [".safetensors", ".npz", ".pth", "", ".orbax"]


def need_torch(kind):
    if kind == ".pth":
        pytest.importorskip("torch")


def error_of(function, *args, **options):
    with pytest.raises(SlimError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(tmp_path, kind, **options):
    """(model, state dict, path) of a file just written."""
    need_torch(kind)
    model = build(**options)
    state = random_state(model)
    path = tmp_path / f"weights{kind}"
    save(model, from_torch(model, state), path)
    return model, state, path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["distilled", "life regression"])
def test_there_and_back(tmp_path, family, kind):
    need_torch(kind)
    name, options = FAMILIES[family]
    model = build(name, **options)
    state = random_state(model)
    path = tmp_path / "new" / f"weights{kind}"
    save(model, from_torch(model, state), path)
    assert_equal_states(to_torch(model, load(model, path)), state)
    other = {key: array + 1 for key, array in state.items()}
    assert "overwrite=True" in error_of(save, model, from_torch(model, other), path)
    save(model, from_torch(model, other), str(path), overwrite=True)
    assert_equal_states(to_torch(model, load(model, str(path))), other)
    assert os.listdir(tmp_path / "new") == [path.name]  # nothing temporary left


@pytest.mark.parametrize("kind", KINDS)
def test_options_reach_every_kind(tmp_path, kind):
    _, state, path = saved(tmp_path, kind)
    model = build(img_size=(28, 42), num_classes=3, **LIFE)
    message = error_of(load, model, path)
    assert str(path) in message and "life_predictor" in message and "head.weight" in message
    variables = load(model, path, init_missing=("life_predictor", "head"), resample_pos_embed=True)
    assert np.array_equal(variables["params"]["norm"]["scale"], state["norm.weight"])
    assert variables["params"]["pos_embed"].shape == (1, 25, 12)


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_wrapped_pth(tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    model = build()
    state = random_state(model)
    tensors = {f"module.{name}": torch.from_numpy(array).half() for name, array in state.items()}
    torch.save({wrapper: tensors, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "a.pth")
    want = {name: array.astype(np.float16).astype(np.float32) for name, array in state.items()}
    assert_equal_states(to_torch(model, load(model, tmp_path / "a.pth")), want)


def test_pth_with_other_objects_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    assert "a.pth" in error_of(load, build(), tmp_path / "a.pth")
    torch.save([torch.zeros(1)], tmp_path / "b.pth")
    assert "holds a list" in error_of(load, build(), tmp_path / "b.pth")


def test_bfloat16_safetensors(tmp_path):
    import safetensors.flax

    model = build()
    state = {name: jnp.asarray(array, jnp.bfloat16) for name, array in random_state(model).items()}
    safetensors.flax.save_file(state, tmp_path / "a.safetensors")
    want = {name: np.asarray(array.astype(jnp.float32)) for name, array in state.items()}
    assert_equal_states(to_torch(model, load(model, tmp_path / "a.safetensors")), want)


# Google's layout -----------------------------------------------------------------------------------------------------


def google_arrays(state, heads, prefix=""):
    """A timm state dict as the arrays of Google's .npz files."""
    names = {timm: theirs for theirs, timm in google.TOP.items()}
    width = state["cls_token"].shape[-1]
    arrays = {}
    for name, array in state.items():
        if name in names:
            theirs = names[name]
            axes = (2, 3, 1, 0) if array.ndim == 4 else (1, 0)
            arrays[theirs] = array.transpose(axes) if theirs.endswith("kernel") else array
            continue
        _, index, rest = name.split(".", 2)
        base = f"Transformer/encoderblock_{index}/"
        if rest.startswith("attn.qkv"):
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                leaf = f"{base}MultiHeadDotProductAttention_1/{part}/"
                if array.ndim == 2:
                    arrays[leaf + "kernel"] = rows.T.reshape(width, heads, -1)
                else:
                    arrays[leaf + "bias"] = rows.reshape(heads, -1)
        elif rest == "attn.proj.weight":
            arrays[base + "MultiHeadDotProductAttention_1/out/kernel"] = array.T.reshape(heads, -1, width)
        else:
            theirs = {timm: key for key, timm in google.BLOCK.items()}[rest]
            arrays[base + theirs] = array.T if theirs.endswith("kernel") else array
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_google_npz(tmp_path, prefix):
    model = build()
    state = random_state(model)
    np.savez(tmp_path / "google.npz", **google_arrays(state, 3, prefix))
    assert_equal_states(to_torch(model, load(model, tmp_path / "google.npz")), state)


def test_google_npz_as_timm_reads_it(tmp_path):
    from timm_reference import timm

    model = build()
    np.savez(tmp_path / "google.npz", **google_arrays(random_state(model), 3))
    theirs = timm.create_model("vit_tiny_patch16_224", **TINY)
    theirs.load_pretrained(str(tmp_path / "google.npz"))
    want = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert_equal_states(to_torch(model, load(model, tmp_path / "google.npz")), want)


# Bad files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".safetensors", ".npz", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files(tmp_path, kind, share):
    model, _, path = saved(tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = error_of(load, model, path)
    assert str(path) in message and len(message) < 500


@pytest.mark.parametrize("kind", [".safetensors", ".npz", ".pth"])
def test_files_of_something_else(tmp_path, kind):
    need_torch(kind)
    path = tmp_path / f"weights{kind}"
    path.write_bytes(b"<html>not found</html>" * 50)
    assert str(path) in error_of(load, build(), path)


def test_damaged_orbax_directory(tmp_path):
    model, _, path = saved(tmp_path, "")
    for root, _, files in os.walk(path):
        for name in files:
            if root != str(path):
                os.truncate(os.path.join(root, name), 5)
    assert str(path) in error_of(load, model, path)
    (tmp_path / "empty").mkdir()
    assert "empty" in error_of(load, model, tmp_path / "empty")


def test_paths_that_cannot_be(tmp_path):
    model = build()
    variables = from_torch(model, random_state(model))
    assert "no such file" in error_of(load, model, tmp_path / "none.safetensors")
    (tmp_path / "a.h5").write_bytes(b"")
    assert ".safetensors" in error_of(load, model, tmp_path / "a.h5")
    assert ".safetensors" in error_of(save, model, variables, tmp_path / "b.bin")
    (tmp_path / "c.npz").mkdir()
    assert "is a directory" in error_of(save, model, variables, tmp_path / "c.npz")
    (tmp_path / "d").write_text("")
    assert "is a file" in error_of(save, model, variables, tmp_path / "d")
    assert "cannot be written" in error_of(save, model, variables, tmp_path / "d" / "e.npz")
    with open(tmp_path / "f.npz", "wb") as file:
        np.save(file, np.zeros(3))
    assert "single array" in error_of(load, model, tmp_path / "f.npz")
    np.savez(tmp_path / "g.npz", cls_token=np.array([{}], dtype=object))
    assert "g.npz" in error_of(load, model, tmp_path / "g.npz")


def test_a_folder_of_other_files_is_never_replaced(tmp_path, monkeypatch):
    model = build()
    variables = from_torch(model, random_state(model))
    other = tmp_path / "results"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (other / "link").symlink_to(other)
    monkeypatch.chdir(other)
    for path in (other, "", ".", "..", "/", tmp_path, other / "link", f"{other}/"):
        for overwrite in (False, True):
            assert error_of(save, model, variables, path, overwrite=overwrite)
    (tmp_path / "empty").mkdir()
    assert "save did not write it" in error_of(save, model, variables, tmp_path / "empty", overwrite=True)
    source = tmp_path / "w.npz"
    save(model, variables, source)
    for path in (other, ".", ""):
        assert error_of(run, source, path, "--model", "vit", "--overwrite", *SETTINGS)
    assert (other / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(other)) == ["link", "notes.txt"]
    assert sorted(os.listdir(tmp_path)) == ["empty", "results", "w.npz"]


def test_only_what_save_wrote_is_replaced(tmp_path):
    import orbax.checkpoint as ocp

    model, state, path = saved(tmp_path, "")
    variables = from_torch(model, state)
    assert "overwrite=True replaces it" in error_of(save, model, variables, path)
    (path / "d" / "notes.txt").write_text("mine")
    assert "notes.txt" in error_of(save, model, variables, path, overwrite=True)
    (path / "d" / "notes.txt").unlink()
    save(model, variables, path, overwrite=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "theirs", {"params": {"x": np.ones(3)}})
    assert "save did not write it" in error_of(save, model, variables, tmp_path / "theirs", overwrite=True)
    os.mkfifo(tmp_path / "pipe.npz")
    assert "no file to write to" in error_of(save, model, variables, tmp_path / "pipe.npz", overwrite=True)
    file, link = tmp_path / "a.npz", tmp_path / "link.npz"
    save(model, variables, file)
    link.symlink_to(file)
    other = {name: array + 1 for name, array in state.items()}
    save(model, from_torch(model, other), link, overwrite=True)  # what the link leads to
    assert link.is_symlink()
    assert_equal_states(to_torch(model, load(model, file)), other)


def test_a_folder_without_weights_is_one_line(tmp_path, capfd):
    model, _, path = saved(tmp_path, "")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("")
    assert "no weights in this folder" in error_of(load, model, tmp_path / "folder")
    (path / "_METADATA").write_text("{")
    assert "Orbax" in error_of(load, model, path)
    (path / "manifest.ocdbt").unlink()
    assert "Orbax" in error_of(load, model, path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_save_leaves_the_old_file(tmp_path, kind, monkeypatch):
    model, state, path = saved(tmp_path, kind)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointer.save", fail)
    assert "No space left" in error_of(save, model, from_torch(model, state), path, overwrite=True)
    monkeypatch.undo()
    assert_equal_states(to_torch(model, load(model, path)), state)
    assert os.listdir(tmp_path) == [path.name]


def test_pth_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"")
    assert "need torch" in error_of(load, build(), tmp_path / "a.pth")


# The hub -------------------------------------------------------------------------------------------------------------


def test_hub_names():
    assert hub.repository("hf-hub:timm/deit_small_patch16_224") == "timm/deit_small_patch16_224.fb_in1k"
    assert hub.repository("hf-hub:someone/else") == "someone/else"
    assert "OWNER/NAME" in error_of(hub.repository, "hf-hub:deit_small_patch16_224")


def test_hub_without_network(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", fail)
    message = error_of(load, build(), "hf-hub:timm/deit_tiny_patch16_224")
    assert "cannot reach huggingface.co" in message
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: [])
    assert "could not be downloaded" in error_of(load, build(), "hf-hub:timm/deit_tiny_patch16_224")


def test_hub_download(tmp_path, monkeypatch):
    model, state, path = saved(tmp_path, ".safetensors")
    asked = []

    def download(repo, name, **options):
        asked.append((repo, name))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert_equal_states(to_torch(model, load(model, "hf-hub:timm/deit_tiny_patch16_224")), state)
    assert asked == [("timm/deit_tiny_patch16_224.fb_in1k", "model.safetensors")]


def test_hub_repositories_of_transformers(tmp_path, monkeypatch):
    """Without model.safetensors: an index and its shards; what is in the cache needs no network."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    model, state, _ = saved(tmp_path, ".npz")
    from test_convert_layouts import shards

    index = shards(tmp_path, state, "safetensors")
    here, asked = set(), []

    def download(repo, name, local_files_only=False):
        asked.append(name)
        if local_files_only and name not in here:
            raise OSError("not in the cache")
        if not (tmp_path / name).exists():
            error = RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
            error.args = ("404",)
            raise error
        here.add(name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: [])
    for _ in range(2):
        assert_equal_states(to_torch(model, load(model, "hf-hub:someone/else")), state)
        monkeypatch.setattr("socket.getaddrinfo", lambda *args: pytest.fail("asked for the network"))
    assert here == {index.name, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


# The command ---------------------------------------------------------------------------------------------------------


def run(*words):
    args = parser_of("convert").parse_args(["convert", *map(str, words)])
    return args.run(args)


SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def test_command(tmp_path, capsys):
    model, state, path = saved(tmp_path, ".npz")
    target = tmp_path / "out.safetensors"
    assert run(path, target, "--model", "vit", *SETTINGS) == 0
    assert "out.safetensors" in capsys.readouterr().out
    assert_equal_states(to_torch(model, load(model, target)), state)
    assert "exists" in error_of(run, path, target, "--model", "vit", *SETTINGS)
    words = ["--method", "life_regression", "--set", "locations=(1, 2)", "--init-missing", "life_predictor"]
    assert run(path, target, "--model", "vit", "--overwrite", *SETTINGS, *words) == 0
    assert load(build(**LIFE), target)["params"]["slim"]


def test_command_errors(tmp_path):
    _, _, path = saved(tmp_path, ".npz")
    assert "b.bin" in error_of(run, path, tmp_path / "b.bin", "--model", "vit")
    assert "did you mean" in error_of(run, path, tmp_path / "b.npz", "--model", "deit_smal_patch16_224")
    assert "KEY=VALUE" in error_of(run, path, tmp_path / "b.npz", "--model", "vit", "--set", "img_size")
    assert "embed_dim 12" in error_of(run, path, tmp_path / "b.npz", "--model", "deit_tiny_patch16_224")
    assert not (tmp_path / "b.npz").exists()


def test_variables_on_devices_or_not(tmp_path):
    model, state, _ = saved(tmp_path, ".npz")
    host = jax.device_get(from_torch(model, state))
    save(model, host, tmp_path / "host")
    assert_equal_states(to_torch(model, load(model, tmp_path / "host")), state)
    assert io.read_state_dict(tmp_path / "host").keys() == state.keys()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_can_be_read_by_whom_the_umask_says(tmp_path, suffix):
    model = build()
    file, other = tmp_path / f"weights{suffix}", tmp_path / "other"
    save(model, from_torch(model, random_state(model)), file)
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode
