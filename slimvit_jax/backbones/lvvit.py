"""LV-ViT (Jiang et al. 2021) as the release of SiT has it (models/lvvit.py of Sense-X/SiT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from slimvit_jax import losses as loss_functions
from slimvit_jax.backbones.base import Method, renamed
from slimvit_jax.backbones.classifier import Classifier
from slimvit_jax.backbones.embedding import Embedding
from slimvit_jax.backbones.vit import VisionTransformer
from slimvit_jax.errors import SlimError
from slimvit_jax.layers import Linear, truncated
from slimvit_jax.layers_conv import ConvStem, stem_layers
from slimvit_jax.losses import Targets
from slimvit_jax.named import TIMMS, NamedModel, entry
from slimvit_jax.ops import boxes
from slimvit_jax.options import Count, Positive, kind_of
from slimvit_jax.slimming import Slimming
from slimvit_jax.tokens import Aux, Tokens

STRIDE = 16


class LVEmbedding(Embedding):
    """A distillation token has a position of its own, and training may mix the patches of two images.

    Attributes:
      mixed_grid: the grid whose patches are mixed; None: they are not.
    """

    mixed_grid: tuple[int, int] | None = None

    def setup(self) -> None:
        super().setup()
        if "dist_token" in dict(self.prefix):
            self.dist_pos_embed = self.param("dist_pos_embed", truncated, (1, 1, self.dim), jnp.float32)

    def patch_tokens(self, images: Array, train: bool, mask: Array | None) -> tuple[Array, dict[str, Array]]:
        patches, taps = super().patch_tokens(images, train, mask)
        if self.mixed_grid is None or not train:
            return patches, taps
        inside = boxes.token_box(self.make_rng("dropout"), *self.mixed_grid)
        return boxes.paste(patches, inside, mask), {"pasted": inside}

    def position(self) -> Array:
        if "dist_token" not in dict(self.prefix) or self.on_patches:
            return self.pos_embed
        return jnp.concatenate([self.pos_embed[:, :1], self.dist_pos_embed, self.pos_embed[:, 1:]], axis=1)


class LVClassifier(Classifier):
    """Labels every patch too, by a head of its own."""

    def setup(self) -> None:
        super().setup()
        if self.num_classes:
            self.aux_head = Linear(self.num_classes, dtype=jnp.float32)

    def __call__(self, tokens: Tokens, normed: Tokens, method: Slimming, train: bool) -> tuple[Array, dict[str, Array]]:
        logits, taps = super().__call__(tokens, normed, method, train)
        if self.num_classes and (train or self.is_initializing()):
            taps = {**taps, "token_logits": self.aux_head(normed.patches), "token_origin": normed.origin}
        return logits, taps

    def patch_logits(self, patches: Array) -> Array:
        return self.aux_head(patches)


class LVViT(VisionTransformer, kw_only=True):
    """A vision transformer with a convolutional stem, scaled residuals and a token-labelling head.

    What differs from `VisionTransformer`, whose other options hold here too: the patches come from 3x3 convolutions
    with batch norms (`p_emb`), both branches of every layer are divided by `skip_lam`, layer norms have eps 1e-5,
    queries, keys and values no bias, and `aux_head` classifies every patch. Checkpoints keep that head, and the papers
    count it; it learns by `token_labelling` only, and classifying does not use it. (TokenLabeling's own release adds
    half of its maximum over the patches to the logits; SiT's, whose layout this is, does not.)

    Token labelling (Jiang et al. 2021; tlt/ of zihangJiang/TokenLabeling):

        loss = CE(class head, label) + 0.5 * mean over the patches of CE(aux head, the patch's own label)

    A patch's label is what a labeller says of it (`Targets.labeller.tokens`, (B, N, C) logits); without one it is its
    image's label. With `mix_token` a rectangle of patches comes from another image of the batch: it brings its patches'
    labels along, and the class head's label is both images' in proportion. Methods that drop patches label those held
    at the end. Deviations: the release stores the best classes of every patch beforehand and crops that map
    with the image, ours labels the image it is given; its script weighs the second term by 1, the paper by 0.5.

    A distilled model (`distilled`; in the release conv_distillation) has dist_token, dist_pos_embed and head_dist.

    In training `aux.taps` has "token_logits" (B, n, C) and "token_origin" (B, n) of the patches held at the end, and
    with `mix_token` "pasted" (N,), True inside the rectangle.

    Attributes:
      p_emb: "4c" or "6c" convolutions (stride 16), or "none" for the patch embedding of ViT.
      skip_lam: divides the residual branches.
      token_labelling: train `aux_head`, with the loss "token_labels".
      mix_token: MixToken in training.
      fused: the batch norms are folded into the convolutions; inference only, see `fuse`.
    """

    families = {"lvvit": {}}

    mlp_ratio: Positive = 3.0
    qkv_bias: bool = False
    eps: Positive = 1e-5
    p_emb: Literal["4c", "6c", "none"] = "4c"
    skip_lam: Positive = 2.0
    token_labelling: bool = False
    mix_token: bool = False
    fused: bool = False

    def check_all(self) -> None:
        super().check_all()
        if self.token_labelling and self.slim.merges:
            raise SlimError(f"token_labelling=True: method {self.slim.method!r} merges patches, so they have no label")
        if self.slim.needs_teacher:
            self._check_unmixed(f"method {self.slim.method!r} compares")

    def _check_unmixed(self, who: str) -> None:
        if self.mix_token:
            raise SlimError(f"mix_token=True: {who} with a teacher, which sees the images unmixed")

    @classmethod
    def translate(cls, method: Method, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
        """The releases' keywords: distillation_type="frd" is method "sit", keeping_ratio its keep_rate; return_dense is
        `token_labelling`. stage_blocks is an option of "sit", checked but of no effect without it."""
        method, options = super().translate(method, options)
        renamed(options, "return_dense", "token_labelling")
        renamed(options, "conv_distillation", "distilled")
        kinds = kind_of(Literal["none", "frd"] | None)
        kind = kinds.value("distillation_type", options.pop("distillation_type", None))
        if kind == "frd" and method is None:
            method = "sit"
        if method == "sit":
            renamed(options, "keeping_ratio", "keep_rate")
            return method, options
        options.pop("keeping_ratio", None)
        stages = kind_of(tuple[Count, ...] | None).value("stage_blocks", options.pop("stage_blocks", None))
        depth = kind_of(Count).value("depth", cls.option(options, "depth"))
        if stages is not None and sum(stages) != depth:
            raise SlimError(f"stage_blocks={stages} has {sum(stages)} layers in all; the model has {depth}")
        return method, options

    @classmethod
    def normalise(cls, options: dict[str, Any]) -> dict[str, Any]:
        options = super().normalise(options)
        get = lambda name: cls.option(options, name)
        if get("p_emb") != "none":
            if get("patch_size") != (STRIDE, STRIDE):
                raise SlimError(
                    f"patch_size={get('patch_size')}: the convolutions of p_emb={get('p_emb')!r} have stride"
                    f" {STRIDE}; patches of another size need p_emb='none'"
                )
            if get("embed_dim") % 8:
                raise SlimError(f"embed_dim={get('embed_dim')} must be divisible by 8: the stem begins with an eighth")
        elif get("fused"):
            raise SlimError("fused=True: p_emb='none' has no batch norm to fold")
        if get("token_labelling") and not get("num_classes"):
            raise SlimError("token_labelling=True: with num_classes=0 there is no head to label with")
        return options

    @classmethod
    def named(cls) -> Mapping[str, NamedModel]:
        """Sizes and crops of models/lvvit.py and exp/ of Sense-X/SiT."""
        models = {}
        for size, dim, depth, heads, side, stem, skip_lam, crop in (
            ("t", 320, 14, 5, 224, "4c", 2.0, 0.9),
            ("s", 384, 16, 6, 224, "4c", 2.0, 0.9),
            ("m", 512, 20, 8, 224, "4c", 2.0, 1.0),
            ("l", 768, 24, 12, 288, "6c", 3.0, 1.0),
        ):
            shape = {"img_size": side, "patch_size": STRIDE, "embed_dim": dim, "depth": depth, "num_heads": heads}
            more = {"mlp_ratio": 3.0, "qkv_bias": False, "num_classes": 1000, "p_emb": stem, "skip_lam": skip_lam}
            models[f"lvvit_{size}"] = entry("lvvit", shape | more, TIMMS.replace(crop_pct=crop))
        return models

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return super().tiny() | {"img_size": 64, "patch_size": STRIDE}

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        if "patch_embed.conv1.weight" not in shapes:
            return None
        return {"kind": "LV-ViT", "family": "lvvit", **cls.sizes_in(shapes)}

    @property
    def fuse_partners(self) -> Mapping[str, str]:
        return {} if self.p_emb == "none" else {r"bn(\d+)": r"conv\1"}

    @property
    def position_count(self) -> int:
        return super().position_count - (self.distilled and not self.no_embed_class)  # dist_token has its own

    @property
    def block_options(self) -> dict[str, Any]:
        return super().block_options | {"residual_scale": self.skip_lam}

    def make_patches(self) -> Any:
        if self.p_emb == "none":
            return super().make_patches()
        layers = stem_layers(self.p_emb, self.embed_dim)
        return ConvStem(layers, fused=self.fused, dtype=jnp.dtype(self.dtype))

    def make_embedding(self, kind: type[Embedding] = LVEmbedding, **more: Any) -> Embedding:
        return super().make_embedding(kind, mixed_grid=self.geometry.grid if self.mix_token else None, **more)

    def make_classifier(self, kind: type[Classifier] = LVClassifier) -> Classifier:
        return super().make_classifier(kind)

    def losses(self, logits: Array, aux: Aux, targets: Targets) -> dict[str, Array]:
        losses = super().losses(logits, aux, targets)
        if self.token_labelling:
            losses["token_labels"] = self._token_labels(aux, targets)
        return losses

    def _token_labels(self, aux: Aux, targets: Targets) -> Array:
        labels, labeller = targets.labels, targets.labeller
        own = labels[:, None]
        if labeller is not None and labeller.tokens is not None:
            own = jax.nn.softmax(labeller.tokens.astype(jnp.float32))
        own = jnp.broadcast_to(own, (labels.shape[0], self.geometry.num_patches, labels.shape[1]))
        if self.mix_token:
            own = boxes.paste(own, aux.taps["pasted"], targets.mask)
        origin = None if self.slim.method == "dense" else aux.taps["token_origin"]
        return loss_functions.token_labelling(aux.taps["token_logits"], own, origin, targets.mask)

    def check_teacher(self, teacher: Any) -> None:
        self._check_unmixed('the loss "distillation" compares')
        super().check_teacher(teacher)

    def loss_weights(self, labelled: bool = False) -> dict[str, float]:
        own = {"token_labels": 0.5} if self.token_labelling else {}
        return {**super().loss_weights(labelled), **own}

    def mixed(self, labels: Array, aux: Aux, mask: Array | None = None) -> Array:
        return boxes.mixed_labels(labels, aux.taps["pasted"], mask) if self.mix_token else labels

    @property
    def frozen(self) -> tuple[str, ...]:
        return () if self.token_labelling else (r"aux_head/.*",)
