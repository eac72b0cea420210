"""Token counts for a latency: the cost model, the search on synthetic costs, and one run from end to end."""

import threading
import types

import jax
import numpy as np
import pytest

import slimvit_jax as slim
from slimvit_jax.__main__ import main, parser_of
from slimvit_jax.budget import layerwise, schedules, tune
from slimvit_jax.budget.bench import Bench
from slimvit_jax.budget.cost import CostModel, fit_layer, reductions
from slimvit_jax.budget.given import USUAL, families_of
from slimvit_jax.budget.layerwise import Family, Layerwise, divergence, turned
from slimvit_jax.budget.race import Race, drawn
from slimvit_jax.budget.search import SLACK, descend, neighbours
from slimvit_jax.cli import serve as serve_command
from slimvit_jax.cli import tune as tune_command
from slimvit_jax.cli.common import open_target
from slimvit_jax.methods import METHODS
from slimvit_jax.plan import Geometry, Plan
from slimvit_jax.serve.engine import Engine
from slimvit_jax.training import build, load_config

GEOMETRY = Geometry(grid=(16, 16), depth=12, dim=384, heads=6, mlp_hidden=1536)
ANY = lambda layer, patches: 1
SMALL = dict(img_size=24, patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=3)


# Schedules ------------------------------------------------------------------------------------------------------------


