"""The pipelines: determinism, sharding, resuming, padding, skipping, and the way to the device."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from grain.checkpoint import CheckpointRestore, CheckpointSave
from PIL import Image

from slimvit_jax.data import Augment, Preprocess, eval_batches, open_source, prefetch_to_device, train_iterator
from slimvit_jax.data.batches import order
from slimvit_jax.data.sources import Source
from slimvit_jax.errors import SlimError

PLAIN = Preprocess(8, 1, 0.5, 0.5, "bicubic", 1.0)
CROP = Augment("crop", hflip=0.5, randaugment="rand-m9-mstd0.5-inc1", erase_prob=0.5)
SHIFT = Augment("shift", shift=0.1, rotate=10, scale=0.1)


class Numbered(Source):
    """Images of one grey value: the record's number; decoded once where their shape is told beforehand."""

    def __init__(self, count, shape=(8, 8, 1)):
        super().__init__("numbered", "train", map(str, range(count)), shape)

    def __len__(self):
        return self.num_classes

    def __getitem__(self, index):
        return self.record(np.full((8, 8, 1), index, np.uint8), index, f"number {index}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder source of 20 small JPEGs in 2 classes."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(20):
        directory = root / "train" / "ab"[i % 2]
        directory.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (6, 7, 3), np.uint8)
        Image.fromarray(small).resize((50 + i, 40), Image.Resampling.BICUBIC).save(
            directory / f"{i:02}.jpg", quality=95
        )
    return root


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def assert_in_own_memory(batches):
    """Not in a worker's shared memory, which would be held, and warned of at exit, for as long as a batch is kept."""
    assert all(type(array) is np.ndarray for batch in batches for array in batch.values())


def test_training_batches_do_not_depend_on_the_workers(photos):
    source = open_source("folder", "train", photos)
    kwargs = dict(preprocess=Preprocess(16), augment=CROP, seed=3, batch_size=6)
    expected = take(train_iterator(source, **kwargs), 8)
    assert expected[0]["image"].shape == (6, 16, 16, 3) and expected[0]["image"].dtype == np.float32
    assert expected[0]["label"].dtype == np.int32 and expected[0]["mask"].tolist() == [1.0] * 6
    iterator = train_iterator(source, **kwargs, num_workers=2)
    parallel = take(iterator, 5)
    assert_same(expected[:5], parallel)
    assert_in_own_memory(parallel)
    state = iterator.get_state()
    iterator.close()
    resumed = train_iterator(source, **kwargs)  # with another number of workers
    resumed.set_state(state)
    assert_same(expected[5:], take(resumed, 3))
    assert not np.array_equal(expected[0]["image"], next(train_iterator(source, **{**kwargs, "seed": 4}))["image"])


@pytest.mark.parametrize("augment", [CROP, SHIFT, Augment()])
@pytest.mark.parametrize("repeats", [1, 3])
def test_process_shards_put_together_are_the_batch_of_one_process(augment, repeats):
    kwargs = dict(preprocess=PLAIN, augment=augment, seed=1, batch_size=12, repeats=repeats)
    whole = take(train_iterator(Numbered(30), **kwargs), 4)
    parts = [take(train_iterator(Numbered(30), **kwargs, process_index=p, process_count=3), 4) for p in range(3)]
    joined = [{k: np.concatenate([part[s][k] for part in parts]) for k in whole[0]} for s in range(4)]
    assert_same(whole, joined)


def test_cache_changes_nothing():
    kwargs = dict(preprocess=Preprocess(10, 1, 0.5, 0.5), augment=SHIFT, batch_size=7)
    fast, slow = (take(train_iterator(source, **kwargs), 5) for source in (Numbered(20), Numbered(20, None)))
    assert_same(fast, slow)


def test_every_record_once_per_epoch_and_across_its_end():
    iterator = train_iterator(Numbered(10), preprocess=PLAIN, batch_size=4)
    assert iterator.steps_per_epoch == 2
    labels = np.concatenate([b["label"] for b in take(iterator, 5)])
    assert sorted(labels[:10]) == sorted(labels[10:]) == list(range(10))
    assert labels[:10].tolist() != labels[10:].tolist()
    assert iterator.step == 5
    tiny = train_iterator(Numbered(3), preprocess=PLAIN, batch_size=8)  # a batch larger than the set
    assert tiny.steps_per_epoch == 1 and set(next(tiny)["label"]) == {0, 1, 2}
    repeated = order(np.arange(30), 10, seed=0, repeats=3)
    np.testing.assert_array_equal(repeated, np.repeat(order(np.arange(10), 10, seed=0), 3))


