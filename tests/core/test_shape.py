"""Settings of imported models: which of them cannot work, and what is said about them."""

import math

import pytest
from twins import V

from fledge.core.model import ModelConfig, RopeScaling, Transformer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"head_width": 15}, "head_width = 15 is odd"),
        ({"head_width": 0}, "head_width = 0"),
        ({"window": 0}, "window = 0"),
        ({"window": 4, "causal": False}, "causal = False"),
        ({"window": 4, "window_layers": (3,)}, "counted from 0 to 2"),
        ({"no_rope_layers": (-1,)}, "no_rope_layers has [-1]"),
        ({"qk_norm_whole": True}, "without qk_norm"),
        ({"query_scalar": 0.0}, "query_scalar = 0.0"),
        ({"local_rope_base": math.inf}, "local_rope_base = inf"),
        ({"rope_scaling": RopeScaling(kind="linear", factor=0.0)}, "rope_scaling.factor = 0.0"),
        ({"rope_scaling": RopeScaling(kind="llama3", low=4.0, high=4.0)}, "low below high"),
        ({"rope_scaling": RopeScaling(kind="yarn", beta_slow=32.0, beta_fast=1.0)}, "beta_fast = 1.0"),
        ({"rope_scaling": RopeScaling(kind="yarn", original_context=0)}, "original_context = 0"),
        ({"rope_scaling": RopeScaling(kind="yarn", magnitude=-1.0)}, "magnitude = -1.0"),
        ({"architecture": "bert"}, "'bert' with causal = True"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_named(settings, said):
    with pytest.raises(ValueError) as told:
        Transformer(ModelConfig(size="tiny", vocab_size=V, **settings))
    assert said in str(told.value) and str(told.value).count("; model.") == 0


def test_a_head_width_of_its_own_frees_the_width():
    config = ModelConfig(width=50, heads=4, head_width=16)
    assert config.problems() == [] and Transformer(config.resolved(V)).layers[0].attention_out.shape == (50, 64)
