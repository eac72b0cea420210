"""Evaluation: every image once, standard errors, imposed orders, speed in turns."""

import math

import jax
import numpy as np
import pytest

import slimvit_jax as slim
from slimvit_jax.inference import evaluate as ev

TINY = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=3, num_heads=2, num_classes=7)


@pytest.fixture(scope="module")
def inference():
    model = slim.create_model("vit", method="life_regression", locations=(1, 2), keep_rate=0.5, **TINY)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    return ev.Inference(model, variables)


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 8, 8, 1), np.float32)


def batches(x, labels, size=4):
    """Batches of `size`, the last one padded as eval_batches pads."""
    for start in range(0, len(x), size):
        part, label = x[start : start + size], labels[start : start + size]
        pad = size - len(part)
        yield {
            "image": np.concatenate([part, np.zeros((pad, *x.shape[1:]), np.float32)]),
            "label": np.concatenate([label, np.full(pad, -1)]),
            "mask": np.array([1.0] * len(part) + [0.0] * pad, np.float32),
        }


def test_every_image_counts_once(inference):
    x = images(10)
    logits = np.asarray(inference(x).logits)
    labels = logits.argmax(1)
    labels[:3] = (labels[:3] + 1) % 7
    done = []
    result = ev.evaluate(inference, None, batches(x, labels), progress=done.append)
    assert (result.correct, result.count, result.hits.tolist()) == (7, 10, [False] * 3 + [True] * 7)
    assert result.top1 == 0.7 and result.stderr == pytest.approx(math.sqrt(0.7 * 0.3 / 10))
    assert done[-1] == 12 and result.scores.shape == (10, 16)
    order = np.argsort(-logits, 1)[:, :5]
    assert result.correct5 == sum(label in row for label, row in zip(labels, order, strict=True))
    log_share = np.log(ev.probabilities(logits))
    assert result.loss == pytest.approx(-log_share[np.arange(10), labels].mean(), rel=1e-5)


def test_label_distributions_count_as_their_largest_class(inference):
    x = images(4)
    labels = np.asarray(inference(x).logits).argmax(1)
    result = ev.evaluate(inference, None, [{"image": x, "label": np.eye(7)[labels]}])
    assert result.correct == result.count == 4


def test_no_images_and_foreign_labels_are_errors(inference):
    with pytest.raises(slim.SlimError, match="no images"):
        ev.evaluate(inference, None, [])
    with pytest.raises(slim.SlimError, match="classes 0..6"):
        ev.evaluate(inference, None, [{"image": images(1), "label": np.array([9])}])


def test_imposed_lives_change_what_is_kept(inference):
    x = images(2)
    lives = np.tile(np.arange(16, dtype=np.float32), (2, 1))
    kept = inference(x, lives).kept
    assert sorted(np.asarray(kept[0])[0].tolist()) == list(range(8, 16))
    first, again = ev.random_lives(16, 3)(5, 2), ev.random_lives(16, 3)(6, 1)
    assert np.array_equal(first[1], again[0]), "the order of an image does not depend on the batches"


def test_paired_difference_is_that_of_the_differences():
    first, second = np.array([1, 1, 0, 1]), np.array([1, 0, 0, 0])
    mean, error = ev.paired_difference(first, second)
    assert mean == 0.5 and error == pytest.approx(np.std([0, 1, 0, 1], ddof=1) / 2)
    assert ev.paired_difference([1], [0]) == (1.0, math.inf)


def test_other_weights_compile_nothing(inference, caplog):
    doubled = inference.with_variables(jax.tree.map(lambda a: 2 * a, inference.variables))
    with jax.log_compiles():
        first = inference(images(3)).logits
        assert "Compiling jit(forward)" in caplog.text
        caplog.clear()
        assert not np.allclose(doubled(images(3)).logits, first)
        assert "Compiling jit(forward)" not in caplog.text


def test_speed_takes_turns_and_medians(inference):
    speeds = ev.measure_speed({"a": inference, "b": inference}, 4, rounds=3, min_seconds=0.001)
    assert set(speeds) == {"a", "b"} and all(len(s.seconds) == 3 for s in speeds.values())
    assert ev.Speed(8, (1.0, 4.0, 2.0)).images_per_second == 4.0


def test_parameters_are_counted_without_allocating():
    assert ev.count_parameters(slim.create_model("deit_small_patch16_224")) == 22_050_664
