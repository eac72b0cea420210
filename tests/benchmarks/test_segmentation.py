"""The segmentation probe of the benchmarks: its scenes, its arithmetic, and that it learns."""

import numpy as np
import pytest

from benchmarks import scenes, segmentation

K = len(scenes.CLASSES)


def test_a_scene_has_its_objects_where_its_classes_are():
    photo = np.full((224, 224, 3), 200, np.uint8)
    objects = np.zeros((2, 28, 28), np.uint8)
    objects[:, 8:20, 10:18] = 100  # 96 of 784 pixels
    picture, mask = scenes.scene(photo, objects, np.asarray([0, 9]), np.random.default_rng(0))
    assert set(np.unique(mask)) == {0, 1, 10} and (picture[mask == 0] == 200).all() and (picture[mask > 0] < 120).all()
    side = np.sqrt((mask == 10).sum() * 784 / 96)
    assert scenes.SMALLEST - 2 < side < scenes.LARGEST + 2
    share = scenes.shares(mask[None], 14)
    assert share.shape == (1, 16, 16, K) and np.allclose(share.sum(axis=-1), 1)
    assert share[..., 10].sum() * 14 * 14 == pytest.approx((mask == 10).sum())
    any_object = scenes.shares(scenes.classes_of(mask[None], "objects"), 14, 2)
    np.testing.assert_allclose(any_object, np.stack([share[..., 0], 1 - share[..., 0]], axis=-1), atol=1e-6)
    assert set(np.unique(scenes.classes_of(mask, "kinds"))) == {0, 1, 4}  # a T-shirt and an ankle boot


def test_mean_iou_by_hand():
    truth, said = np.asarray([[[0, 0], [1, 1]]]), np.asarray([[[0, 1], [1, 1]]])
    counts = segmentation.confusion(truth, said)
    assert counts.shape == (1, K, K) and segmentation.mean_iou(counts[0]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    both = np.concatenate([counts, counts])
    same = segmentation.compare(both, both)
    assert same["less"] == same["less_stderr"] == 0 and same["miou"] == pytest.approx(7 / 12)


def test_the_probe_learns_what_is_linear():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (6, 16, 16))
    features = np.eye(3, 8, dtype=np.float32)[classes] + 0.1 * rng.standard_normal((6, 16, 16, 8)).astype(np.float32)
    probe = segmentation.Probe(features, np.eye(K, dtype=np.float32)[classes])
    pixels = probe.classes(features[:1])[0]
    assert pixels.shape == (224, 224) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[7::14, 7::14], classes[0])


def test_the_table():
    task = {"miou": 0.4, "miou_stderr": 0.01, "less": -0.1, "less_stderr": 0.005, "dense_probe": 0.35}
    row = {"rate": 0.5, "method": "ToMe", "flops_share": 0.53, "objects": task, "kinds": {**task, "miou": 0.2}}
    better = {**row, "method": "ATC", "kinds": {**task, "miou": 0.3}}
    about = {"scenes": [6, 3], "data": "woof", "model": "m", "source": "s"}
    lines = segmentation.table({"about": about, "rows": [row, better]}).splitlines()
    shared = "0.53 | 40.0 ± 1.0 (35.0) | -10.0 ± 0.5"
    assert lines[-2:] == [
        f"| 0.5 | ATC | {shared} | 30.0 ± 1.0 (35.0) | -10.0 ± 0.5 |",
        f"| 0.5 | ToMe | {shared} | 20.0 ± 1.0 (35.0) | -10.0 ± 0.5 |",
    ]


def test_bad_input(capsys, tmp_path):
    words = ["--weights", str(tmp_path), "--data-dir", str(tmp_path)]
    assert segmentation.main([*words, "--methods", "none"]) == 2
    assert "'none' is none of life regression;" in capsys.readouterr().err
    assert segmentation.main([*words, "--scenes", "2"]) == 2
    assert segmentation.main(words) == 2
    assert "no vit_small_patch14_dinov2.safetensors in" in capsys.readouterr().err
