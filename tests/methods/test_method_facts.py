"""What methods say about themselves is so."""

import pytest

import slimvit_jax as slim
from slimvit_jax.convert import rules
from slimvit_jax.methods import METHODS

SMALL = dict(img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=4, num_heads=2, num_classes=3)


@pytest.mark.parametrize("method", [name for name, cls in METHODS.items() if "keep_rate" in cls.__dataclass_fields__])
def test_weights_of_one_budget_fit_others_where_the_method_says_so(method):
    places = {"locations": (2, 3)} if "locations" in METHODS[method].__dataclass_fields__ else {}
    two = [slim.create_model("vit", method, keep_rate=rate, **places, **SMALL) for rate in (0.8, 0.5)]
    shapes = [{name: leaf.shape for name, leaf in rules.expected(model).items()} for model in two]
    assert (shapes[0] == shapes[1]) == METHODS[method].any_budget


def test_the_papers_count_of_life_regression():
    model = slim.create_model("vit", "life_regression", locations=(2, 3), **SMALL)
    more = slim.flops(model, paper_predictor=True).total - slim.flops(model).total
    assert more == 2 * 16 * 16**2 - (16**2 + 16 * 16)
    with pytest.raises(slim.SlimError, match="paper_predictor=True: method 'topk'"):
        slim.flops(slim.create_model("vit", "topk", locations=(2, 3), **SMALL), paper_predictor=True)
