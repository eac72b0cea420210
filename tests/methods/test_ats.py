"""ATS: parity with the official code, padding, sampling."""

from __future__ import annotations

import jax
import numpy as np
from golden import close, golden_run, run, small

from slimvit_jax.ops import cluster

TINY = dict(img_size=24, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5)  # 36 patches
built = lambda method=None, family="vit", **options: small(family, method, **TINY | options)
TWO = dict(locations=(2, 3))
IMAGES = jax.random.normal(jax.random.key(7), (3, 24, 24, 3))


def test_golden_samples():
    golden, model, _, aux = golden_run("ats")
    held = np.tile(np.arange(196), (2, 1))
    for kept, layer in zip(aux.kept, (3, 6, 9), strict=True):
        close(model.slim.points[layer + 1], golden.out(f"sample_steps_layer{layer}"), 1e-6)
        official = golden.out(f"kept_layer{layer}")
        held = np.where(official >= 0, np.take_along_axis(held, np.maximum(official, 0), axis=1), -1)
        np.testing.assert_array_equal(kept[:, : held.shape[1]], held)
        assert (kept[:, held.shape[1] :] == -1).all()


def test_averages_leave_padding_out():
    model, variables = built("ats", **TWO, global_pool="avg", fc_norm=False)
    logits, aux = run(model, variables, IMAGES)
    there = np.asarray(aux.kept[-1] >= 0)
    assert not there.all()
    patches = np.asarray(aux.features[:, 1:])
    pooled = np.stack([p[m].mean(0) for p, m in zip(patches, there, strict=True)])
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)


def test_keeping_everything_still_samples():
    model, variables = built("ats", **TWO, keep_rate=(1.0, 0.2))
    _, aux = run(model, variables, IMAGES)
    assert [k.shape[1] for k in aux.kept] == [36, len(cluster.quantiles(8))] and (aux.kept[0] == -1).any()
    assert not (aux.kept[1][:, 0] == -1).any()
