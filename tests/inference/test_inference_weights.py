"""What only training reads: declared exactly, left out of inference files, artifacts and counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_variables

import slimvit_jax as slim
from slimvit_jax.__main__ import main
from slimvit_jax.convert import rules
from slimvit_jax.inference.evaluate import count_parameters

SMALL = dict(img_size=32, in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=5)
PYRAMID = dict(img_size=64, in_chans=1, embed_dim=(16, 24), depth=(2, 2), num_heads=(2, 3), key_dim=8, num_classes=5)
SIT = ("lvvit", {"method": "sit", "locations": (1, 2), **SMALL})
CASES = {
    "sit": SIT,
    "lvvit": ("lvvit", SMALL),
    "levit": ("levit_distilled", PYRAMID),
    "evo_levit": ("evo_levit", PYRAMID | {"distilled": True}),
    **{
        name: ("deit_distilled", SMALL | {"method": name, "patch_size": 8})
        for name in slim.list_methods()
        if name not in ("sit", "ia_red2", "evo", "kmedoids")
    },
    **{name: ("vit", SMALL | {"method": name, "patch_size": 8, "locations": (2, 3)}) for name in ("evo", "kmedoids")},
    "ia_red2": ("vit", SMALL | {"method": "ia_red2", "patch_size": 8, "locations": (1, 2)}),
}
#: Read when an LV-ViT labels patches (`label_tokens`), not when it classifies; the papers count it.
KEPT = {"aux_head/kernel", "aux_head/bias"}


@functools.cache
def build(case):
    name, options = CASES[case]
    fields = slim.methods.METHODS[options["method"]].__dataclass_fields__ if "method" in options else {}
    more = {"locations": (1, 2)} if "locations" in fields and "locations" not in options else {}
    return slim.create_model(name, **options, **more)


@pytest.mark.parametrize("case", CASES)
def test_training_only_is_what_inference_does_not_read(case):
    model = build(case)
    images = jax.ShapeDtypeStruct((2, *model.img_size, 1), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.img_size, 1)))
    paths = ["/".join(key.key for key in path[1:]) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x))(shapes, images).jaxpr
    read = {id(v) for equation in program.eqns for v in equation.invars}
    unread = {path for path, v in zip(paths, program.invars, strict=False) if id(v) not in read}
    owned = [leaf.path for leaf in rules.expected(model).values()]
    assert unread - KEPT == {"/".join(path[1:]) for path in owned if rules.is_training_only(model, path)}


@pytest.mark.parametrize("case", ["sit", "evo", "evo_levit"])
def test_inference_files_lack_it_and_compute_the_same(case, tmp_path):
    model = build(case)
    variables = random_variables(model)
    file = tmp_path / "weights.safetensors"
    slim.save(model, variables, file, inference=True)
    with pytest.raises(slim.SlimError, match="missing"):
        slim.load(model, file)
    loaded = slim.load(model, file, inference=True)
    names = set(slim.to_torch(model, loaded, inference=True))
    assert names < set(slim.to_torch(model, variables)) and not any("rtsm" in n or "cls." in n for n in names)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(v["params"])) for v in (loaded, variables)]
    assert sizes == [count_parameters(model), count_parameters(model) + count_parameters(model, training=True)]
    slim.save(model, variables, tmp_path / "all.safetensors")
    again = slim.load(model, tmp_path / "all.safetensors", inference=True)  # left out where it is there
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, again))
    images = np.random.default_rng(0).normal(size=(2, *model.img_size, 1)).astype(np.float32)
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(variables, images), apply(loaded, images))


def test_the_exported_artifact_has_no_recovery_modules(tmp_path):
    model = build("sit")
    variables = random_variables(model)
    without = {p: leaf for p, leaf in rules.flatten(variables).items() if not rules.is_training_only(model, p)}
    path = tmp_path / "sit.stablehlo"
    sizes = []
    for kept in (variables, rules.unflatten(without)):
        slim.export(model, kept, path, batch_size=2, platforms=["cpu"])
        sizes.append(path.stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 0.05 * 4 * count_parameters(model, training=True)


def test_the_commands(tmp_path, capsys):
    model = build("sit")
    slim.save(model, random_variables(model), tmp_path / "all.safetensors")
    options = [f"--set={k}={v}" for k, v in SMALL.items()] + ["--set=locations=(1, 2)"]
    files = [str(tmp_path / name) for name in ("all.safetensors", "small.npz")]
    assert main(["convert", *files, "--model=lvvit", "--method=sit", "--inference", *options]) == 0
    weights = ["--weights", files[1], "--model=lvvit", "--method=sit", *options]
    assert main(["evaluate", "--data=digits", "--batch-size=360", *weights, "--set=num_classes=10"]) == 2  # 5 classes
    assert "head.weight is (5, 16), the model has (10, 16)" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "sit.stablehlo"), "--batch-size=1", *weights]) == 0
    assert main(["models", "sit_s", "--json"]) == 0
    assert '"training_parameters": 11' in capsys.readouterr().out
