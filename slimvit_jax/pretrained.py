"""`from_pretrained`: a model with its weights from whatever says what it is."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from slimvit_jax import convert, fresh
from slimvit_jax.build import assemble, list_models
from slimvit_jax.convert import describe, hub, rules
from slimvit_jax.errors import SlimError, unknown
from slimvit_jax.files import read_json
from slimvit_jax.slimming import Slimming

if TYPE_CHECKING:
    from slimvit_jax.backbones.base import Backbone

logger = logging.getLogger(__name__)
CONFIG, IMAGES = "config.json", "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class Described:
    """What a config.json says of a model.

    Attributes:
      name: a named model or a family.
      options: of the backbone.
      preprocess: fields of the preparation of images that differ from the name's own.
      class_names: one per class, or () where it does not say.
      antialias: how position embeddings are resampled where the weights come from.
    """

    name: str
    options: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    class_names: tuple[str, ...] = ()
    antialias: bool = True


def from_pretrained(
    source: str | os.PathLike[str],
    method: str | Slimming | None = None,
    num_classes: int | None = None,
    *,
    model: str | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Backbone, dict[str, Any]]:
    """A model and its variables, ready for `apply`, with the preparation of images and the class names that go with it.

    Args:
      source: one of

        * "hf-hub:OWNER/NAME", a repository of timm's or transformers' form on the Hugging Face hub, whose config.json
          says what the model is. Downloaded once; later calls need no network.
        * a local folder of that form: config.json beside the weights.
        * the folder of a training run: the model and the weights of its last stage.
        * a weights file that `slim.load` reads, with `model`.
      method: a slimming method's name or object; None: the dense model, or what the run was trained with. Parameters
        that the method owns and the weights lack are fresh, which is logged in one line: train them.
      num_classes: another number than the weights have: a fresh classifier; 0: none.
      model: a model's name where the source does not say, or to overrule it.
      seed: of the fresh parameters.
      **options: of `create_model`, for backbone and method; and of `slim.load`.

    Returns:
      (module, variables). `slim.transform_for(module)` prepares images for it; `module.class_names` are () if unknown.

    Raises:
      SlimError: a source that is not there or says nothing known, options or weights that do not fit.
    """
    load, own = convert.split_load_options(options)
    if num_classes is not None:
        own["num_classes"] = num_classes
    run = None
    text = os.fspath(source)
    if not hub.is_hub(text) and _is_run(Path(text)):
        from slimvit_jax.runs import open_run

        if model is not None:
            raise SlimError(f"model={model!r}: {text!r} is a training run, which says what its model is")
        run = open_run(text)
        made = run.create(None, method, **own)
        known: int | None = run.create().num_classes
    else:
        described = _described(text, model)
        known = described.options.get("num_classes")
        made = assemble(described.name, method, {**described.options, **own})
        names = described.class_names if len(described.class_names) == made.num_classes else ()
        made = made.clone(preprocess=made.preprocess.replace(**described.preprocess), class_names=names)
        load.setdefault("antialias", described.antialias)
    load["init_missing"] = _together("method", load.get("init_missing", ()))
    classifier: tuple[str, ...] = ()
    if num_classes is not None:
        classifier = _classifier(made)
        load["init_missing"] = _together(load["init_missing"], classifier if num_classes else ())
        load["ignore"] = _together(load.get("ignore", ()), () if num_classes else classifier)
    load.setdefault("rng", jax.random.key(seed))
    variables = run.variables(made, **load) if run is not None else convert.load(made, text, **load)
    made_up = [*fresh.untrained(variables["params"].get("slim", {}), made.training_only)]
    if num_classes and known not in (None, num_classes):
        made_up += classifier
    if made_up:
        logger.warning("%s: not in the weights of %s; fresh, from seed %d", ", ".join(made_up), text, seed)
    return made, variables


def _together(*names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for group in names for n in ((group,) if isinstance(group, str) else group)))


def _classifier(model: Any) -> tuple[str, ...]:
    """The leading parts of the state-dict names whose arrays have the number of classes in their shape."""
    one, two = (rules.expected(model.clone(num_classes=n, class_names=())) for n in (7, 11))
    return _together([name.split(".")[0] for name, leaf in one.items() if leaf.shape != two[name].shape])


def _is_run(path: Path) -> bool:
    if not (path / CONFIG).is_file():
        return False
    config = read_json(path / CONFIG)
    return isinstance(config, dict) and "schedule" in config


def _described(source: str, model: str | None) -> Described:
    if hub.is_hub(source):
        config = read_json(hub.fetch(source, CONFIG))
        prepare = lambda: _optional(source)
    else:
        path = Path(source)
        if not source or not path.exists():
            raise SlimError(
                f"from_pretrained: {source!r} is not there; give a file, a folder or {hub.PREFIX}OWNER/NAME"
            )
        if not (path / CONFIG).is_file():
            return Described(_named(source, model), {}, {})
        config = read_json(path / CONFIG)
        prepare = lambda: read_json(path / IMAGES) if (path / IMAGES).is_file() else {}
    try:
        if not isinstance(config, dict):
            raise SlimError("it holds no group of fields")
        if "model_type" in config:
            found = _of_transformers(config, prepare())
        elif "architecture" in config:
            found = _of_timm(config, model)
        else:
            raise SlimError("it has neither 'architecture' (timm) nor 'model_type' (transformers)")
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SlimError(f"{source}: {CONFIG} does not say which model this is: {why}") from None
    return found if model is None else dataclasses.replace(found, name=model)


def _optional(source: str) -> Any:
    """What a repository says of the preparation of images; {} where it says nothing."""
    try:
        return read_json(hub.fetch(source, IMAGES))
    except hub.NoSuchFile:
        return {}


def _named(source: str, model: str | None) -> str:
    """The name for weights without a config.json; what they look like is told where none is given."""
    if model is not None:
        return model
    shapes = {name: tuple(array.shape) for name, array in convert.read_state_dict(source).items()}
    looks = describe.phrase(describe.facts(shapes))
    raise SlimError(f"{source}: does not say which model it is of: give model=NAME. It looks like {looks}")


def _of_timm(config: Mapping[str, Any], model: str | None) -> Described:
    """timm/models/_hub.py: load_model_config_from_hf, and what build_model_with_cfg takes from it."""
    facts = config.get("pretrained_cfg", config)  # the older form has everything at the top
    name = model or config["architecture"].partition(".")[0]
    if name not in list_models():
        raise unknown("architecture", name, list_models())
    options = {"num_classes": config.get("num_classes", facts.get("num_classes"))}
    if "input_size" in facts:
        options |= {"in_chans": facts["input_size"][0], "img_size": tuple(facts["input_size"][1:])}
    options |= {"global_pool": facts.get("global_pool")} | config.get("model_args", {})
    prepare = {key: facts.get(key) for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    labels = config.get("label_names") or facts.get("label_names") or ()
    if isinstance(labels, Mapping):  # class number: name
        labels = [labels[key] for key in sorted(labels, key=int)]
    said = config.get("label_descriptions") or facts.get("label_descriptions") or {}
    return Described(name, _given(options), _given(prepare), tuple(str(said.get(label, label)) for label in labels))


#: model_type of transformers to the family that has its layout.
_TRANSFORMERS = {"vit": "vit", "deit": "deit_distilled", "dinov2": "vit", "dinov2_with_registers": "vit"}
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def _of_transformers(config: Mapping[str, Any], images: Mapping[str, Any]) -> Described:
    kind = config["model_type"]
    if kind not in _TRANSFORMERS:
        raise unknown("model_type", kind, _TRANSFORMERS)
    if config.get("hidden_act", "gelu") != "gelu" or config.get("use_swiglu_ffn"):
        raise SlimError("its MLPs are not GELU's: no model here has them")
    classifies = any("ForImageClassification" in name for name in config.get("architectures") or ())
    if classifies and kind.startswith("dinov2"):
        raise SlimError("its classifier reads class token and mean patch together, which no model here does")
    labels = config.get("id2label", {}) if classifies else {}
    dim = config["hidden_size"]
    options = {
        "img_size": config["image_size"],
        "patch_size": config["patch_size"],
        "in_chans": config.get("num_channels", 3),
        "embed_dim": dim,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / dim if "intermediate_size" in config else config["mlp_ratio"],
        "qkv_bias": config.get("qkv_bias", True),
        "num_classes": len(labels),
        "eps": config.get("layer_norm_eps"),
        "init_values": config.get("layerscale_value"),
    }
    if kind == "dinov2_with_registers":
        options |= {"reg_tokens": config["num_register_tokens"], "no_embed_class": True}
    size = images.get("size", {})
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    crop = images.get("crop_size") if images.get("do_center_crop") else None
    crop = crop.get("height") if isinstance(crop, Mapping) else crop
    prepare = {"mean": images.get("image_mean"), "std": images.get("image_std"), "crop_pct": 1.0}
    prepare |= {
        "interpolation": _RESAMPLING.get(images.get("resample", -1)),
        "crop_mode": "center" if edge else "squash",
    }
    prepare |= {"crop_pct": crop / edge} if edge and crop else {}
    names = tuple(labels[key] for key in sorted(labels, key=int))
    antialias = kind == "dinov2_with_registers"  # the only one of them that resamples positions so
    return Described(_TRANSFORMERS[kind], _given(options), _given(prepare), names, antialias)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None; lists as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None
    }