def test_allowed_counts_never_grow_and_leave_what_a_layer_must():
    assert schedules.allowed((15.4, 20, 3, 0), 16, lambda layer, n: n // 2) == (15, 15, 7, 3)
    assert schedules.allowed((196, 150), 196, ANY, step=8) == (196, 152)


@pytest.mark.parametrize("limit", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("name", ["three drops", "constant r", "constant share", "DiffRate's counts"])
def test_schedules_made_by_hand_come_to_the_cost_asked_for(name, limit):
    shapes = schedules.by_hand(256, 12, {"a": [1 - t / 24 for t in range(1, 13)]})
    cost = lambda counts: sum(counts) / (12 * 256)
    make = lambda wanted: schedules.allowed(wanted, 256, ANY)
    counts = schedules.fitted(shapes[name][0], cost, limit, make)
    assert limit - 0.01 < cost(counts) <= limit
    assert schedules.fitted(shapes[name][0], cost, 1e-4, make) is None


def test_three_drops_are_life_regressions():
    assert schedules.three_drops(196, 12)(0.3)[3:] == [138] * 3 + [97] * 3 + [68] * 3


def test_a_scaled_schedule_is_itself_at_a_half():
    assert schedules.scaled((16, 12, 12, 5), 16)(0.5) == pytest.approx([16, 12, 12, 5])
    assert schedules.scaled((16, 12, 12, 5), 16)(0.0) == [16] * 4


def test_lives_say_how_many_patches_are_needed():
    """Of four patches one dies after layer 2, two after layer 3: layers 1 and 2 compute all, layer 4 one."""
    shape = schedules.from_lives([[2.5, 3.5, 3.5, 9.0]], depth=4)
    assert shape(0.5) == [4, 3, 1, 1]
    assert shape(0.0) == [4] * 4 and shape(1.0)[-1] == 1


# The cost -------------------------------------------------------------------------------------------------------------


def test_the_fit_recovers_a_quadratic():
    truth = lambda n: 0.2 + 3e-3 * n + 2e-6 * n * n
    measured = {n: 12 * truth(n) for n in (257, 200, 150, 100, 50)}
    assert fit_layer(measured, 12) == pytest.approx((0.2, 3e-3, 2e-6))
    cost = CostModel(GEOMETRY, 1.5, fit_layer(measured, 12), measured=measured)
    assert cost.dense == pytest.approx(1.5 + 12 * truth(257))
    assert cost.residual < 1e-9
    flat = fit_layer({n: 12 * 0.5 for n in (257, 150, 50)}, 12)
    assert flat[0] == pytest.approx(0.5) and min(flat) >= 0


def test_what_a_method_adds_is_told_from_its_measured_plans():
    cost = CostModel(GEOMETRY, 1.0, (0.1, 2e-3, 1e-6))
    once = Plan((256,) * 4 + (128,) * 8, (256,) * 4 + (128,) * 8)
    often = Plan(tuple(256 - 8 * t for t in range(12)), tuple(248 - 8 * t for t in range(12)))
    assert reductions(once, 256) == (1.0, 0.0) and reductions(Plan((256,) * 12, (256,) * 12), 256) == (0.0, 0.0)
    assert reductions(often, 256)[1] == pytest.approx(sum(256 - 8 * t for t in range(1, 12)) / 256)
    seen = [(once, cost.ms(once) + 0.5), (often, cost.ms(often) + 0.5 + 0.25 * reductions(often, 256)[1])]
    assert cost.with_extra("m", seen).extra["m"] == pytest.approx((0.5, 0.25))


# The search -----------------------------------------------------------------------------------------------------------


def test_the_search_finds_a_planted_optimum_without_going_over_the_cost():
    """Dropping in layer t hurts by a weight that is small in two layers alone: there the drops belong."""
    patches, depth = 64, 8
    weights = np.array([9, 9, 1, 9, 9, 1.5, 9, 9.0])
    cost = lambda counts: sum(counts) / (depth * patches)
    harm = lambda counts: float(weights @ np.square(-np.diff([patches, *counts]))) / 1e4
    start = schedules.fitted(schedules.even(patches, depth), cost, 0.7, lambda w: schedules.allowed(w, patches, ANY, 2))
    told = []
    better = lambda new, old: harm(new) < harm(old)
    counts, seen = descend(
        start, patches, cost, better, 0.7, ANY, 2, 400, lambda done, best: told.append((done, harm(best)))
    )
    drops = -np.diff([patches, *counts])
    assert harm(counts) < 0.5 * harm(start) and cost(counts) <= 0.7
    assert set(np.argsort(drops)[-2:]) == {2, 5}
    assert seen <= 400 and [v for _, v in told] == sorted((v for _, v in told), reverse=True)
    assert descend(start, patches, cost, lambda new, old: False, 0.7, ANY, 2, 400)[0] == start
    assert descend(start, patches, cost, better, 0.7, ANY, 2, 7)[1] == 7


def test_neighbours_change_one_drop_and_another_makes_up_for_the_cost():
    cost = lambda counts: sum(counts) / (6 * 60)
    counts = (60, 51, 51, 30, 30, 30)
    found = [list(neighbours(counts, i, 8, 60, cost, cost(counts), ANY)) for i in range(3)]
    assert not found[2], "there are two drops"
    assert all(cost(counts) * (1 - SLACK) <= cost(other) <= cost(counts) for other in found[0] + found[1])
    assert {(60, 60, 51, 27, 27, 27), (51, 51, 51, 33, 33, 33), (60, 43, 43, 35, 35, 35)} <= set(found[0])
    assert {(60, 51, 51, 51, 19, 19), (60, 44, 44, 44, 30, 30), (60, 51, 51, 40, 25, 25)} <= set(found[1])
    assert all(list(other) == sorted(other, reverse=True) for other in found[0] + found[1])


@pytest.mark.parametrize("count", [10, 60])
def test_the_mean_of_drawn_images_is_that_of_all_without_bias(count):
    """And where the images drawn often are those that differ, nearer to it than that of as many drawn evenly."""
    random = np.random.default_rng(0)
    expected = random.exponential(size=200) ** 3
    actual = expected * random.uniform(0.5, 1.5, size=200)
    drawn_ones = [drawn(expected, count, seed) for seed in range(300)]
    assert all(len(np.unique(chosen)) == count for chosen, _ in drawn_ones)
    means = np.array([weights @ actual[chosen] for chosen, weights in drawn_ones])
    evenly = [actual[random.permutation(200)[:count]].mean() for _ in range(300)]
    assert means.mean() == pytest.approx(actual.mean(), abs=4 * means.std() / 300**0.5)
    assert means.std() < 0.5 * np.std(evenly)


def test_all_images_weigh_the_same():
    chosen, weights = drawn(np.arange(5.0), 9)
    assert sorted(chosen) == [0, 1, 2, 3, 4] and weights == pytest.approx([0.2] * 5)
    assert len(drawn(np.zeros(5), 3)[0]) == 3


class _Told:
    """A bench whose images disagree as told, and that counts what it is asked."""

    def __init__(self, lost):
        self._lost, self.asked = lost, 0

    def lost(self, name, counts):
        self.asked += 1
        return np.asarray(self._lost[counts], float)


def test_a_gain_counts_if_it_is_above_its_error_and_what_is_behind_is_given_up():
    old, new, noisy, worse = (4,), (3,), (2,), (1,)
    parts = [
        _Told({old: [5, 5], new: [4, 4.2], noisy: [3, 6], worse: [5, 6]}),
        _Told({old: [5, 5], new: [4, 4], noisy: [5, 5], worse: [0, 0]}),
    ]
    race = Race(parts, [np.full(2, 0.25)] * 2)
    assert race.better("m", new, old) and not race.better("m", new, new)
    assert not race.better("m", noisy, old), "it gains 1 of 20, with an error of more"
    assert Race(parts, race.weights, margin=0.0).better("m", noisy, old)
    asked = parts[1].asked
    assert not race.better("m", worse, old) and parts[1].asked == asked
    assert race.value("m", new) == pytest.approx(4.05)


# Agreement ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense():
    images = np.random.default_rng(0).normal(size=(5, 24, 24, 1)).astype(np.float32)
    model = slim.create_model("vit", **SMALL)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return model, variables, images


def test_divergence_and_turned_on_paper():
    logits = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    other = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    assert divergence(logits, other) == pytest.approx([0.5 * np.log(4 / 3), 0])
    assert turned(np.array([[1.0, 0], [1, 1]]), np.array([[0, 2.0], [3, 3]])) == pytest.approx([1, 0])


def _families(model):
    for name, cls in METHODS.items():
        for fixed in cls.untrained:
            places = {"locations": (2,)} if "locations" in cls.__dataclass_fields__ else {}
            yield Family(f"{name} {fixed}", cls(**fixed, **places).bind(model.geometry))


def test_layer_by_layer_is_what_the_models_compute(dense):
    """Every method that needs no training, at two schedules that share their first layer."""
    model, variables, images = dense
    layers = Layerwise(model, variables, images, batch_size=4)
    assert np.allclose(layers.outputs(None), jax.jit(model.apply)(variables, images), atol=1e-5)
    for family in _families(model):
        for wanted in ((30, 20, 20), (30, 20, 12)):
            counts = schedules.allowed(wanted, 36, family.method.fewest)
            assert (*family.at(counts).plan.attention[1:], family.at(counts).plan.mlp[-1]) == counts
            if family.name in ("tome {}", "evit {}", "life_regression {'lives': 'coverage', 'squeeze': 'mean'}"):
                found = layers.outputs(family, counts)  # these have hooks at every place of a layer
        if family.name in ("tome {}", "evit {}", "life_regression {'lives': 'coverage', 'squeeze': 'mean'}"):
            whole = jax.jit(model.clone(slim=family.at(counts)).apply)(variables, images)
            assert np.allclose(found, whole, atol=1e-5), family.name


def test_programs_are_shared(dense):
    model, variables, images = dense
    layers = Layerwise(model, variables, images, batch_size=4)
    layers.outputs(None)
    assert layers.programs.compiled == 3  # both halves of a layer, and the head; not one a layer
    family = next(f for f in _families(model) if f.method.method == "random")
    layers.outputs(family, (36, 20, 20))
    before = layers.programs.compiled
    layers.outputs(family, (20, 20, 20))
    assert layers.programs.compiled == before  # the same numbers of tokens elsewhere


def test_programs_past_the_limit_are_forgotten(dense, monkeypatch):
    """A process can hold so many; what is wanted again is compiled again, and nothing comes out otherwise."""
    model, variables, images = dense
    family = next(f for f in _families(model) if f.method.method == "random")
    schedules_of = [(36, 20, 20), (30, 18, 18), (36, 20, 20)]
    expected = [Layerwise(model, variables, images, batch_size=4).outputs(family, counts) for counts in schedules_of]
    monkeypatch.setattr(layerwise, "MOST_PROGRAMS", 4)
    programs = layerwise.Programs()
    for counts, wanted in zip(schedules_of, expected, strict=True):
        layers = Layerwise(model, variables, images, batch_size=4, programs=programs)
        assert np.array_equal(layers.outputs(family, counts), wanted)
        assert len(programs) <= 4
    assert programs.compiled > 12


# From end to end ------------------------------------------------------------------------------------------------------


def test_fit_budget_gives_options_that_meet_the_target(tmp_path):
    """Layers that take most of the time, and little asked for: a busy machine's clock does not decide."""
    images = np.random.default_rng(0).normal(size=(6, 48, 48, 1)).astype(np.float32)
    model = slim.create_model("vit", **SMALL | {"img_size": 48, "embed_dim": 64})
    variables = jax.jit(model.init)(jax.random.key(0), images)
    said = []
    budget = tune(
        model, variables, images, speedup=1.02, methods="random", labels=np.zeros(6, int), batch_size=6,
        search_images=6, evaluations=6, front=(), rounds=2, seconds=0.03, progress=said.append,
    )  # fmt: skip
    faster = slim.create_model("vit", **SMALL | {"img_size": 48, "embed_dim": 64}, **budget.options)
    assert jax.eval_shape(faster.apply, variables, images).shape == (6, 3)
    assert (*faster.slim.plan.attention[1:], faster.slim.plan.mlp[-1]) == budget.counts
    assert budget.counts[-1] < 144 and budget.found.accuracy is not None and said
    assert budget.by_hand and {row.shape for row in budget.by_hand} <= {"three drops", "constant r", "constant share"}
    from slimvit_jax.reports.front import draw_front, front_table

    assert draw_front(tmp_path / "front.svg", budget).stat().st_size > 1000
    assert front_table(budget).row_count == 1 + len(budget.by_hand)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(), "target_ms=None and speedup=None"),
        (dict(speedup=1.5, target_ms=3.0), "give one of them"),
        (dict(speedup=0.9), "speedup=0.9 must be above 1"),
        (dict(target_ms=-1.0), "target_ms=-1.0 must be"),
        (dict(speedup=1.5, methods="avit"), "unknown method that needs no training 'avit'"),
        (dict(speedup=1.5, labels=[1]), "1 labels for 5 images"),
        (dict(speedup=1.5, labels=3), "1 labels for 5 images"),
        (dict(speedup=1.5, labels=[0, 1, 2, -1, 99]), r"labels hold -1: this model has classes 0\.\."),
        (dict(speedup=1.5, images=np.zeros((5, 8, 8, 1))), "images of shape"),
        (dict(speedup=1.5, images=np.zeros((5, 24, 24, 1), np.uint8)), "images of uint8: floats are due"),
        (dict(speedup=1.5, images=["a.jpg", "b.jpg"]), "images of <U5: floats are due"),
        (dict(speedup=1.5, images=[np.zeros((24, 24, 1)), np.zeros((8, 8, 1))]), "images of several shapes"),
        (dict(speedup=1.5, images=np.full((1, 24, 24, 1), np.nan)), r"images \[0\] hold values that are no finite"),
        (dict(speedup=1.5, methods=5), "methods=5 must be text"),
        (dict(speedup=1.5, batches=2), "unknown option of tune 'batches'"),
        (dict(speedup=1.5, batch_size=0), "batch_size=0 must be a whole number of at least 1"),
        (dict(speedup=1.5, evaluations=-1), "evaluations=-1 must be a whole number of at least 0"),
        (dict(speedup=1.5, front=(0.5,)), r"front=\(0.5,\) must be"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(dense, change, words):
    model, variables, images = dense
    with pytest.raises(slim.SlimError, match=words):
        tune(model, variables, change.pop("images", images), **change)


def test_weights_that_are_no_numbers_are_told(dense):
    model, variables, images = dense
    broken = jax.tree.map(lambda leaf: leaf * np.nan, variables)
    layers, cost = Layerwise(model, broken, images), CostModel(model.geometry, 0.0, (1.0, 0.0, 0.0))
    with pytest.raises(slim.SlimError, match="look at its weights"):
        Bench(model, broken, layers, cost, {})


def test_methods_that_cannot_be_told_counts_are_refused(dense):
    model, variables, images = dense
    own = slim.create_model("vit", "evo", locations=(2, 3), **SMALL)
    with pytest.raises(slim.SlimError, match="method 'evo' cannot be told how many patches to leave"):
        tune(own, variables, images, speedup=1.5)


@pytest.mark.parametrize("name", USUAL)
def test_a_config_of_tune_is_one_to_train_evaluate_export_and_serve(dense, tmp_path, name):
    model, variables, images = dense
    family = next(iter(families_of(model, name).values()))
    counts = schedules.allowed((30, 24, 12), 36, family.method.fewest)
    budget = types.SimpleNamespace(
        options=family.options(counts), ms=2.0, dense_ms=3.0, batch_size=1, measure="KL", images=5,
        found=types.SimpleNamespace(disagreement=0.1),
    )  # fmt: skip
    weights = tmp_path / "w.safetensors"
    slim.save(model, variables, weights)
    args = _arguments(["tune", "--model=vit", f"--weights={weights}", "--target-ms=2", *_words(SMALL)])
    (file := tmp_path / "config.py").write_text(tune_command.config_text(args, open_target(args), budget))
    trained = build.build_model(load_config(file))
    assert (*trained.slim.plan.attention[1:], trained.slim.plan.mlp[-1]) == counts

    args = _arguments(["serve", f"--config={file}", f"--weights={weights}"])
    target = open_target(args)  # as evaluate, predict and export do
    budgets, default = serve_command.slider(args, target)
    assert len(budgets) > 1, "the slider has other keep rates beside what was tuned"
    rate = open_target(_arguments(["serve", f"--config={file}", f"--weights={weights}", "--keep-rate=0.5"])).model.slim
    assert rate.method == trained.slim.method and rate.plan != trained.slim.plan, "what is asked for wins"
    chosen = next(each for each in budgets if each.name == default)
    assert chosen.facts()["token_counts"] == target.model.slim.plan.token_counts
    assert chosen.model.slim.plan == trained.slim.plan
    engine = Engine([chosen], target.load(), (5,))
    engine.prepare(lambda done: None, threading.Event())
    told = [answer.logits for answer in engine.run(default, list(images))]
    layers = Layerwise(model, variables, images)
    assert np.allclose(told, layers.outputs(family, counts), atol=1e-5)


def test_a_config_of_tune_fits_the_weights_as_it_did(dense, tmp_path):
    model, variables, _ = dense
    slim.save(model, variables, weights := tmp_path / 'odd \\N """ name.safetensors')
    larger = _words(SMALL | {"img_size": 32})
    args = _arguments(["tune", "--model=vit", f"--weights={weights}", "--target-ms=2", "--resample-pos-embed", *larger])
    budget = types.SimpleNamespace(
        options={"method": "random", "locations": (2,)}, ms=2.0, dense_ms=3.0, batch_size=1, measure="KL", images=5,
        found=types.SimpleNamespace(disagreement=0.1),
    )  # fmt: skip
    (file := tmp_path / "config.py").write_text(tune_command.config_text(args, open_target(args), budget))
    assert load_config(file).init.options.to_dict() == {"resample_pos_embed": True}
    again = open_target(_arguments(["serve", f"--config={file}", f"--weights={weights}"])).load()
    assert again["params"]["pos_embed"].shape[1] == 1 + 64
    with pytest.raises(slim.SlimError, match="pos_embed"):
        open_target(_arguments(["serve", "--model=vit", f"--weights={weights}", *larger])).load()


def _arguments(words):
    return parser_of(words[0]).parse_args(words)


def _words(options):
    return [f"--set={key}={value}" for key, value in options.items()]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--target-speedup=0.5"], "speedup=0.5 must be above 1"),
        (["--target-ms=3", "--methods=tome,foo"], "unknown method that needs no training 'foo'"),
        (["--target-ms=3"], "no images to agree on: give --images DIR, or --data NAME"),
        (["--target-ms=3", "--images=nowhere"], "--images nowhere: there is no such folder"),
        (["--target-ms=3", "--images=a", "--data=digits"], "--images a and --data digits: give one of them"),
        (["--target-ms=3", "--config=nowhere.py"], "no config file 'nowhere.py'"),
        (["--target-ms=3", "--model=levit"], "LeViT has no layers of one kind"),
        (["--target-ms=3", "--seed=-1"], "'-1' is not a whole number of at least 0"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, words, said):
    (tmp_path / "w.safetensors").touch()
    model = ["--model=vit", f"--weights={tmp_path / 'w.safetensors'}", f"--out={tmp_path / 'out'}"]
    assert main(["tune", *model, *words]) == 2
    assert said in capsys.readouterr().err
