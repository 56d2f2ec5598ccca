"""Tiny models of every family as `transformers` makes them, with random weights, and tokenizers that fit them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer as Plain
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENS = 400
ROWS = 416  # of the embedding: padded, as Qwen's is
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
TYPES = ["sliding_attention", "full_attention"]

# Every family, and every field of its config.json that changes what is computed.
CASES: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", {}),
    "llama, tied, biases, own head width": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16, "rms_norm_eps": 0.05},
    ),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama, yarn rope": ("Llama", {"rope_parameters": YARN}),
    "llama, yarn rope with its own factors": (
        "Llama",
        {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}},
    ),
    "llama, yarn rope with two scales": ("Llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen2, tied, windows above a layer": (
        "Qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, tied, biases, yarn": (
        "Qwen3",
        {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True, "rope_parameters": YARN},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2, tied, one head of keys": ("Olmo2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "smollm3, windows, biases": (
        "SmolLM3",
        {
            "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": False,
        },
    ),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 8, "layer_types": TYPES, "query_pre_attn_scalar": 24}),
    "gemma3, scaled rope": (
        "Gemma3Text",
        {
            "head_dim": 16, "sliding_window": 8, "layer_types": TYPES, "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "bert": ("Bert", {}),
}  # fmt: skip


def make_model(case: str, seed: int = 0, task: str | None = None, **over) -> transformers.PreTrainedModel:
    """The model of a case with weights that matter: every tensor is drawn anew, gains and biases too."""
    prefix, fields = CASES[case]
    rows = TOKENS if prefix == "Bert" else ROWS
    fields = {**SMALL, "vocab_size": rows, **fields, **over}
    if prefix == "Bert":
        fields = {k: v for k, v in fields.items() if k not in ("num_key_value_heads", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, f"{prefix}Config")(**fields)
    task = task or ("MaskedLM" if prefix == "Bert" else "CausalLM")
    model = getattr(transformers, f"{prefix.removesuffix('Text')}For{task}")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.empty(parameter.shape).normal_(0.0, 0.15, generator=generator)
            parameter.copy_(parameter + drawn if parameter.ndim == 1 else drawn)
    return model.eval()


def byte_level(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer as Qwen has it, with ChatML."""
    slow = Plain(models.BPE())
    slow.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    slow.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    slow.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=slow, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def word_piece(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer as BERT has it."""
    slow = Plain(models.WordPiece(unk_token="[UNK]"))
    slow.normalizer = normalizers.BertNormalizer()
    slow.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    slow.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    slow.train_from_iterator(
        [*texts, *names], trainers.WordPieceTrainer(vocab_size=TOKENS, special_tokens=names, show_progress=False)
    )
    left = [f"[unused{i}]" for i in range(TOKENS - slow.get_vocab_size())]
    slow.add_tokens(left)
    slow.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=slow, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]",
        unk_token="[UNK]",
    )  # fmt: skip


def save(folder: Path, model: transformers.PreTrainedModel, texts: Iterable[str], chats: bool = True) -> Path:
    """The model's folder as `save_pretrained` writes it."""
    model.save_pretrained(folder)
    tokenizer = word_piece(texts) if model.config.model_type == "bert" else byte_level(texts)
    if not chats:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields) -> None:
    """Change fields of config.json; None removes one."""
    path = folder / "config.json"
    held = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
