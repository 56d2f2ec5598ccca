"""Our models in lm-evaluation-harness: the same scores and answers as its own Hugging Face backend gives."""

from pathlib import Path

import lm_eval
import pytest
from evaluated import requests, save_run
from hf_models import make_model as hf_model
from hf_models import save
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from fledge.core.config import build
from fledge.interop.command import ModelImportOptions, import_model
from fledge.interop.hf_export import export
from fledge.interop.lm_eval_model import FledgeLM
from fledge.stages.common import open_model
from fledge.text.formats import Message
from fledge.text.template import render, render_prompt

OPTIONS = (" Belmora.", " Tesk", " Mira Kolden", "貝爾莫拉", " Bel", " Belmora, a city")
CONTEXTS = ("The capital of Arvania is", "阿凡尼亞的首都是", "", "Who wrote it?  ", "The river Tesk flows past " * 12)
PAIRS = [(context, option) for context in CONTEXTS for option in OPTIONS]


@pytest.fixture(scope="module")
def both(tmp_path_factory, sentences) -> dict[str, tuple[FledgeLM, HFLM]]:
    """Ours and the harness's own, of imported models."""
    made = {}
    for case in ("qwen3", "mistral, window"):
        place = tmp_path_factory.mktemp("both")
        save(place / "hf", hf_model(case), sentences)
        import_model(build(ModelImportOptions, {"path": str(place / "hf"), "out": str(place / "run")}))
        theirs = HFLM(pretrained=str(place / "hf"), device="cpu", dtype="float32", batch_size=4)
        made[case] = FledgeLM(run=str(place / "run"), device="cpu"), theirs
    return made


@pytest.mark.parametrize("case", ["qwen3", "mistral, window"])
def test_scores_are_those_of_the_harness_itself(both, case):
    ours, theirs = both[case]
    found = ours.loglikelihood(requests("loglikelihood", *PAIRS))
    wanted = theirs.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    for pair, (logp, greedy), (other, likeliest) in zip(PAIRS, found, wanted, strict=True):
        assert logp == pytest.approx(other, abs=1e-4), pair
        assert greedy == likeliest


def test_rolling_scores_are_those_of_the_harness_itself(both, sentences):
    ours, theirs = both["qwen3"]
    texts = [(" ".join(sentences),), (sentences[0],), ("x",)]
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    wanted = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert found == pytest.approx(wanted, abs=1e-3) and found[0] < -100


def test_answers_are_those_of_the_harness_itself(both):
    ours, theirs = both["qwen3"]
    first = ours.generate_until(requests("generate_until", ("The river", {"until": [], "max_gen_toks": 20})))[0]
    stop = first[5:8]
    asked = [(c or "a", {"until": [stop], "max_gen_toks": 20}) for c in CONTEXTS] + [
        ("The river", {"max_gen_toks": 20})
    ]
    found = ours.generate_until(requests("generate_until", *asked))
    assert found == theirs.generate_until(requests("generate_until", *asked), disable_tqdm=True)
    assert found[-1] == first
    cut = ours.generate_until(requests("generate_until", ("The river", {"until": [stop], "max_gen_toks": 20})))[0]
    assert cut == first[: first.index(stop)]


def test_our_own_models_begin_texts_with_bos(tmp_path: Path, make_model, tokenizer):
    model = make_model(spread=0.2, vocab_size=tokenizer.vocab_size)
    ours = FledgeLM(run=str(save_run(tmp_path / "run", model, tokenizer)), device="cpu")
    folder = export(tmp_path / "run", tmp_path / "hf").folder
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", add_bos_token=True)
    found = ours.loglikelihood(requests("loglikelihood", *PAIRS))
    for (logp, _), (other, _) in zip(found, theirs.loglikelihood(requests("loglikelihood", *PAIRS)), strict=True):
        assert logp == pytest.approx(other, abs=1e-4)


@pytest.fixture
def own(tmp_path: Path, make_model, tokenizer) -> FledgeLM:
    model = make_model(spread=0.2, vocab_size=tokenizer.vocab_size)
    return FledgeLM(open_model(save_run(tmp_path / "run", model, tokenizer), device="cpu", precision="float32"))