def test_resume_by_orbax_at_the_exact_batch(tmp_path):
    kwargs = dict(preprocess=PLAIN, augment=SHIFT, seed=5, batch_size=8)
    expected = take(train_iterator(Numbered(30), **kwargs), 12)
    params = {"w": jnp.arange(3.0)}
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        device = prefetch_to_device(train_iterator(Numbered(30), **kwargs), depth=3)
        assert_same(expected[:4], take(device, 4))
        manager.save(4, args=ocp.args.Composite(state=ocp.args.StandardSave(params), data=CheckpointSave(device)))
        manager.wait_until_finished()
        assert_same(expected[4:6], take(device, 2))
        device.close()
        for wrap in (lambda it: it, prefetch_to_device):
            resumed = wrap(train_iterator(Numbered(30), **kwargs))
            manager.restore(
                4, args=ocp.args.Composite(state=ocp.args.StandardRestore(params), data=CheckpointRestore(resumed))
            )
            assert_same(expected[4:], take(resumed, 8))
            resumed.close()


def test_state_of_another_stream_is_refused():
    iterator = train_iterator(Numbered(30), preprocess=PLAIN, batch_size=8)
    for change, words in (({"seed": 9}, "seed 9"), ({"batch_size": 6}, "batch_size 6"), ({"records": 2}, "records 2")):
        with pytest.raises(SlimError, match=words):
            iterator.set_state({**iterator.get_state(), **change})
    device = prefetch_to_device(iterator)
    first = take(device, 3)
    device.set_state({**device.get_state(), "step": 1})
    assert_same(first[1:], take(device, 2))
    assert device.get_state()["step"] == 3
    device.close()


@pytest.mark.parametrize(
    "count, batch, processes, devices", [(10, 4, 1, 1), (7, 3, 2, 2), (9, 16, 2, 1), (8, 4, 1, 4), (13, 5, 3, 2)]
)
@pytest.mark.parametrize("shape", [(8, 8, 1), None])
def test_evaluation_sees_every_image_once(count, batch, processes, devices, shape):
    kwargs = dict(preprocess=PLAIN, batch_size=batch, process_count=processes, multiple_of=devices)
    passes = [eval_batches(Numbered(count, shape), **kwargs, process_index=p) for p in range(processes)]
    assert len({len(p) for p in passes}) == 1
    seen = []
    for one in passes:
        assert len(list(one)) == len(one)
        for b in one:
            assert b["image"].shape[0] % devices == 0
            real = b["mask"] == 1
            seen += b["index"][real].tolist()
            np.testing.assert_array_equal(b["index"][real], b["label"][real])
            assert (b["label"][~real] == -1).all() and (b["index"][~real] == -1).all() and not b["image"][~real].any()
            np.testing.assert_allclose(b["image"][real, 0, 0, 0], b["label"][real] / 127.5 - 1, atol=1e-6)
    assert sorted(seen) == list(range(count))


def test_evaluation_with_workers(photos):
    source = open_source("folder", "train", photos)
    kwargs = dict(preprocess=Preprocess(16), batch_size=6)
    parallel = list(eval_batches(source, **kwargs, num_workers=1))
    assert_same(list(eval_batches(source, **kwargs)), parallel)
    assert_in_own_memory(parallel)


