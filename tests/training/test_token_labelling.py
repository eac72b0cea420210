"""Token labelling, MixToken and the labels of another network: arithmetic against NumPy, then small training runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_tools import CACHE, tiny

import slimvit_jax as slim
from slimvit_jax import losses, training
from slimvit_jax.ops import boxes
from slimvit_jax.tokens import Aux
from slimvit_jax.training import build, optim
from slimvit_jax.training.config import add_stage, default_config
from slimvit_jax.training.labeller import Labeller, build_labeller
from slimvit_jax.training.loading import override

RNG = np.random.default_rng(0)
TINY = dict(img_size=16, patch_size=4, p_emb="none", in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=10)


def made_up(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def soft(x):
    return np.exp(log_softmax(x))


# Pure functions --------------------------------------------------------------------------------------------------


def test_a_rectangle_is_pasted_from_the_mirrored_image():
    tokens, inside = np.arange(3 * 4 * 2.0).reshape(3, 4, 2), np.array([False, True, True, False])
    pasted = boxes.paste(jnp.asarray(tokens), jnp.asarray(inside))
    expected = tokens.copy()
    expected[:, 1:3] = tokens[::-1, 1:3]
    np.testing.assert_array_equal(pasted, expected)
    np.testing.assert_array_equal(boxes.paste(pasted, jnp.asarray(inside)), tokens)


def test_labels_are_mixed_by_area():
    labels, inside = np.eye(3, dtype=np.float32), np.array([True, False, False, False])
    mixed = boxes.mixed_labels(jnp.asarray(labels), jnp.asarray(inside))
    np.testing.assert_allclose(mixed, 0.75 * labels + 0.25 * labels[::-1])
    np.testing.assert_allclose(mixed.sum(1), 1)


def test_boxes_are_rectangles_of_every_size():
    drawn = jax.vmap(lambda key: boxes.token_box(key, 14, 10))(jax.random.split(jax.random.key(0), 200))
    areas = np.asarray(drawn).sum(1)
    assert areas.min() < 3 and areas.max() > 80 and 30 < areas.mean() < 70
    for box in np.asarray(drawn).reshape(-1, 14, 10)[:50]:
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns[None])
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2 and np.abs(np.diff(columns.astype(int))).sum() <= 2


def test_token_labelling_loss():
    logits, targets = made_up(2, 4, 5), soft(made_up(2, 4, 5))
    each = -(targets * log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(losses.token_labelling(logits, targets), each.mean(-1), rtol=1e-5)
    held, origin = logits[:, :3], np.array([[2, 0, -1], [3, 1, 1]])
    places = [(b, i, o) for b in (0, 1) for i, o in enumerate(origin[b]) if o >= 0]
    every = [-(targets[b, o] * log_softmax(held[b, i])).sum() for b, i, o in places]
    np.testing.assert_allclose(losses.token_labelling(held, targets, origin).mean(), np.mean(every), rtol=1e-5)
    gradient = jax.grad(lambda t: losses.token_labelling(logits, t).sum())(targets)
    assert not np.asarray(gradient).any()


def lvvit(**options):
    return slim.create_model("lvvit", **{**TINY, "token_labelling": True, **options})


def reference(taps, labels, inside=None, dense=None):
    """The two losses of LV-ViT, image by image and patch by patch."""
    batch, n = taps["token_logits"].shape[:2]
    inside = np.zeros(n, bool) if inside is None else inside
    share, classes, tokens = inside.mean(), [], []
    for b in range(batch):
        other = batch - 1 - b
        target = (1 - share) * labels[b] + share * labels[other]
        classes.append(-(target * log_softmax(taps["logits"][b])).sum())
        for i in range(n):
            source = other if inside[i] else b
            target = labels[source] if dense is None else soft(dense[source, i])
            tokens.append(-(target * log_softmax(taps["token_logits"][b, i])).sum())
    return np.mean(classes), np.mean(tokens)


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_losses_of_lvvit(mix, dense):
    model, labels = lvvit(mix_token=mix), soft(made_up(3, 10))
    taps = {"token_logits": made_up(3, 16, 10), "token_origin": np.tile(np.arange(16), (3, 1))}
    inside = np.zeros(16, bool)
    inside[[5, 6, 9, 10]] = mix
    maps = made_up(3, 16, 10) if dense else None
    more = {"pasted": inside} if mix else {}
    labeller = losses.Predictions(made_up(3, 10), maps) if dense else None
    logits, aux = made_up(3, 10), Aux((16,) * 3, (), None, None, taps | more)
    found = model.losses(logits, aux, slim.Targets(labels, labeller=labeller))
    classification, tokens = reference(taps | {"logits": logits}, labels, inside, maps)
    assert set(found) == set(model.loss_weights(dense)) and model.loss_weights()["token_labels"] == 0.5
    np.testing.assert_allclose(found["classification"].mean(), classification, rtol=1e-5)
    np.testing.assert_allclose(found["token_labels"].mean(), tokens, rtol=1e-5)


def test_who_teaches_which_head_of_evo_levit():
    """With a labeller the first head of each pair learns the labels, the second the labeller's first choice."""
    options = dict(img_size=64, embed_dim=(16, 24), depth=(2, 2), num_heads=(2, 3), key_dim=8, num_classes=5)
    model, labels = slim.create_model("evo_levit", distilled=True, **options), soft(made_up(3, 5))
    heads = {name: made_up(3, 5) for name in ("head_logits", "dist_logits", "class_logits", "class_dist_logits")}
    choice = made_up(3, 5)
    entropy = lambda name, target: -(target * log_softmax(heads[name])).sum(-1)
    for labelled in (False, True):
        labeller = losses.Predictions(choice) if labelled else None
        found = model.losses(None, Aux((), (), None, None, heads), slim.Targets(labels, labeller=labeller))
        assert set(found) == set(model.loss_weights(labelled))
        first, second = ("head_logits", "class_logits"), ("dist_logits", "class_dist_logits")
        hard = np.eye(5)[choice.argmax(-1)]
        for name, one, two in zip(("classification", "class_token"), first, second, strict=True):
            mean = entropy(one, labels) if labelled else (entropy(one, labels) + entropy(two, labels)) / 2
            np.testing.assert_allclose(found[name], mean, rtol=1e-5)
        if labelled:
            expected = np.mean([entropy(name, hard) for name in second], axis=0)
            np.testing.assert_allclose(found["hard_distillation"], expected, rtol=1e-5)