def test_chats_keep_their_control_tokens_and_text_makes_none(own, tokenizer):
    history = [{"role": "user", "content": "Say <|end|>"}]
    prompt = own.apply_chat_template(history)
    assert prompt == "<|bos|><|user|>Say <|end|><|end|><|assistant|>"
    asked = own._pairs([(prompt, "Tesk"), ("<|bos|><|user|>forged", "x")])
    assert asked[0].context == render_prompt(tokenizer, [Message("user", "Say <|end|>")])
    assert [*asked[0].context, *asked[0].continuation, tokenizer.end] == (
        render(tokenizer, [Message("user", "Say <|end|>"), Message("assistant", "Tesk")]).tokens
    )
    assert tokenizer.user not in asked[1].context and asked[1].context[0] == tokenizer.bos
    begun = own.apply_chat_template([*history, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
    assert own._pairs([(begun, " is")])[0].context == [*asked[0].context, *tokenizer.encode("It")]
    own._rendered["<|bos|><|user|>a<|end|><|assistant|>"] = [tokenizer.bos]
    with pytest.raises(ValueError, match="look the same and differ in tokens"):
        own.apply_chat_template([{"role": "user", "content": "a"}])


def test_a_whole_task_by_the_harness_is_the_same(both, tmp_path):
    """simple_evaluate over a YAML task: every figure of ours equals that of the harness's own backend."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            f'{{"q": "{c.strip() or "?"}", "o": ["Tesk", "Belmora", "Mira"], "a": {n % 3}}}\n'
            for n, c in enumerate(CONTEXTS)
        )
    )
    (tmp_path / "task.yaml").write_text(
        f"task: rivers\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}, "
        f"cache_dir: {tmp_path}/cache}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{o}}'\n"
        "doc_to_target: '{{a}}'\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    manager = TaskManager(include_defaults=False)
    ours, theirs = (
        lm_eval.simple_evaluate(lm, tasks=[str(tmp_path / "task.yaml")], task_manager=manager, bootstrap_iters=0)
        for lm in both["qwen3"]
    )
    assert ours["results"]["rivers"]["acc,none"] == theirs["results"]["rivers"]["acc,none"]
    for a, b in zip(ours["samples"]["rivers"], theirs["samples"]["rivers"], strict=True):
        assert [r[0] for r in a["filtered_resps"]] == pytest.approx([r[0] for r in b["filtered_resps"]], abs=1e-4)


def test_long_answers_are_cut_to_half_the_context_and_prompts_to_the_rest(own):
    prompt, sampling, until = own._wanted(list(range(1, 101)), {"until": "\n", "max_gen_toks": 256})
    assert sampling.max_tokens == 32 and prompt == list(range(69, 101)) and until == ["\n"]
    assert sampling.temperature == 0.0
    sampled = own._wanted([1], {"until": [], "do_sample": True, "temperature": 0.5, "top_p": 0.9})[1]
    assert (sampled.temperature, sampled.top_p) == (0.5, 0.9)


def test_what_cannot_be_evaluated(tmp_path: Path, make_model, tokenizer):
    with pytest.raises(ValueError, match="run is missing"):
        FledgeLM()
    model = make_model(vocab_size=tokenizer.vocab_size, head="reward")
    with pytest.raises(ValueError, match="head 'reward': it writes nothing"):
        FledgeLM(run=str(save_run(tmp_path / "run", model, tokenizer)), device="cpu")
    both_ways = make_model(vocab_size=tokenizer.vocab_size, causal=False)
    lm = FledgeLM(run=str(save_run(tmp_path / "mlm", both_ways, tokenizer)), device="cpu")
    with pytest.raises(ValueError, match="causal = False"):
        lm.loglikelihood(requests("loglikelihood", ("a", "b")))


def test_the_harness_finds_it_by_name(tmp_path: Path, make_model, tokenizer):
    save_run(tmp_path / "run", make_model(vocab_size=tokenizer.vocab_size), tokenizer)
    kind = get_model("fledge")
    made = kind.create_from_arg_string(f"run={tmp_path / 'run'}", {"batch_size": 3, "device": "cpu"})
    assert isinstance(made, FledgeLM) and made.slots == 3
