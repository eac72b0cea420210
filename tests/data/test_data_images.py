"""Decoding, preprocessing (against timm) and augmentation of single images and batches."""

from __future__ import annotations

import io
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

import slimvit_jax as slim
from slimvit_jax.data import Augment, MixupConfig, Preprocess, mixup_cutmix
from slimvit_jax.data.augment import CropAugment, crop_box, erase, shift_batch
from slimvit_jax.data.mixup import beta, smooth
from slimvit_jax.data.randaugment import OPERATIONS, RandAugment, color_jitter
from slimvit_jax.errors import SlimError
from slimvit_jax.images.decode import BadImage, decode, to_array


def photo(height, width, seed=0, mode="RGB"):
    """Something like a photograph: smooth colours, edges and a little noise."""
    random = np.random.default_rng(seed)
    base = Image.fromarray(random.integers(0, 256, (7, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(base).astype(np.int16)
    pixels[height // 4 : height // 2, width // 3 : width // 2] //= 3
    pixels += random.integers(-12, 13, pixels.shape, np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (224, 224), (100, 1000), (60, 41), (300, 299)])
@pytest.mark.parametrize(
    "options",
    [
        dict(img_size=224, interpolation="bicubic", crop_pct=0.9),
        dict(img_size=224, interpolation="bilinear", crop_pct=0.875),
        dict(img_size=384, interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3),
        dict(img_size=(96, 160), interpolation="bicubic", crop_pct=0.95),
        dict(img_size=64, interpolation="bicubic", crop_pct=0.9, crop_mode="squash"),
    ],
)
def test_evaluation_preprocessing_is_timms(shape, options):
    pytest.importorskip("timm_reference")
    from timm.data import create_transform

    preprocess = Preprocess(**options)
    size = preprocess.size
    theirs = create_transform(
        input_size=(3, *size),
        is_training=False,
        interpolation=options["interpolation"],
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=options["crop_pct"],
        crop_mode=options.get("crop_mode", "center"),
    )
    data = encoded(photo(*shape, seed=sum(shape)), "JPEG", quality=90)
    expected = theirs(Image.open(io.BytesIO(data)).convert("RGB")).numpy().transpose(1, 2, 0)
    got = preprocess(data)
    assert got.shape == expected.shape and got.dtype == np.float32
    assert np.abs((got - expected) * np.array(preprocess.std)).max() < 1 / 255 / 100


def test_decoding_is_torchvisions_where_nothing_would_be_lost():
    """torchvision's loader is Image.open(file).convert("RGB"): first frame, CMYK, palettes and one bit converted."""
    picture = photo(20, 30)
    files = {
        "cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "animated": encoded(picture, "GIF", save_all=True, append_images=[photo(20, 30, 1)]),
        "grey": encoded(picture.convert("L")),
        "grey, opaque": encoded(picture.convert("LA")),
        "palette": encoded(picture.quantize(16)),
        "opaque": encoded(picture.convert("RGBA")),
        "one bit": encoded(picture.convert("1")),
        "webp": encoded(picture, "WEBP"),
        "tiff": encoded(picture, "TIFF"),
        "one pixel": encoded(picture.resize((1, 1))),
    }
    for name, data in files.items():
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(to_array(decode(data, 3)), theirs, err_msg=name)
        assert to_array(decode(data, 1)).shape == (*theirs.shape[:2], 1)
        pixels = Preprocess(16)(data)
        assert pixels.shape == (16, 16, 3) and np.isfinite(pixels).all()
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    np.testing.assert_array_equal(to_array(decode(grey, 1)), grey)
    np.testing.assert_array_equal(to_array(decode(grey, 3)), np.repeat(grey, 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(photo(20, 30), kind, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(to_array(decode(data)), upright)
    np.testing.assert_array_equal(to_array(decode(Image.open(io.BytesIO(data)))), upright)


def test_transparency_is_laid_on_white():
    random = np.random.default_rng(0)
    colours, alpha = random.integers(0, 256, (6, 8, 3), np.uint8), random.integers(0, 256, (6, 8), np.uint8)
    alpha[0], alpha[1] = 0, 255
    share = alpha[..., None] / 255
    expected = colours * share + 255 * (1 - share)
    rgba = np.dstack([colours, alpha])
    picture = Image.fromarray(rgba)
    for form in (picture, rgba, encoded(picture), encoded(picture, "WEBP", lossless=True, exact=True)):
        got = to_array(decode(form)).astype(float)
        assert np.abs(got - expected).max() <= 1 and (got[0] == 255).all() and (got[1] == colours[1]).all()
    grey = Image.merge("LA", [Image.fromarray(colours[..., 0]), Image.fromarray(alpha)])
    for form in (grey, encoded(grey), np.asarray(grey)):
        assert np.abs(to_array(decode(form, 1)) - expected[..., :1]).max() <= 1
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert to_array(decode(palette))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert to_array(decode(encoded(palette, transparency=1)))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    keyed = encoded(Image.fromarray(colours), transparency=tuple(colours[2, 3].tolist()))
    assert (to_array(decode(keyed))[2, 3] == 255).all() and (to_array(decode(keyed))[1] == colours[1]).all()


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 255, 256, 1000], [32768, 40000, 65279, 65535]], np.uint16)
    picture = Image.fromarray(values)
    for form in (picture, encoded(picture), encoded(picture, "TIFF"), encoded(picture, "PPM")):
        for channels in (1, 3):
            np.testing.assert_array_equal(
                to_array(decode(form, channels)), (values >> 8)[..., None].repeat(channels, 2)
            )
    for mode in ("I", "F"):
        with pytest.raises(BadImage, match="of no stated range"):
            decode(Image.new(mode, (2, 2)))


def test_pictures_in_every_form_are_prepared_alike(tmp_path):
    """A path, bytes, a PIL picture of any mode and uint8 pixels: transform_for is one function for all of them."""
    picture = photo(40, 50)
    model = slim.create_model("deit_tiny_patch16_224", img_size=(32, 48))
    transform = slim.transform_for(model)
    assert (transform.size, transform.mean, transform.crop_pct) == ((32, 48), (0.485, 0.456, 0.406), 0.9)
    (tmp_path / "a.png").write_bytes(encoded(picture))
    expected = transform(picture)
    assert expected.shape == (32, 48, 3) and expected.dtype == np.float32
    forms = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        encoded(picture),
        np.asarray(picture),
        picture.convert("RGBA"),
    ]
    for form in forms:
        np.testing.assert_array_equal(transform(form), expected)
    for mode in ("L", "P", "CMYK", "1", "LA", "PA", "YCbCr", "HSV", "LAB", "RGBX"):
        other = picture.convert("L").convert(mode) if mode in ("LA", "PA") else picture.convert(mode)
        np.testing.assert_array_equal(transform(other), transform(other.convert("RGB")), err_msg=mode)
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(transform(grey), transform(np.repeat(grey[..., None], 3, -1)))
    assert Preprocess(**json.loads(json.dumps(transform.to_dict()))) == transform


def test_one_channel_gets_the_mean_of_the_colours():
    transform = slim.transform_for(slim.create_model("deit_tiny_patch16_224", in_chans=1, img_size=32))
    assert transform.in_chans == 1 and transform.size == (32, 32)
    np.testing.assert_allclose([*transform.mean, *transform.std], [(0.485 + 0.456 + 0.406) / 3, 0.226], atol=1e-9)
    assert slim.transform_for("vit_small_patch16_384") == Preprocess(384, 3, 0.5, 0.5, "bicubic", 1.0)
    assert slim.transform_for("vit").mean == (0.5,) * 3 and slim.preprocess_for is slim.transform_for
    for wrong, words in (
        ("deit_tinny_patch16_224", "unknown model 'deit_tinny_patch16_224'; did you mean"),
        (slim.create_model("vit", in_chans=5), "cannot be read to 5 channels"),
        (None, "takes a model or the name of one, not NoneType"),
    ):
        with pytest.raises(SlimError, match=words):
            slim.transform_for(wrong)


def test_pictures_to_look_at_show_the_same_crop():
    """At several times the size, shrunk again, they are what the model sees; small images stay as they are."""
    picture, transform = photo(300, 420), Preprocess((98, 112), crop_pct=0.9)
    large = transform.for_display(300)
    assert large.size == (392, 448) and Preprocess(28, 1, 0.5, 0.5).for_display().size == (28, 28)
    blocks = large.pixels(picture).astype(float).reshape(98, 4, 112, 4, 3).mean((1, 3))
    assert np.abs(blocks - transform.pixels(picture)).mean() < 6


def test_what_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    transform = Preprocess(8)
    for wrong, words in (
        (tmp_path / "pipe.jpg", "pipe.jpg' is a pipe or device, not an image file"),
        (tmp_path, "is a folder, not an image file"),
        (tmp_path / "none.jpg", "no image file .*none.jpg'"),
        ("", "no image file ''"),
        (tmp_path / "text.jpg", "cannot read .*text.jpg: it is no image of a known kind"),
        (np.zeros((4, 4, 3), np.float32), "pixels must be uint8"),
        (np.zeros((4, 4, 5), np.uint8), "pixels must be uint8"),
        (None, "pixels must be uint8"),
    ):
        with pytest.raises(SlimError, match=words):
            transform(wrong)


def test_reduced_decoding_keeps_the_wanted_size():
    data = encoded(photo(800, 1200), "JPEG")
    assert decode(data, 3).size == (1200, 800)
    assert decode(data, 3, at_least=300).size == (600, 400)
    assert decode(data, 1, at_least=801).size == (1200, 800)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_image_fuzz(kind):
    """Truncated and bit-flipped files are decoded or are a BadImage of one line; never another error."""
    random = np.random.default_rng(0)
    good = encoded(photo(24, 31), kind)
    bad = 0
    for trial in range(150):
        data = bytearray(good)
        if trial % 3 == 0:
            data = data[: random.integers(len(data))]
        else:
            for _ in range(random.integers(1, 5)):
                data[random.integers(len(data) if trial % 3 == 1 else min(64, len(data)))] ^= 1 << random.integers(8)
        try:
            picture = decode(bytes(data), 3, "file.x")
            assert picture.mode == "RGB"
        except BadImage as error:
            assert str(error).startswith("cannot read file.x: ") and "\n" not in str(error)
            bad += 1
    assert bad > 20


def test_bombs_and_strips_are_refused_not_computed():
    stream = encoded(Image.new("1", (20000, 20000)))  # 400 million pixels in a file of 50 kB
    with pytest.raises(BadImage, match="exceeds limit"):
        decode(stream)
    with pytest.raises(BadImage, match="strip is 5000 x 1: too elongated"):
        Preprocess(224)(encoded(Image.new("RGB", (5000, 1))), "strip")
    with pytest.raises(BadImage, match="pixels must be uint8"):
        decode(np.zeros((4, 4, 3)))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(in_chans=4), "images cannot be read to 4 channels"),
        (dict(img_size=0), "img_size"),
        (dict(interpolation="cubic"), "unknown interpolation 'cubic'; did you mean 'bicubic'"),
        (dict(crop_pct=0), r"crop_pct must be in \(0, 1\]"),
        (dict(in_chans=1), "mean has 3 values for in_chans=1"),
        (dict(std=0.0), "std must be positive"),
        (dict(mean=float("nan")), "mean must be made of finite numbers, not nan"),
        (dict(std=(0.2, float("inf"), 0.2)), "std must be made of finite numbers"),
        (dict(std=float("nan")), "std must be made of finite numbers"),
        (dict(mean="half"), "mean must be made of finite numbers, not 'half'"),
        (dict(crop_pct=float("nan")), "crop_pct"),
        (dict(img_size=8.5), "img_size must be a positive side"),
        (dict(img_size=(8, 8, 8)), "img_size"),
        (dict(crop_mode="pad"), "unknown crop_mode 'pad'"),
    ],
)
def test_bad_preprocess(options, words):
    with pytest.raises(SlimError, match=words):
        Preprocess(**options)