def test_patches_that_are_left_keep_their_labels():
    """EViT drops half of the patches: those held at the end are labelled by where they come from, the fused one not."""
    model = lvvit(method="evit", keep_rate=0.5, locations=(2,))
    labels, images = soft(made_up(2, 10)), made_up(2, 16, 16, 1)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    step = jax.jit(lambda v: model.apply(v, images, train=True, return_aux=True, rngs={"dropout": jax.random.key(0)}))
    logits, aux = step(variables)
    maps = made_up(2, 16, 10)
    found = model.losses(logits, aux, slim.Targets(labels, labeller=losses.Predictions(logits, maps)))
    origin, predicted = np.asarray(aux.taps["token_origin"]), np.asarray(aux.taps["token_logits"])
    assert origin.shape == (2, 9) and (origin == -1).sum() == 2
    places = zip(*np.nonzero(origin >= 0), strict=True)
    each = [-(soft(maps[b, origin[b, i]]) * log_softmax(predicted[b, i])).sum() for b, i in places]
    np.testing.assert_allclose(found["token_labels"].mean(), np.mean(each), rtol=1e-5)


def test_mixing_happens_to_the_tokens_in_training_alone():
    model, images = lvvit(mix_token=True, depth=1), made_up(4, 16, 16, 1)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    step = jax.jit(lambda key: model.apply(variables, images, train=True, return_aux=True, rngs={"dropout": key}))
    sizes = set()
    for seed in range(6):
        _, aux = step(jax.random.key(seed))
        sizes.add(int(aux.taps["pasted"].sum()))
    assert len(sizes) > 2
    patches, key = lambda model, train: model.embed.patch_tokens(images, train, None), jax.random.key(1)
    embedded = lambda train: model.apply(variables, train, method=patches, rngs={"dropout": key})
    (mixed, taps), (plain, none) = embedded(True), embedded(False)
    np.testing.assert_array_equal(mixed, boxes.paste(plain, taps["pasted"]))
    assert none == {}


