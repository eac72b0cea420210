"""The slimming methods, by name. A new method is one file here and one line in `METHODS`."""

from __future__ import annotations

from slimvit_jax.methods.atc import ATC
from slimvit_jax.methods.ats import ATS
from slimvit_jax.methods.avit import AViT
from slimvit_jax.methods.cropr import Cropr
from slimvit_jax.methods.diffrate import DiffRate
from slimvit_jax.methods.dpcknn import DPCKNN
from slimvit_jax.methods.dtem import DTEM
from slimvit_jax.methods.dynamicvit import DynamicViT
from slimvit_jax.methods.evit import EViT
from slimvit_jax.methods.evo import Evo
from slimvit_jax.methods.ia_red2 import IARED2
from slimvit_jax.methods.kmedoids import KMedoids
from slimvit_jax.methods.life_regression import LifeRegression
from slimvit_jax.methods.mctf import MCTF
from slimvit_jax.methods.patchmerger import PatchMerger
from slimvit_jax.methods.pitome import PiToMe
from slimvit_jax.methods.random import Random
from slimvit_jax.methods.sinkhorn import Sinkhorn
from slimvit_jax.methods.sit import SiT
from slimvit_jax.methods.tofu import ToFu
from slimvit_jax.methods.tome import ToMe
from slimvit_jax.methods.topk import TopK
from slimvit_jax.slimming import Slimming

METHODS: dict[str, type[Slimming]] = {
    cls.method: cls
    for cls in (
        LifeRegression,
        ATC,
        ATS,
        AViT,
        Cropr,
        DPCKNN,
        DTEM,
        DiffRate,
        DynamicViT,
        EViT,
        Evo,
        IARED2,
        KMedoids,
        MCTF,
        PatchMerger,
        PiToMe,
        Random,
        Sinkhorn,
        SiT,
        ToFu,
        ToMe,
        TopK,
    )
}

__all__ = [
    "ATC",
    "ATS",
    "AViT",
    "Cropr",
    "DPCKNN",
    "DTEM",
    "DiffRate",
    "DynamicViT",
    "EViT",
    "Evo",
    "IARED2",
    "KMedoids",
    "LifeRegression",
    "MCTF",
    "METHODS",
    "PatchMerger",
    "PiToMe",
    "Random",
    "SiT",
    "Sinkhorn",
    "Slimming",
    "ToFu",
    "ToMe",
    "TopK",
]