def test_crop_boxes_have_torchvisions_distribution():
    random = np.random.default_rng(0)
    boxes = np.array([crop_box(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), random) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 400 and boxes[:, 3].max() <= 300
    share, ratio = width * height / 120000, width / height
    assert share.min() > 0.079 and 0.74 < ratio.min() and ratio.max() < 1.35
    transforms = pytest.importorskip("timm_reference") and pytest.importorskip("torchvision.transforms")
    picture = Image.new("RGB", (400, 300))
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(picture, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    assert abs(share.mean() - (theirs[:, 2] * theirs[:, 3]).mean() / 120000) < 0.02
    assert abs(boxes[:, 0].mean() - theirs[:, 1].mean()) < 8
    assert crop_box(10, 1000, (0.9, 1.0), (1.0, 1.0), random) == (495, 0, 505, 10)  # nothing fits: the centre
    assert crop_box(1, 1, (0.08, 1.0), (3 / 4, 4 / 3), random) == (0, 0, 1, 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_randaugment_operations(mode):
    picture = photo(40, 50, mode=mode).point([30 + v * 3 // 4 for v in range(256)] * len(mode))  # something to stretch
    for name, operation in OPERATIONS.items():
        for increasing in (True, False):
            for strength in (0.0, 1.0):
                assert operation(picture, strength, 1, (124, 116, 104), increasing).size == picture.size
            out = operation(picture, 0.7, -1, (124, 116, 104), increasing)
            assert (out.size, out.mode) == (picture.size, mode)
            if name not in ("color",):
                assert not np.array_equal(np.asarray(out), np.asarray(picture)), name
    for name, theirs in (
        ("invert", ImageOps.invert(picture)),
        ("posterize", ImageOps.posterize(picture, 2)),
        ("solarize", ImageOps.solarize(picture, 128)),
    ):
        np.testing.assert_array_equal(OPERATIONS[name](picture, 0.5, 1, (0, 0, 0), True), np.asarray(theirs))
    policy = RandAugment.parse("rand-m9-n3-mstd0.5-inc1-p0.9", (1, 2, 3))
    assert (policy.magnitude, policy.layers, policy.spread, policy.probability) == (9, 3, 0.5, 0.9)
    assert policy.increasing and policy.fill == (1, 2, 3)
    first, again = (np.asarray(policy(picture, np.random.default_rng(7))) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert color_jitter(picture, 0.4, np.random.default_rng(0)).size == picture.size
    for text in ("rand-m11", "random-m9", "rand-m9-q2", "rand-p2", "rand-m", "rand-m9-foo"):
        with pytest.raises(SlimError, match=text):
            RandAugment.parse(text)


def test_crop_augment():
    preprocess = Preprocess((24, 32))
    augment = Augment(kind="crop", hflip=0.5, color_jitter=0.3, interpolation="random", erase_prob=0.5)
    crop, picture = CropAugment(augment, preprocess), photo(60, 80)
    boxes = []
    for seed in range(200):
        pixels, box = crop(picture, np.random.default_rng(seed))
        assert pixels.shape == (24, 32, 3) and pixels.dtype == np.uint8
        boxes.append(box)
    np.testing.assert_array_equal(pixels, crop(picture, np.random.default_rng(199))[0])
    left, top, right, bottom = np.array([box for box in boxes if box[2]]).T
    assert 70 < len(left) < 130 and min(left.min(), top.min()) >= 0 and right.max() <= 32 and bottom.max() <= 24
    share = (right - left) * (bottom - top) / (24 * 32)
    assert 0.01 < share.min() and share.max() < 0.37
    for mode in ("pixel", "const"):
        image = np.full((24, 32, 3), 9.0, np.float32)
        erase(image, (4, 5, 14, 20), mode, np.random.default_rng(0))
        assert (image != 9).sum() == (image[5:20, 4:14] != 9).sum() == 10 * 15 * 3
        assert abs(image[5:20, 4:14].std() - (mode == "pixel")) < 0.1
    one = CropAugment(Augment(kind="crop", randaugment="rand-m9-mstd0.5-inc1"), Preprocess(8))
    assert one(Image.new("RGB", (1, 1)), np.random.default_rng(0))[0].shape == (8, 8, 3)


def test_shift_batch():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 8, 6, 2), np.uint8)
    choices = random.random((5, 5))
    middle = np.full((5, 5), 0.5)
    everything = Augment("shift", shift=0.2, rotate=30, scale=0.3)
    np.testing.assert_allclose(shift_batch(images, everything, middle), images, atol=1e-3)
    np.testing.assert_array_equal(shift_batch(images, Augment("none"), choices), images.astype(np.float32))
    # An exact shift: one row down and one column to the left, black where nothing was.
    assert shift_batch(images, everything, choices).dtype == np.float32
    moved = shift_batch(images, Augment("shift", shift=0.5), np.tile([0.5 + 1 / 8, 0.5 - 1 / 6, 0, 0, 0], (5, 1)))
    np.testing.assert_allclose(moved[:, 1:, :-1], images[:, :-1, 1:], atol=1e-3)
    assert np.abs(moved[:, 0]).max() < 1e-3 and np.abs(moved[:, :, -1]).max() < 1e-3
    flipped = shift_batch(images, Augment("shift", hflip=1.0), choices)
    np.testing.assert_array_equal(flipped, images[:, :, ::-1])
    quarter = shift_batch(images[:, :6], Augment("shift", rotate=90), np.tile([0.5, 0.5, 1, 0.5, 0], (5, 1)))
    turned = np.rot90(images[:, :6], axes=(1, 2))
    assert min(np.abs(quarter - t).max() for t in (turned, turned[:, ::-1, ::-1])) < 0.1
    out = shift_batch(images, everything, choices)
    assert out.min() >= 0 and out.max() <= 255.001


def test_mixup_and_cutmix():
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
    labels = jax.nn.one_hot(jnp.arange(6), 6)
    mix = jax.jit(mixup_cutmix, static_argnums=3)
    for config in (MixupConfig(mode="element"), MixupConfig(cutmix=0), MixupConfig(mixup=0)):
        for seed in range(4):
            x, y = mix(jax.random.key(seed), images, labels, config)
            np.testing.assert_allclose(y.sum(-1), 1, atol=1e-6)
            share = np.asarray(y)[np.arange(6), np.arange(6)]
            other = np.asarray(images[::-1])
            if config.cutmix == 0:
                s = share[:, None, None, None]
                np.testing.assert_allclose(x, images * s + other * (1 - s), atol=1e-5)
            if config.mixup == 0:
                own = np.asarray(x == images).all(-1)
                assert (own | np.asarray(x == other).all(-1)).all()
                np.testing.assert_allclose(own.mean((1, 2)), share, atol=1e-6)
    for off in (MixupConfig(prob=0), MixupConfig(mixup=0, cutmix=0)):
        x, y = mix(jax.random.key(0), images, labels, off)
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, labels)
    np.testing.assert_allclose(smooth(labels, 0.12)[0], [0.9, 0.02, 0.02, 0.02, 0.02, 0.02], atol=1e-6)
    shapes = jax.eval_shape(mixup_cutmix, jax.random.key(0), images.astype(jnp.bfloat16), labels)
    assert [x.dtype for x in shapes] == [jnp.bfloat16, jnp.float32]
    for alpha in (0.2, 0.8, 1.0, 3.0):
        drawn = np.asarray(beta(jax.random.key(0), alpha, (20000,)))
        assert abs(drawn.mean() - 0.5) < 0.01 and abs(drawn.var() - 1 / (4 * (2 * alpha + 1))) < 0.005
    for bad in (dict(mixup=-1), dict(prob=2), dict(mode="pair")):
        with pytest.raises(SlimError):
            MixupConfig(**bad)
