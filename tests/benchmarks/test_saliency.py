"""The dense head of the benchmarks: the decoder's arithmetic, and the numbers of its table."""

import numpy as np
import pytest

from benchmarks import saliency


def weights(rng, channels=(6, 5, 4, 3)):
    state = {}
    for layer, (one, two) in enumerate(zip(channels, channels[1:], strict=False), start=1):
        state[f"upconv{layer}.weight"] = rng.standard_normal((one, two, 4, 4))
        state |= {f"bn{layer}.{k}": rng.standard_normal(two) for k in ("weight", "bias", "running_mean")}
        state |= {f"bn{layer}.running_var": rng.random(two) + 0.5, f"upconv{layer}.bias": rng.standard_normal(two)}
    state |= {"final_conv.weight": rng.standard_normal((1, channels[-1], 1, 1)), "final_conv.bias": np.ones(1)}
    return {name: array.astype(np.float32) for name, array in state.items()}


def test_the_decoder_is_torchs():
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    rng = np.random.default_rng(0)
    state = weights(rng)
    grid = rng.standard_normal((2, 3, 4, 6)).astype(np.float32)
    t = {name: torch.from_numpy(array) for name, array in state.items()}
    x = torch.from_numpy(grid).permute(0, 3, 1, 2)
    for i in "123":
        x = F.conv_transpose2d(x, t[f"upconv{i}.weight"], t[f"upconv{i}.bias"], stride=2, padding=1)
        norm = [t[f"bn{i}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu(F.batch_norm(x, *norm, eps=1e-5))
    x = F.conv2d(x, t["final_conv.weight"], t["final_conv.bias"])
    want = torch.sigmoid(F.interpolate(x, size=(40, 56), mode="bilinear", align_corners=False))[:, 0]
    np.testing.assert_allclose(saliency.decode(state, grid, (40, 56)), want.numpy(), rtol=0, atol=1e-5)


def test_numbers():
    dense = np.zeros((2, 2, 2), np.float32)
    dense[0, 0] = 0.8
    maps = dense.copy()
    maps[0, 0, 0] = 0.0  # half of what was salient is lost in the first photograph; nothing is salient in the second
    row = saliency.compare(maps, dense)
    assert row["iou"] == pytest.approx((0.5 + 1) / 2) and row["mae"] == pytest.approx(0.8 / 4 / 2)
    assert row["iou_stderr"] == pytest.approx(0.25)
    about = {"images": 2, "data": "a/val", "model": "m", "source": "s", "above_half": 0.25, "mean": 0.2}
    text = saliency.table({"about": about, "rows": [{"rate": 0.5, "method": "ToMe", "flops_share": 0.6, **row}]})
    assert "| 0.5 | ToMe | 0.60 | 0.1000 ± 0.1000 | 0.750 ± 0.250 |" in text


def test_every_image_counts_once():
    images = np.arange(5)[:, None, None]
    assert saliency.all_maps(lambda batch: batch * 2, images, 3)[:, 0, 0].tolist() == [0, 2, 4, 6, 8]