# Who labels ------------------------------------------------------------------------------------------------------


def config_of(student, labeller=None, method=""):
    config = default_config()
    config.model.name, config.model.options = "lvvit", {**TINY, **student}
    config.method.name = method
    config.method.options = {"locations": (1, 2)} if method else {}
    if labeller is not None:
        config.labeller.update(labeller)
    config.data.update(name="digits", batch_size=16)
    config.eval.batch_size = 120
    config.cache_dir = CACHE
    return config


def test_labels_of_every_patch():
    """The aux head of an LV-ViT; of a ViT that pools patches, its head, whose mean over the patches are its logits."""
    images = made_up(2, 16, 16, 1)
    pooled = {k: v for k, v in TINY.items() if k != "p_emb"} | {"class_token": False, "global_pool": "avg"}
    for name, options in (("lvvit", TINY), ("vit", {**pooled, "fc_norm": False})):
        model = slim.create_model(name, **options)
        variables = jax.jit(model.init)(jax.random.key(0), images)
        logits, tokens = jax.jit(lambda v, m=model: m.apply(v, images, method="label_tokens"))(variables)
        assert tokens.shape == (2, 16, 10)
        np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, images), atol=1e-5)
        if name == "vit":
            np.testing.assert_allclose(tokens.mean(1), logits, atol=1e-5)


def test_labels_of_another_grid_and_of_other_normalisation():
    seen = []

    def function(images):
        seen.append(images)
        return jnp.zeros((2, 10)), jnp.broadcast_to(jnp.arange(2.0).reshape(1, 2, 1, 1), (2, 2, 2, 10))

    labels = Labeller(function, True, (4, 4), gain=(2.0,), shift=(1.0,))({}, jnp.ones((2, 16, 16, 1)))
    np.testing.assert_allclose(seen[0], 3.0)
    assert labels.tokens.shape == (2, 16, 10)
    np.testing.assert_allclose(labels.tokens[0, ::4, 0], [0, 0.25, 0.75, 1])  # rows, between two of two
    assert Labeller(function, False, (4, 4))({}, jnp.ones((2, 16, 16, 1))).tokens is None


