"""Sources: the digits builder, image folders, IDX files, tfds data sets; and what each says about bad input."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from slimvit_jax.data import Preprocess, eval_batches, open_source, samples
from slimvit_jax.data.digits import prepare, stratified_split
from slimvit_jax.data.idx import read_idx
from slimvit_jax.errors import SlimError
from slimvit_jax.files import read_text
from slimvit_jax.images.decode import decode, to_array


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
        (("digits8x8:7.0.0", "test", digits_dir), "unknown version of tfds data set 'digits8x8'.*'7.0.0'.*1.0.0"),
    ):
        with pytest.raises(SlimError, match=words):
            open_source(*wrong)
    with pytest.raises(SlimError, match="Image feature of digits8x8 'picture'.*image"):
        open_source("digits8x8", "test", digits_dir, image_key="picture")


def test_the_newest_version_of_a_tfds_set(digits_dir, tmp_path):
    """Versions are numbers: 10.0.0 is newer than 9.0.0."""
    for version in ("9.0.0", "10.0.0"):
        copy = shutil.copytree(digits_dir / "digits8x8" / "1.0.0", tmp_path / "mine" / version)
        info = json.loads((copy / "dataset_info.json").read_text())
        info |= {"name": "mine", "version": version, "description": version}
        (copy / "dataset_info.json").write_text(json.dumps(info))
        (copy / "label.labels.txt").write_text("\n".join(f"{version} {digit}" for digit in range(10)))
    for name, version in (("mine", "10.0.0"), ("mine:9.0.0", "9.0.0"), ("mine:1*", "10.0.0")):
        assert open_source(name, "test", tmp_path).class_names[3] == f"{version} 3"
    with pytest.raises(SlimError, match="unknown version of tfds data set 'mine'.*'2.0.0'.*choices: 10.0.0, 9.0.0"):
        open_source("mine:2.0.0", "test", tmp_path)


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


def test_parts_of_a_split(tmp_path):
    """Both sides of a bound are disjoint and together everything; each has the classes' proportions."""
    write_folder(tmp_path, {"a": 40, "b": 10, "c": 25}, size=(2, 2))
    whole = open_source("folder", "train", tmp_path)
    names = [whole.record_name(i) for i in range(len(whole))]
    for bound in ("80%", "50%", "12.5%", "33", "-20%", "-7"):
        left, right = (open_source("folder", f"train[{part}]", tmp_path) for part in (f":{bound}", f"{bound}:"))
        both = [part.record_name(i) for part in (left, right) for i in range(len(part))]
        assert sorted(both) == sorted(names) and len(left) + len(right) == 75
        share = len(left) / 75
        for label, size in enumerate((40, 10, 25)):
            assert abs((left.labels == label).sum() - share * size) <= 1
    held_out = open_source("folder", "train[80%:]", tmp_path)
    assert (len(held_out), held_out.class_names, held_out.split) == (15, ("a", "b", "c"), "train[80%:]")
    assert [held_out[i]["label"] for i in range(15)] == held_out.labels.tolist() == [0] * 8 + [1] * 2 + [2] * 5
    assert held_out[3]["name"] == held_out.record_name(3) and len(pickle.loads(pickle.dumps(held_out))) == 15
    for wrong, words in (
        ("train[80%]", "neither a name nor a part such as"),
        ("train[:101%]", "101% is beyond the 75 images"),
        ("train[:76]", "76 is beyond"),
        ("train[50%:50%]", "is empty: it goes from 38 to 38 of 75"),
        ("", "neither a name nor a part"),
    ):
        with pytest.raises(SlimError, match=words):
            open_source("folder", wrong, tmp_path)


def test_parts_of_other_sources(digits_dir, tmp_path):
    fashion(tmp_path)
    assert sum(len(open_source("fashion_mnist", f"test[{p}]", tmp_path)) for p in (":40%", "40%:")) == 5
    whole, part = (open_source("digits", split, digits_dir) for split in ("test", "test[10:-340]"))
    assert len(part) == 10 and part[0]["label"] == whole[10]["label"] and part.record_name(0) == "digits/test[10]"


def test_a_folder_without_splits(tmp_path):
    write_folder(tmp_path, {"bus": 5, "train": 10}, ".", size=(2, 2))
    parts = [open_source("folder", f"train[{part}]", tmp_path) for part in (":80%", "80%:")]
    assert [p.class_names for p in parts] == [("bus", "train")] * 2
    assert [np.bincount(p.labels).tolist() for p in parts] == [[4, 8], [1, 2]]
    with pytest.raises(
        SlimError, match=r"no split 'test': its folders are classes.*'train\[:80%\]' and 'train\[80%:\]'"
    ):
        open_source("folder", "test", tmp_path)


