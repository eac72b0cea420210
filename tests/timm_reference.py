"""timm and torch for the parity tests; importing this module skips the tests when they are not installed."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads must not spin while JAX computes

import importlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

_DECLARATIONS = []  # torch drops the operators of a library object that is collected


def _import_torchvision():
    """torchvision's compiled operators do not load beside a CPU-only torch; timm only needs their names to exist."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pytest.skip("torchvision is not installed", allow_module_level=True)
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARATIONS.append(library)


_import_torchvision()
timm = pytest.importorskip("timm")


def randomised(model, seed=0):
    """Sets every weight of a torch model to seeded random values at which each of them shows in the output."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, value in model.state_dict().items():
        shape, normal = tuple(value.shape), rng.standard_normal(tuple(value.shape))
        leaf, parent = name.split(".")[-1], name.split(".")[-2] if "." in name else ""
        if leaf == "num_batches_tracked":
            continue
        if leaf == "running_var":
            array = rng.uniform(0.5, 1.5, shape)
        elif len(shape) in (2, 4):
            array = normal * 1.4 / np.sqrt(np.prod(shape[1:]))
        elif leaf == "gamma" or (leaf == "weight" and ("norm" in parent or parent == "bn")):
            array = 1 + 0.1 * normal
        else:
            array = 0.3 * normal  # biases, tokens, position embeddings
        state[name] = torch.tensor(array, dtype=torch.float32)
    model.load_state_dict(state, strict=False)  # but for counters, which stay
    return model.eval()


def reference(name, seed=0, **options):
    """A timm model with random weights."""
    return randomised(timm.create_model(name, **options), seed)


def calibrated(model, images):
    """Running statistics of these (B, H, W, C) images: without them a residual stream that nothing norms explodes."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    logits(model.train(), images)
    return model.eval()


def logits(model, images):
    """(B, C) float32 of a torch model for (B, H, W, C) images."""
    with torch.inference_mode():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