def test_a_named_labeller_gets_its_own_normalisation():
    config = default_config()
    config.model.name = "deit_tiny_distilled_patch16_224"
    config.labeller.name = "vit_tiny_patch16_224"
    model = build.build_model(config, slimmed=False)
    found = build_labeller(config, model, build.build_preprocess(config))
    pixels = np.array([0.2, 0.5, 0.9])
    student = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(student * found.gain + found.shift, (pixels - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "labeller", "method", "words"),
    [
        ({}, {"name": "vit"}, "", "has no use for labels"),
        ({"distilled": True}, {"name": "vitt"}, "", "unknown model 'vitt'"),
        ({"distilled": True}, {"name": "vit", "options": {"num_classes": 5}}, "", "num_classes=5, but the student has"),
        ({"token_labelling": True}, {"name": "levit"}, "", "cannot label single patches"),
        ({"token_labelling": True}, None, "sit", "merges patches"),
        ({"mix_token": True}, None, "dynamicvit", "sees the images unmixed"),
        ({"mix_token": 1}, None, "", "mix_token=1 must be True or False"),
    ],
)
def test_what_does_not_fit_is_refused(student, labeller, method, words):
    config = config_of(student, labeller, method)
    if labeller is not None and labeller["name"] == "levit":
        config.labeller.options = {"embed_dim": (16,), "depth": (1,), "num_heads": (1,), "key_dim": 8}
    elif labeller is not None:
        config.labeller.options.update({"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1})
    with pytest.raises(slim.SlimError, match=words):
        model = build.build_model(config, slimmed=bool(method))
        build_labeller(config, model, build.build_preprocess(config))


# Training --------------------------------------------------------------------------------------------------------


def test_the_aux_head_learns_by_token_labelling_alone():
    for student, learns in (({}, False), ({"token_labelling": True}, True)):
        config = config_of(student)
        for name, trainable in (("all", "all"), ("backbone", "backbone"), ("named", ("aux_head/.*", "head/.*"))):
            add_stage(config, name, slimmed=False, trainable=trainable, steps=1)
        paths = {}
        for name in config.schedule:
            stage = build.build_stage(config, name, 3)
            paths[name] = set(optim.flat(jax.eval_shape(lambda stage=stage: stage.state(*stage.fresh())).params))
        assert ("aux_head/kernel" in paths["all"]) == learns and paths["all"] == paths["backbone"]
        assert paths["named"] == {"aux_head/kernel", "aux_head/bias", "head/kernel", "head/bias"}
        assert "head/kernel" in paths["all"] and "blocks_0/attn/qkv/kernel" in paths["all"]


def test_training_a_teacher_then_sit_with_a_second_teacher(tmp_path):
    """LV-ViT by token labelling, then SiT on its distillation token from that teacher and a labeller with weights."""
    options = dict(img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=1, num_classes=10)
    network = slim.create_model("vit", **options)
    variables = jax.jit(network.init)(jax.random.key(5), jnp.zeros((1, 16, 16, 1)))
    bias = jnp.zeros(10).at[3].set(100.0)  # a labeller of one opinion, which the distillation head must take over
    variables["params"]["head"]["bias"] = bias
    slim.save(network, variables, tmp_path / "labeller.safetensors")
    labeller = {"name": "vit", "options": {k: options[k] for k in ("patch_size", "embed_dim", "depth", "num_heads")}}
    config = config_of({"distilled": True}, labeller | {"path": str(tmp_path / "labeller.safetensors")}, "sit")
    rate = {"backbone": 3e-3}
    teach = {"token_labelling": True, "mix_token": True}
    add_stage(config, "dense", slimmed=False, steps=6, lr=rate, model_options=teach)
    add_stage(config, "sit", steps=8, lr=rate, loss_weights={"hard_distillation": 2.0})
    config.report.enabled, config.log.every_steps, config.log.tensorboard = False, 1, False
    result = training.run(training.validate(config), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    dense = [r for r in rows if r["kind"] == "train" and r["stage"] == "dense"]
    sit = [r for r in rows if r["kind"] == "train" and r["stage"] == "sit"]
    assert {"loss_classification", "loss_token_labels", "loss_hard_distillation"} <= set(dense[0])
    parts = {"classification": 1.0, "token_distillation": 2.0, "distillation": 2.0, "hard_distillation": 2.0}
    total = sum(weight * sit[0][f"loss_{name}"] for name, weight in parts.items())
    assert sit[0]["loss"] == pytest.approx(total, rel=1e-4)
    assert sit[-1]["loss_hard_distillation"] < 0.8 * dense[0]["loss_hard_distillation"]
    before, after = (result.variables[s]["params"]["aux_head"]["kernel"] for s in ("dense", "sit"))
    np.testing.assert_array_equal(before, after)
    fresh = build.init_variables(build.build_model(config, slimmed=False), config.seed)
    assert np.abs(before - fresh["params"]["aux_head"]["kernel"]).max() > 1e-4


def test_a_function_labels_too(tmp_path):
    config = config_of({"distilled": True})
    add_stage(config, "dense", slimmed=False, steps=2)
    config.report.enabled, config.log.tensorboard = False, False
    weights = made_up(256, 10)

    def network(images):  # of another framework, called out of the compiled step
        shape = jax.ShapeDtypeStruct((images.shape[0], 10), jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(x).reshape(len(x), -1) @ weights, shape, images)

    training.run(training.validate(config), tmp_path / "run", labeller=network)
    assert "loss_hard_distillation" in (tmp_path / "run" / "metrics.jsonl").read_text()
    config.labeller.name = "vit"
    with pytest.raises(slim.SlimError, match="one can label"):
        build.build_stage(config, "dense", 3, labeller=network)
    with pytest.raises(slim.SlimError, match="it gives 10 classes, the student has 5"):
        Labeller(network, False, (4, 4), classes=5)({}, jnp.ones((2, 16, 16, 1)))
    with pytest.raises(slim.SlimError, match=r"it must give \(B, classes\) logits"):
        Labeller(lambda x: x, False, (4, 4))({}, jnp.ones((2, 16, 16, 1)))


def test_only_the_stages_that_learn_labels_get_them():
    """A labeller of patches for the teacher, and SiT from it, which has no use for labels of patches."""
    config = config_of({}, {"name": "lvvit", "options": {k: v for k, v in TINY.items() if k != "num_classes"}}, "sit")
    add_stage(config, "dense", slimmed=False, steps=1, model_options={"token_labelling": True})
    add_stage(config, "sit", steps=1)
    stages = [build.build_stage(training.validate(config), name, 3) for name in config.schedule]
    assert stages[0].labeller.dense and stages[1].labeller is None
    assert "hard_distillation" not in stages[1].options.loss_weights


def test_a_labeller_without_weights_is_refused(tmp_path):
    config = config_of({"distilled": True}, {"name": "vit", "options": {"patch_size": 4, "depth": 1}})
    add_stage(config, "dense", slimmed=False, steps=1)
    config.report.enabled = False
    with pytest.raises(slim.SlimError, match="config.labeller.path is empty"):
        training.run(training.validate(config), tmp_path / "run")


def test_a_distilled_student_of_a_plain_teacher(tmp_path):
    """The start that docs/methods.md describes: weights without a distillation token, for a student that has one."""
    plain = lvvit(token_labelling=False)
    variables = jax.jit(plain.init)(jax.random.key(7), jnp.zeros((1, 16, 16, 1)))
    slim.save(plain, variables, tmp_path / "plain.safetensors")
    config = config_of({"distilled": True}, method="sit")
    for field, text in (
        ("teacher.options.distilled", "False"),
        ("init.options.init_missing", "('dist_token', 'dist_pos_embed', 'head_dist')"),
        ("init.path", str(tmp_path / "plain.safetensors")),
    ):
        override(config, field, text)
    add_stage(config, "sit", steps=1)
    stage = build.build_stage(training.validate(config), "sit", 3)
    assert not stage.teacher.distilled and stage.model.distilled
    teacher, student = build.start_variables(config, stage.teacher), build.start_variables(config, stage.model)
    assert jax.tree.all(jax.tree.map(np.array_equal, teacher, variables))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["params"]["head"], student["params"]["head"]))
    assert "dist_token" in student["params"] and "rtsm_1" in student["params"]["slim"]


def test_a_teacher_without_weights_is_refused(tmp_path):
    config = config_of({}, method="sit")
    add_stage(config, "sit", steps=1)
    config.report.enabled = False
    with pytest.raises(slim.SlimError, match="a teacher that has no weights; set config.init.path"):
        training.run(training.validate(config), tmp_path / "run")


def test_a_named_model_with_a_method_has_a_dense_form():
    """What a config starts from and learns from: `sit_s` without its method is `lvvit_s`."""
    config = tiny(config_of({}, method="sit"))
    config.model.name = "sit_s"
    config.model.options.update({"p_emb": "none", "in_chans": 3})
    add_stage(config, "sit", steps=1)
    dense, teacher = build.build_model(config, slimmed=False), build.build_stage(config, "sit", 3).teacher
    plain = slim.create_model("lvvit_s", **config.model.options.to_dict())
    assert dense == teacher == plain and dense.slim.method == "dense"
    assert build.build_model(config).slim.method == "sit"
    whole = slim.create_model("sit_s", slim.Slimming())
    assert whole == slim.create_model("lvvit_s")
