"""benchmarks.fidelity: its schedules, its cells, and a run of a few on the digits."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slimvit_jax as slim
from benchmarks import coverage_orders, fidelity
from benchmarks.study_cells import reference_flops
from slimvit_jax.methods.life_regression import LifeRegression

MODEL = dict(img_size=32, patch_size=4, in_chans=1, embed_dim=32, depth=12, num_heads=2, num_classes=10)  # 64 patches


def test_cells_cost_what_they_should():
    cells = list(fidelity.all_cells("vit", MODEL))
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        if cell.group == "compare" and cell.method not in (None, "tome"):
            cost = slim.flops(slim.create_model("vit", method=cell.method, **MODEL, **cell.options)).total
            assert cost == pytest.approx(reference_flops(MODEL, cell.rate), rel=0.03), cell.name


def test_the_most_redundant_dies_first():
    """Of 0, 10, 11 and 90 degrees: 10 joins 11, then 0 joins those two, then 90, which weighs less than the three."""
    angles = np.deg2rad([0.0, 10.0, 11.0, 90.0])
    patches = np.stack([np.cos(angles), np.sin(angles)], axis=1)[None]
    assert coverage_orders.elimination_ranks(jnp.asarray(patches)).tolist() == [[2, 3, 0, 1]]


def test_an_order_made_anew():
    """With a single drop it is coverage's own; with more, other patches stay."""
    images, small = jax.random.normal(jax.random.key(0), (4, 32, 32, 1)), MODEL | {"depth": 4, "embed_dim": 16}
    variables = jax.jit(slim.create_model("vit", **small).init)(jax.random.key(1), images)

    def kept(kind, locations):
        options = dict(keep_rate=0.5, locations=locations, lives="coverage", squeeze="mean")
        model = slim.create_model("vit", method=kind(**options), **small)
        return np.sort(jax.jit(functools.partial(model.apply, return_aux=True))(variables, images)[1].kept[-1])

    one, three = ([kept(LifeRegression, at), kept(coverage_orders.Remade, at)] for at in ((1,), (1, 2, 3)))
    assert np.array_equal(*one) and not np.array_equal(*three)
    assert three[0].shape == three[1].shape


def test_a_run_goes_on_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    options = {**MODEL, "embed_dim": 16, "num_heads": 1}
    words = [f"--config.model.options.{name}={value}" for name, value in options.items()]
    args = ["--config=configs/digits.py", f"--out={out}", "--split=test[:20]", *words]
    assert fidelity.main([*args, "--only=compare/(1/dense|0.7/random, squeezed)"]) == 0
    dense, slimmed = (json.loads(line) for line in out.read_text().splitlines())
    assert dense["cosine"] == pytest.approx(1) and dense["accuracy"] == pytest.approx(dense["accuracy"])
    assert slimmed["images"] == 20 and 0 < slimmed["cosine"] < 1 and slimmed["flops"] < dense["flops"]
    before = out.read_text()
    assert fidelity.main([*args, "--only=compare/1/dense"]) == 0 and out.read_text() == before
    assert fidelity.main([*args[:2], "--split=train", *words, "--only=compare/1/dense"]) == 2
    assert fidelity.main([*args, "--only=nothing"]) == 2
    said = capsys.readouterr().err
    assert "rows of another split" in said and "matches no cell" in said