def test_unreadable_images_are_skipped_counted_and_limited(photos, tmp_path, caplog):
    import shutil

    root = shutil.copytree(photos, tmp_path / "set")
    (root / "train" / "a" / "02.jpg").write_bytes(b"no image at all")
    whole = (root / "train" / "b" / "05.jpg").read_bytes()
    (root / "train" / "b" / "05.jpg").write_bytes(whole[: len(whole) // 2])
    source = open_source("folder", "train", root)
    (root / "train" / "b" / "07.jpg").unlink()  # gone after the folder was listed
    kwargs = dict(preprocess=Preprocess(16), augment=CROP, batch_size=10)
    with caplog.at_level(logging.WARNING):
        iterator = train_iterator(source, **kwargs)
        batches = take(iterator, 4)
    assert all(np.isfinite(b["image"]).all() and b["image"].shape[0] == 10 for b in batches)
    assert sorted(name[-8:] for name in iterator.bad_records) == ["a/02.jpg", "b/05.jpg", "b/07.jpg"]
    assert sum("skipped unreadable image" in r.message for r in caplog.records) == 3
    parallel = train_iterator(source, **kwargs, num_workers=1)
    assert_same(batches, take(parallel, 4))
    parallel.close()
    with pytest.raises(
        SlimError, match=r"3 images of folder/train cannot be read, more than max_bad=2; the first: .*jpg"
    ):
        take(train_iterator(source, **kwargs, max_bad=2), 4)
    with pytest.raises(SlimError, match=r"cannot read .*a/02\.jpg"):
        list(eval_batches(source, preprocess=Preprocess(16), batch_size=4))
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(SlimError, match="20 images in a row of folder/train cannot be read"):
        next(train_iterator(source, **kwargs, max_bad=100))


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 9, "process_count": 2}, "batch_size 9 does not divide by the 2 processes"),
        ({"batch_size": 8, "process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"num_workers": -1}, "num_workers must be at least 0, not -1"),
        ({"repeats": 0}, "repeats must be at least 1, not 0"),
    ],
)
def test_bad_settings(kwargs, words):
    with pytest.raises(SlimError, match=words):
        train_iterator(Numbered(5), **{"preprocess": PLAIN, "batch_size": 4, **kwargs})


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"kind": "crob"}, "unknown augmentation kind 'crob'; did you mean 'crop'"),
        ({"kind": "crop", "randaugment": "rand-x9"}, "cannot read RandAugment description 'rand-x9'"),
        ({"kind": "crop", "crop_scale": (0.5, 0.1)}, "crop_scale"),
    ],
)
def test_bad_augmentation(fields, words):
    with pytest.raises(SlimError, match=words):
        Augment(**fields)


def test_prefetch_shards_over_devices_and_measures_waiting():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def slow(count):
        for i in range(count):
            time.sleep(0.05)
            yield {"image": np.full((8, 2), i, np.float32)}

    with prefetch_to_device(slow(4), sharding) as device:
        batches = list(device)
        assert [float(b["image"][0, 0]) for b in batches] == [0, 1, 2, 3]
        assert batches[0]["image"].sharding == sharding and device.wait_fraction > 0.5
        assert list(device) == []
    with prefetch_to_device(slow(4)) as device:
        next(device)
        time.sleep(0.3)
        device.reset_wait()
        next(device)
        time.sleep(0.05)
        assert device.wait_fraction < 0.2

    def broken():
        yield {"image": np.zeros(1)}
        raise SlimError("file x is broken")

    device = prefetch_to_device(broken())
    next(device)
    with pytest.raises(SlimError, match="file x is broken"):
        next(device)


def test_nothing_stays_in_shared_memory(photos):
    """Workers' batches are freed with their stream, not whenever Python next looks for cycles."""

    def shared():
        return [each for each in gc.get_objects() if type(each).__name__ == "SharedMemoryArray"]

    source = open_source("folder", "train", photos)
    gc.disable()
    try:
        evaluated = eval_batches(source, preprocess=Preprocess(8), batch_size=4, num_workers=2)
        assert sum(batch["mask"].sum() for batch in evaluated) == 20 and shared() == []
        trained = train_iterator(source, preprocess=Preprocess(8), augment=Augment("crop"), batch_size=4, num_workers=2)
        with prefetch_to_device(trained) as device:
            next(device)
        assert shared() == []
    finally:
        gc.enable()


def test_small_images_are_no_bottleneck():
    """The digits' main job: at least 20,000 images/s on one core, with a margin for a busy machine."""
    iterator = train_iterator(Numbered(200), preprocess=PLAIN, augment=SHIFT, batch_size=64)
    next(iterator)
    began = time.process_time()
    take(iterator, 50)
    assert 50 * 64 / (time.process_time() - began) > 20_000


ORPHANS = """
import sys, time
from slimvit_jax.data import Augment, open_source, prefetch_to_device, train_iterator, Preprocess
if __name__ == "__main__":
    source = open_source("folder", "train", sys.argv[1])
    it = train_iterator(source, preprocess=Preprocess(8), augment=Augment("crop"), batch_size=4, num_workers=1)
    next(it)
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_workers_end_when_the_main_process_is_killed(photos, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    main = subprocess.Popen(
        [sys.executable, script, photos], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    workers = [int(pid) for pid in main.stdout.readline().split()]
    assert workers and all(os.path.isdir(f"/proc/{pid}") for pid in workers)
    main.kill()
    main.communicate()
    until = time.monotonic() + 20
    while any(_runs(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
