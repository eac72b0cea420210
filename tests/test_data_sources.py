"""Sources: the digits builder, image folders, IDX files, tfds data sets; and what each says about bad input."""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from slimvit_jax.data import Preprocess, eval_batches, open_source
from slimvit_jax.data.decode import decode, to_array
from slimvit_jax.data.digits import prepare, stratified_split
from slimvit_jax.data.idx import read_idx
from slimvit_jax.errors import SlimError


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits")
    prepare(directory)
    return directory


def write_folder(root, counts, split="train", size=(10, 12)):
    """An image folder with counts[class] random JPEGs per class."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(root / split / name / f"{i}.jpg")
    return root


def write_idx(path, array, open_=open):
    with open_(path, "wb") as file:
        file.write(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def test_digits_are_sklearns(digits_dir):
    digits = load_digits()
    train_ids, test_ids = stratified_split(digits.target)
    assert sorted([*train_ids, *test_ids]) == list(range(1797))
    for split, ids, size in (("train", train_ids, 1437), ("test", test_ids, 360)):
        source = open_source("digits", split, digits_dir)
        assert len(source) == size and source.num_classes == 10 and source.native_shape == (8, 8, 1)
        for i in range(0, size, 7):
            record = source[i]
            assert record["label"] == digits.target[ids[i]]
            pixels = to_array(decode(record["image"], 1))[..., 0]
            np.testing.assert_array_equal(np.rint(pixels / 255 * 16), digits.images[ids[i]])
    counts = np.bincount(digits.target[test_ids])
    assert np.abs(counts - np.bincount(digits.target) * 360 / 1797).max() < 1
    assert len(open_source("digits", "validation", digits_dir)) == 360
    assert "tensorflow" not in sys.modules


def test_digits_prepared_by_several_at_once(tmp_path):
    from slimvit_jax.data.digits.digits import Digits8x8

    def once(_):
        return len(prepare(tmp_path / "deep" / "er").as_data_source("test"))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(once, range(3))) == [360] * 3
    assert not list((tmp_path / "deep" / "er").glob(".preparing*"))
    assert Digits8x8(data_dir=str(tmp_path / "deep" / "er"), file_format="array_record").is_prepared()


def test_a_tfds_set_is_opened_by_name(digits_dir):
    source = open_source("digits8x8", "test", digits_dir)
    assert len(source) == 360 and len(pickle.loads(pickle.dumps(source))[5]["image"]) > 50
    assert len(open_source("digits8x8:1.0.0", "train", digits_dir)) == 1437
    for wrong, words in (
        (("digits8x9", "test", digits_dir), "unknown data source 'digits8x9'.*digits8x8"),
        (("digits8x8", "dev", digits_dir), "unknown split of digits8x8 'dev'.*test, train"),
        (("digits8x8:7.0.0", "test", digits_dir), "cannot open"),
    ):
        with pytest.raises(SlimError, match=words):
            open_source(*wrong)
    with pytest.raises(SlimError, match="Image feature of digits8x8 'picture'.*image"):
        open_source("digits8x8", "test", digits_dir, image_key="picture")


def test_folder(tmp_path):
    write_folder(tmp_path, {"b": 2, "a": 3})
    write_folder(tmp_path, {"a": 1, "b": 1}, "val")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / "déjà").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "train" / "a" / "déjà" / "vü.PNG")
    source = open_source("folder", "train", tmp_path)
    assert (len(source), source.class_names) == (6, ("a", "b"))
    assert [source[i]["label"] for i in range(6)] == [0, 0, 0, 0, 1, 1]
    assert any(source[i]["name"].endswith("vü.PNG") for i in range(4))
    assert len(open_source("folder", "validation", tmp_path)) == 2
    with pytest.raises(
        SlimError, match="unknown option of data source 'folder' 'keys'; choices: allow_missing_classes"
    ):
        open_source("folder", "train", tmp_path, keys=1)


@pytest.mark.parametrize(
    "layout, split, words",
    [
        (None, "train", "needs data_dir"),
        ({}, "train", "is not there"),
        ({"train": {"a": 1}}, "test", "unknown split of image folder .*'test'; choices: train"),
        ({"train": {}}, "train", "no class folders"),
        ({"train": {"a": 0, "b": 0}}, "train", "has no images"),
        ({"train": {"a": 1, "b": 0}}, "train", "classes without images: 'b'"),
        ({"train": {"a": 1, "b": 1}, "val": {"a": 1}}, "validation", "lacks classes of train/: 'b'"),
        ({"train": {"a": 1}, "val": {"a": 1, "z": 1}}, "val", "classes of .* that train/ has not: 'z'"),
    ],
)
def test_bad_folders(tmp_path, layout, split, words):
    root = tmp_path / "set"
    for part, counts in (layout or {}).items():
        (root / part).mkdir(parents=True)
        write_folder(root, counts, part)
    with pytest.raises(SlimError, match=words):
        open_source("folder", split, None if layout is None else root)


def test_missing_classes_can_be_accepted(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1})
    write_folder(tmp_path, {"b": 1}, "val")
    source = open_source("folder", "val", tmp_path, allow_missing_classes=True)
    assert source.num_classes == 2 and source[0]["label"] == 1


def fashion(directory, labels=None, images=None, prefix="t10k"):
    images = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3) if images is None else images
    labels = np.array([0, 9, 3, 3, 1], np.uint8) if labels is None else labels
    write_idx(directory / f"{prefix}-images-idx3-ubyte.gz", images, gzip.open)
    write_idx(directory / f"{prefix}-labels-idx1-ubyte", labels)
    return images, labels


def test_idx(tmp_path):
    images, labels = fashion(tmp_path)
    source = open_source("fashion_mnist", "validation", tmp_path)
    assert source.native_shape == (4, 3, 1) and source.class_names[9] == "Ankle boot"
    for i in range(5):
        np.testing.assert_array_equal(source[i]["image"][..., 0], images[i])
        assert source[i]["label"] == labels[i]
    with pytest.raises(SlimError, match="lacks the file train-images-idx3-ubyte"):
        open_source("fashion_mnist", "train", tmp_path)
    with pytest.raises(SlimError, match="no folder .*dataset-fashion-mnist"):
        open_source("fashion_mnist", "train", tmp_path / "none")
    fashion(tmp_path, np.array([0, 10, 0, 0, 0], np.uint8))
    with pytest.raises(SlimError, match=r"label of image 1 in fashion_mnist/test is 10; the 10 classes are 0\.\.9"):
        open_source("fashion_mnist", "test", tmp_path)
    fashion(tmp_path, np.array([0, 1], np.uint8))
    with pytest.raises(SlimError, match="5 images and 2 labels"):
        open_source("fashion_mnist", "test", tmp_path)
    fashion(tmp_path, np.zeros(0, np.uint8), np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(SlimError, match="claims the shape"):
        open_source("fashion_mnist", "test", tmp_path)


def test_idx_fuzz(tmp_path):
    """Truncations and bit flips give the array or a SlimError: never another error, never a huge allocation."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (6, 5, 4), np.uint8)
    write_idx(tmp_path / "plain", image)
    write_idx(tmp_path / "packed.gz", image, gzip.open)
    for name in ("plain", "packed.gz"):
        good = (tmp_path / name).read_bytes()
        path = tmp_path / f"bad-{name}"
        failures = 0
        for trial in range(300):
            data = bytearray(good)
            if trial % 2:
                data = data[: random.integers(len(data))]
            else:
                for _ in range(random.integers(1, 4)):
                    data[random.integers(len(data))] ^= 1 << random.integers(8)
            path.write_bytes(data)
            try:
                read_idx(path, 3)
            except SlimError as error:
                assert path.name in str(error) and "\n" not in str(error)
                failures += 1
        assert failures > 150


def test_unknown_names_and_labels(digits_dir, tmp_path):
    with pytest.raises(SlimError, match="unknown data source 'digitz'; did you mean 'digits'"):
        open_source("digitz", "train", tmp_path)
    with pytest.raises(SlimError, match="unknown split of digits 'dev'"):
        open_source("digits", "dev", digits_dir)
    with pytest.raises(SlimError, match="unknown option of data source 'digits' 'shuffle'"):
        open_source("digits", "train", digits_dir, shuffle=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(SlimError, match="cannot prepare the digits"):
        open_source("digits", "train", tmp_path / "file")


def test_corrupt_array_record_is_an_error(digits_dir, tmp_path):
    import shutil

    shutil.copytree(digits_dir, tmp_path / "copy")
    file = next((tmp_path / "copy").rglob("*test.array_record*"))
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(SlimError):
        source = open_source("digits", "test", tmp_path / "copy")
        list(eval_batches(source, preprocess=Preprocess(8, 1, 0.5, 0.5), batch_size=60))