def test_a_model_gets_as_many_classes_as_the_data(tmp_path):
    from slimvit_jax.training.build import build_sources
    from slimvit_jax.training.loading import load_config

    write_folder(tmp_path, {"a": 5, "b": 5, "c": 5}, ".", size=(2, 2))
    parts = [("data.data_dir", str(tmp_path)), ("data.train_split", "train[:80%]"), ("data.eval_split", "train[80%:]")]
    config = load_config("image_folder", parts)
    resolved, train, held_out = build_sources(config)
    assert (len(train), len(held_out), resolved.model.options.num_classes) == (12, 3, 3)
    assert "num_classes" not in config.model.options
    for wrong in (2, 4, 0):
        config = load_config("image_folder", [*parts, ("model.options.num_classes", str(wrong))])
        with pytest.raises(SlimError, match=f"'folder' has 3 classes, but config.model.options.num_classes is {wrong}"):
            build_sources(config)
    write_folder(tmp_path / "other", {"a": 5, "b": 5, "d": 5}, "train", size=(2, 2))
    write_folder(tmp_path / "other", {"a": 5, "d": 5}, "val", size=(2, 2))
    with pytest.raises(SlimError, match="lacks classes of train/: 'b'"):
        build_sources(load_config("image_folder", [("data.data_dir", str(tmp_path / "other"))]))


def test_samples_are_of_many_classes(digits_dir, tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 1, "c": 3, "d": 3, "e": 3}, size=(2, 2))
    source = open_source("folder", "train", tmp_path)
    labels = lambda count: [record["label"] for record in samples(source, count)]
    assert [labels(count) for count in (0, 1, 3, 5)] == [[], [0], [0, 1, 3], [0, 1, 2, 3, 4]]
    assert labels(8) == [0, 1, 2, 3, 4, 0, 2, 3] and sorted(labels(99)) == source.labels.tolist()
    source = open_source("digits", "test", digits_dir)  # nobody knows its labels before reading
    assert [record["name"] for record in samples(source, 2)] == ["digits/test[0]", "digits/test[1]"]


def test_text_files_of_any_origin(tmp_path):
    path = tmp_path / "names.txt"
    for codec in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text("Käfer\nÉcureuil\n", encoding=codec)
        assert read_text(path).splitlines() == ["Käfer", "Écureuil"], codec
    path.write_text("Fuchs\nKäfer\n", encoding="latin-1")
    with pytest.raises(SlimError, match=r"names.txt' is not UTF-8 text \(line 2, byte 0xe4\); save it as UTF-8"):
        read_text(path)
    for codec in ("utf-16-le", "utf-32"):
        path.write_text("Fuchs", encoding=codec)
        with pytest.raises(SlimError, match="not UTF-8 text"):
            read_text(path)
    with pytest.raises(SlimError, match="cannot read .*: Is a directory"):
        read_text(tmp_path)


def test_what_is_no_data_of_a_folder(tmp_path):
    """Hidden files and folders, pipes, and links onto folders around them; a link to elsewhere is followed, once."""
    write_folder(tmp_path, {"a": 2, "b": 1, "a/.thumbs": 3, "a/deep": 1, ".git": 1}, size=(2, 2))
    write_folder(tmp_path, {"more": 2}, "elsewhere", size=(2, 2))
    train = tmp_path / "train"
    os.mkfifo(train / "a" / "pipe.jpg")
    Image.new("L", (2, 2)).save(train / "a" / "._shadow.png")
    links = {"a/self": train / "a", "a/up": train, "loop": train, "a/out": tmp_path / "elsewhere" / "more"}
    links |= {"b/out": tmp_path / "elsewhere", "b/again": tmp_path / "elsewhere" / "more", "b/x": train / "b" / "x"}
    for name, target in links.items():
        (train / name).symlink_to(target)
    (train / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = open_source("folder", "train", tmp_path)
    assert source.class_names == ("a", "b")
    assert np.bincount(source.labels).tolist() == [2 + 1 + 2, 1 + 2 + 1]


@pytest.mark.parametrize("name", [b"caf\xe9", b"a$_{b$", b"[b]", b"new\nline"])
def test_class_names_are_any_bytes(tmp_path, name):
    os.makedirs(os.fsencode(tmp_path / "train") + b"/" + name)
    write_folder(tmp_path, {"z": 1}, size=(2, 2))
    (tmp_path / "train" / "z" / "0.jpg").rename(os.path.join(tmp_path, "train", os.fsdecode(name), "0.jpg"))
    write_folder(tmp_path, {"z": 1}, size=(2, 2))
    source = open_source("folder", "train", tmp_path)
    assert sorted(map(os.fsencode, source.class_names)) == sorted([name, b"z"])
    batches = list(eval_batches(pickle.loads(pickle.dumps(source)), preprocess=Preprocess(2), batch_size=2))
    assert sorted(batches[0]["label"].tolist()) == [0, 1]


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
    shutil.copytree(digits_dir, tmp_path / "copy")
    file = next((tmp_path / "copy").rglob("*test.array_record*"))
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(SlimError):
        source = open_source("digits", "test", tmp_path / "copy")
        list(eval_batches(source, preprocess=Preprocess(8, 1, 0.5, 0.5), batch_size=60))
