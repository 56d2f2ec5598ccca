"""TRL's own loaders and trainers on exported files: they read every row as the conversation it is."""

import copy
import json

import pytest
from polling import Poll

from fledge.feedback.exports import write_export
from fledge.feedback.store import Store, store_url
from fledge.text.template import JINJA
from fledge.text.tokenizer import SPECIALS

pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]'")
import datasets
import tokenizers
import transformers
import trl


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """dpo, kto, sft and prompts files of 24 prompts, one a conversation of several turns."""
    folder = tmp_path_factory.mktemp("exports")
    with Store.open(store_url(folder)) as store:
        with store.transaction():
            poll = Poll(store)
            ann = poll.person("ann")
            for n in range(24):
                prompt = f"Who wrote book {n}?" if n % 2 else f"《第{n}本》是誰寫的？"
                poll.pair(ann, ("left", "right", "same", "both_bad")[n % 4], f"Mira {n}.", f"河 {n}", prompt)
                poll.thumb(ann, 1 if n % 3 else -1, f"Ada {n}", prompt)
                poll.edit(ann, f"Better {n}", f"Worse {n}", prompt)
        for form in ("dpo", "pairs", "kto", "sft", "prompts"):
            write_export(store, form, folder / f"{form}.jsonl")
    return folder


@pytest.fixture(scope="module")
def words(tokenizer):
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.json.decode()),
        bos_token=SPECIALS[1], eos_token=SPECIALS[6], pad_token=SPECIALS[0],
    )  # fmt: skip
    wrapped.chat_template = JINJA
    return wrapped


@pytest.fixture(scope="module")
def model(tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def loaded(files, form: str, folder) -> datasets.Dataset:
    """By the loader that `trl dpo --dataset_name` uses for files."""
    path = str(files / f"{form}.jsonl")
    return datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(folder / "cache"))


def trainer_of(kind: str, model, words, rows: datasets.Dataset, folder):
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_steps=1,
        per_device_train_batch_size=4, gradient_checkpointing=False, save_strategy="no",
    )  # fmt: skip
    held = {} if kind == "SFT" else {"ref_model": copy.deepcopy(model)}
    return getattr(trl, f"{kind}Trainer")(
        model=copy.deepcopy(model), args=config, train_dataset=rows, processing_class=words, **held
    )


@pytest.mark.parametrize(("kind", "form"), [("DPO", "dpo"), ("KTO", "kto"), ("SFT", "sft")])
def test_their_trainer_takes_the_file(kind, form, files, model, words, tmp_path):
    lines = [json.loads(line) for line in (files / f"{form}.jsonl").read_text("utf-8").splitlines()]
    rows = loaded(files, form, tmp_path)
    assert rows.to_list() == lines, "they read what was written"
    assert trl.is_conversational(rows[0])
    trainer = trainer_of(kind, model, words, rows, tmp_path)
    assert len(trainer.train_dataset) == len(lines)
    shown = [words.decode(trainer.train_dataset[n][column]) for n in range(len(lines)) for column in ids_of(trainer)]
    for line in lines:
        texts = [
            m["content"] for value in line.values() if isinstance(value, list) for m in value if isinstance(m, dict)
        ]
        assert all(any(text in one for one in shown) for text in texts), line
    assert trainer.train().training_loss > 0


def ids_of(trainer) -> list[str]:
    return [name for name in trainer.train_dataset.column_names if name.endswith("_ids") or name == "input_ids"]


def test_their_data_checks_know_the_shapes(files, tmp_path):
    dpo, kto, prompts = (loaded(files, form, tmp_path) for form in ("dpo", "kto", "prompts"))
    assert {"prompt", "chosen", "rejected"} <= set(dpo.column_names)
    assert {"prompt", "completion", "label"} <= set(kto.column_names)
    assert kto.features["label"].dtype == "bool" and 0 < sum(kto["label"]) < len(kto)
    assert trl.is_conversational(prompts[0]) and prompts[0]["prompt"][-1]["role"] == "user"


def test_ties_never_reach_dpo(files, tmp_path):
    dpo, pairs = loaded(files, "dpo", tmp_path), loaded(files, "pairs", tmp_path)
    assert len(dpo) == 12 and len(pairs) == 24 and sum(bool(tie) for tie in pairs["tie"]) == 12
