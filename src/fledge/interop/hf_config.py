"""A ModelConfig as config.json: which families can hold it, and what each writes.

Rotary fields are written the older way (rope_theta beside rope_scaling), which every version of `transformers`, vLLM
and llama.cpp's converter reads.
"""

from typing import Any

import msgspec

from fledge.core.model import ModelConfig, RopeScaling
from fledge.interop.families import FAMILIES, read_config

# What a card may say that no other tool's config.json can.
_ELSEWHERE = {"size": "pocket", "dtype": "float32"}


def _comparable(model: ModelConfig) -> ModelConfig:
    """The same model without what does not change it: names, and windows that reach over every position."""
    c = msgspec.structs.replace(model.resolved(), **_ELSEWHERE)
    if c.head == "tokens+value":
        c = msgspec.structs.replace(c, head="tokens")
    if c.head != "class":
        c = msgspec.structs.replace(c, classes=2)
    if c.head in ("reward", "class"):
        c = msgspec.structs.replace(c, tied=False)  # they have no output rows to share
    if c.window_layers is not None and len(c.window_layers) == c.layers:
        c = msgspec.structs.replace(c, window_layers=None)
    if c.query_scalar == c.head_width:
        c = msgspec.structs.replace(c, query_scalar=None)
    if c.rope_scaling.kind == "none":
        c = msgspec.structs.replace(c, rope_scaling=RopeScaling())
    return c


def fitting(model: ModelConfig) -> list[str]:
    """The families whose config.json can say everything about this model, the plainest first."""
    wanted = _comparable(model)
    return [family for family in FAMILIES if _says(family, model, wanted)]


def _says(family: str, model: ModelConfig, wanted: ModelConfig) -> bool:
    try:
        return _comparable(read_config(write_config(family, model)).model) == wanted
    except ValueError:  # a value that this family does not know
        return False


def choose_family(model: ModelConfig, wish: str | None = None, usual: str | None = None) -> tuple[str, ModelConfig]:
    """(family, model as it is written) for an export: `wish`, or else `usual` where it can, or else the plainest.

    Where only a bias of the attention's output is missing, the model is written with one, which is zero. Raises
    ValueError where no family, or not the one wished for, can hold the model.
    """
    able: list[str] = []
    for written in (model, msgspec.structs.replace(model, out_bias=True)) if model.bias else (model,):
        found = fitting(written)
        able += found
        for family in (wish,) if wish else (usual, *found):
            if family in found:
                return family, written
    if wish:
        raise ValueError(f"family = {wish!r}: it cannot hold this model; those that can: {', '.join(able) or 'none'}")
    why = ": it was trained with causal = false, in the shape of a decoder" if not model.causal else ""
    raise ValueError(f"no family of Hugging Face that is known here can hold this model{why}")


def write_config(family: str, model: ModelConfig) -> dict[str, Any]:
    """config.json of a model in a family, without the ids of its control tokens."""
    c = model.resolved()
    prefix = FAMILIES[family].prefix
    tasks = {"reward": "SequenceClassification", "class": "SequenceClassification"}
    written: dict[str, Any] = {
        "architectures": [f"{prefix}For{tasks.get(c.head, 'MaskedLM' if family == 'bert' else 'CausalLM')}"],
        "model_type": family,
        "torch_dtype": c.dtype,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.ffn_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "max_position_embeddings": c.context_tokens,
        "tie_word_embeddings": c.tied and c.head not in ("reward", "class"),
        "initializer_range": 0.02,
        "use_cache": True,
    }
    if c.head in ("reward", "class"):
        count = 1 if c.head == "reward" else c.classes
        written["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        written["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    if family == "bert":
        return written | {
            "hidden_act": "gelu",
            "type_vocab_size": c.token_types,
            "layer_norm_eps": c.norm_eps,
            "tie_word_embeddings": c.tied,
        }
    written |= {
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_width,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_base,
        "rope_scaling": _rope_scaling(c.rope_scaling),
    }
    if family not in ("mistral", "qwen2"):
        written["attention_bias"] = c.out_bias
    if family in ("llama", "smollm3"):
        written["mlp_bias"] = c.mlp_bias
    if family == "gemma3_text":
        written |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_local_base_freq": c.local_rope_base or 1e4,
            "query_pre_attn_scalar": _whole(c.query_scalar or float(c.head_width)),
        }
    else:
        written["hidden_act"] = "silu"
    return written | _windows(family, c)


def _whole(value: float) -> float:
    """A whole number without its point, as older readers of integer fields want it."""
    return int(value) if value == int(value) else value


def _rope_scaling(s: RopeScaling) -> dict[str, Any] | None:
    if s.kind == "none":
        return None
    written: dict[str, Any] = {"rope_type": s.kind, "factor": s.factor}
    if s.kind != "linear":
        written["original_max_position_embeddings"] = s.original_context
    if s.kind == "llama3":
        written |= {"low_freq_factor": s.low, "high_freq_factor": s.high}
    if s.kind == "yarn":
        written |= {"beta_slow": s.beta_slow, "beta_fast": s.beta_fast, "truncate": s.truncate}
        if s.magnitude is not None:
            written["attention_factor"] = s.magnitude
    return written


def _windows(family: str, c: ModelConfig) -> dict[str, Any]:
    if family in ("llama", "olmo2"):
        return {}
    near = [c.windowed(i) for i in range(c.layers)]
    if family == "mistral":
        return {"sliding_window": c.window if all(near) else None}
    types = ["sliding_attention" if windowed else "full_attention" for windowed in near]
    written: dict[str, Any] = {"sliding_window": c.window, "layer_types": types}
    if family == "gemma3_text":
        return written | {"sliding_window": c.window or 4096}
    written["use_sliding_window"] = any(near)
    if family == "smollm3":
        rotated = [int(i not in c.no_rope_layers) for i in range(c.layers)]
        return written | {"no_rope_layers": rotated}
    return written | {"max_window_layers": near.index(True) if any(near) else c.layers}
