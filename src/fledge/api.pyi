"""Written by `python -m fledge.api_stub` from the options of every verb; do not edit."""

# fmt: off
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, overload

from datasets import Dataset, IterableDataset

from fledge.core.adapters import AdapterConfig
from fledge.core.config import TrainConfig
from fledge.core.shape import Shape
from fledge.core.shown import Listing
from fledge.curate.inputs import ReadSettings
from fledge.curate.personal import PersonalSettings
from fledge.curate.quality import FitSettings
from fledge.curate.quality_training import TrainSettings
from fledge.curate.rephrase_checks import CheckSettings
from fledge.feedback.agreement import Statistics
from fledge.feedback.collecting import Collected
from fledge.generate.sampling import Sampling
from fledge.interop.eval_command import TaskResult
from fledge.notebook.model import Model
from fledge.probe.compare import Difference
from fledge.probe.memorise import Search
from fledge.stages.history import Model as HistoryModel
from fledge.stages.history import Run
from fledge.stages.improve import DpoLearning, KtoLearning, RewardLearning, SftLearning
from fledge.stages.show import TokenView
from fledge.text.convert import Converted

Text: TypeAlias = str | PathLike[str]
Texts: TypeAlias = Text | Sequence[Text]
Rows: TypeAlias = Dataset | IterableDataset | Sequence[Mapping[str, Any]]
Data: TypeAlias = Texts | Rows | Sequence[Text | Rows]

def open_run(run: Text, *, device: str = "auto", precision: str = "auto") -> Model:
    """The newest (or served) model of a run, a journey's last, or a checkpoint, to talk with and to look into.

    device: auto, cpu, cuda or cuda:1. precision: auto, float32 or bfloat16. Raises ValueError where there is no model,
    or its checkpoint is damaged, naming the file.
    """

class SamplingDict(TypedDict, total=False):
    """How tokens are drawn."""
    temperature: float
    """Divides the logits; 0 takes the most likely token (greedy)."""
    top_k: int | None
    """Keep only the k most likely tokens."""
    top_p: float | None
    """Keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1)."""
    max_tokens: int
    """Longest answer in tokens."""
    seed: int
    """Row i of a call draws from a stream of (seed, i), whatever else is in its batch."""

class SftLearningDict(TypedDict, total=False):
    """Edits and answers with five points."""
    lr: float
    """Peak learning rate."""
    epochs: float
    """Times to read the rows."""

class DpoLearningDict(TypedDict, total=False):
    """Choices, and scores two or more apart."""
    lr: float
    """Peak learning rate."""
    epochs: float
    """Times to read the rows."""
    beta: float
    """How dearly moving away from the model before is paid."""
    nll_weight: float
    """Weight of the chosen answers' own NLL."""
    label_smoothing: float
    """Share of the votes taken to be flipped."""

class KtoLearningDict(TypedDict, total=False):
    """Thumbs, both bad, high and low scores."""
    lr: float
    """Peak learning rate."""
    epochs: float
    """Times to read the rows."""
    beta: float
    """How dearly moving away from the model before is paid."""

class RewardLearningDict(TypedDict, total=False):
    """The judge: choices of all rounds, ties among them, and new edits."""
    lr: float
    """Peak learning rate."""
    epochs: float
    """Times to read the rows."""
    batch_tokens: int
    """Positions per optimiser step; larger steps make its models agree better."""

class AdapterConfigDict(TypedDict, total=False):
    """A few trained numbers beside the frozen weights of a model."""
    kind: Literal["lora", "dora", "ia3", "houlsby", "bitfit", "prefix", "prompt"]
    """lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora."""
    rank: int
    """Rank of lora and dora, bottleneck width of houlsby."""
    alpha: float | None
    """lora and dora add alpha / rank times their product; None takes 2 x rank."""
    targets: Texts
    """Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones."""
    virtual_tokens: int
    """Learned positions in front of the text, for prefix and prompt."""
    new_tokens: int | Sequence[int] | None
    """Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token."""
    base_bits: int | None
    """8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are."""

class PersonalSettingsDict(TypedDict, total=False):
    """What stands where personal data stood; None leaves that kind alone and uncounted."""
    email: Text | None
    """In place of an e-mail address."""
    phone: Text | None
    """In place of a phone number."""
    ip: Text | None
    """In place of a public IP address."""
    id: Text | None
    """In place of an ID number of China, Taiwan or the US."""
    card: Text | None
    """In place of a payment card's number."""

class ReadSettingsDict(TypedDict, total=False):
    """How pages are read; every field belongs to the configuration that names the output."""
    encoding: Text | None
    """Encoding of text, HTML and JSON files; none takes UTF-8, a stated charset, or the one that detection finds."""
    text_field: Text
    """Field of a row that holds the text; a row without it may hold a web page in `html`."""
    main_text: bool
    """Keep the main text of a web page; false keeps all its text, menus and footers too."""
    longest_bytes: int
    """Longest line, web page or record held in memory; longer ones are rejected, plain text is cut at a blank line."""
    ratio: int
    """Most bytes that one byte of an archive may unpack to."""
    archive_bytes: int
    """Most bytes read out of one archive or packed file."""

class TrainSettingsDict(TypedDict, total=False):
    """What the classifier learns from."""
    pages: int
    """Pages of each side that are used at most, drawn by the hash of their words; 6 kB of memory each, 30 kB for long ones."""
    held_out_by: Literal["page", "source"]
    """What lies wholly on one side of the split: a page, or all pages of a web host (of a file where there is no URL)."""
    fit: FitSettings | FitSettingsDict
    """How it is trained."""

class FitSettingsDict(TypedDict, total=False):
    """How the classifier is trained."""
    epochs: int
    """Passes over the training pages."""
    lr: float
    """Learning rate of AdaGrad, falling to 0 on a straight line."""
    batch_chunks: int
    """Chunks per step."""
    seed: int
    """Seed of their order."""

class CheckSettingsDict(TypedDict, total=False):
    """Limits of a rephrasing; all tuned here."""
    shortest: float
    """Shortest rephrasing as a share of its passage, in words and Han characters."""
    longest: float
    """Longest rephrasing as a share of its passage; questions with answers need about twice."""
    copied: float | None
    """Share of its 5-grams from which a rephrasing is a copy of its passage; None allows copies."""
    names: bool
    """Reject names that the passage does not hold."""
    numbers: bool
    """Reject numbers that the passage does not hold."""

class ShapeDict(TypedDict, total=False):
    """Shape of the model: `size` sets everything, each field overrides; None means derived from `size`."""
    size: Text
    """One of tiny, pocket, mini, small, base, medium, large."""
    vocab_size: int | None
    """Rows of the embedding, in tokens; None takes the tokenizer's."""
    layers: int | None
    """Transformer blocks."""
    width: int | None
    """Hidden width D."""
    heads: int | None
    """Query heads H; must divide width."""
    kv_heads: int | None
    """Key/value heads K of grouped-query attention; must divide heads; None takes heads."""
    ffn_width: int | None
    """Feed-forward width F; None takes 8/3 width rounded up to 32."""
    context_tokens: int
    """Longest sequence trained or served, in tokens."""
    qk_norm: bool
    """RMSNorm on queries and keys per head (Qwen3)."""
    bias: bool
    """Biases on the query, key and value projections (Qwen2)."""
    tied: bool | None
    """Output head shares the embedding; None ties below width 1536."""

class TrainConfigDict(TypedDict, total=False):
    """How a stage is trained; the same fields for every stage."""
    steps: int | None
    """Optimiser steps; None lets the stage derive them from its tokens or epochs."""
    batch_tokens: int
    """Positions per optimiser step over all ranks."""
    micro_tokens: int
    """Positions per forward pass; smaller saves memory and gives the same gradient."""
    lr: float
    """Peak learning rate."""
    min_lr: float
    """Final learning rate as a share of the peak."""
    warmup: float
    """Share of the steps spent warming up."""
    schedule: Literal["cosine", "linear", "constant"]
    """Shape of the decay."""
    optimizer: Literal["adamw", "muon"]
    """AdamW, or Muon for the blocks' matrices with AdamW for the rest."""
    beta1: float
    """AdamW's decay of the gradient's mean."""
    beta2: float
    """AdamW's decay of the gradient's square."""
    weight_decay: float
    """Decoupled weight decay of matrices."""
    clip: float
    """Largest gradient norm; larger ones are scaled down."""
    spike_sigma: float | None
    """Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off."""
    precision: Literal["auto", "float32", "bfloat16"]
    """Dtype of activations and products; weights stay float32."""
    device: Text
    """auto, cpu, cuda or cuda:1."""
    threads: int | None
    """CPU threads; None takes all usable cores."""
    compile: bool
    """Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on."""
    save_seconds: float
    """Time between checkpoints, in seconds."""
    seed: int
    """Seed of the initial weights and the order of the data."""

class SearchDict(TypedDict, total=False):
    """How hard a prompt is looked for; the paper's own values are start 5, step 5, top 250, candidates 100, steps 200."""
    start: int
    """Length of prompt that is tried first, in tokens; 1 is tried before it where that is exhaustive."""
    step: int
    """Tokens more after a failure."""
    longest: float
    """Prompts are tried up to this many times the text's length; where none is found, ACR is said to be 1 over this."""
    growth: float
    """Steps are multiplied by this after a failure."""
    top: int
    """Replacements named by the gradient, for each token of the prompt."""
    candidates: int
    """Replacements tried in a step, for each restart."""
    steps: int
    """Steps of a search."""
    restarts: int
    """Searches from different prompts, side by side."""
    seed: int
    """Seed of prompts and replacements."""

def journey(*, out: Text = "runs/journey", crawl: Texts = ..., rules: Text | None = None, languages: Text = "en,zh", text: Data = ..., chats: Data = ..., pairs: Data = ..., size: Text | None = None, tokens: int | Text | None = None, context_tokens: int | None = None, minutes: float = 10.0, quick: bool = False, seed: int = 0, encoding: Text | None = None, skip_bad: int = 0, track: Text | Texts | None = None) -> Path:
    """Raise a model through every stage, on the embedded world or on your own text, chats and pairs.

    `fledge journey` in Python: raise a model through every stage.

    Arguments:
        out: Folder of the journey. [runs/journey]
        crawl: Your crawl, curated first: WARC, WET, HTML, JSONL, Parquet, text; what stays is read as text. [[]]
        rules: Recipe of curation: fineweb, dclm, gopher, a TOML file, or off; none is fineweb for a crawl, world for the world. [none]
        languages: Languages of a crawl that stay, with commas, or any. [en,zh]
        text: Your text, read as it is: files and folders; without any and without a crawl, the embedded world is used. [[]]
        chats: Your conversations; without any, the journey ends with a base model. [[]]
        pairs: Your preferences; without any, the journey ends with an SFT model. [[]]
        size: Model size; None takes pocket for the world and proposes one for your text. [none]
        tokens: Tokens to pretrain on, such as 5M; None is fixed for the world and proposed for your text. [none]
        context_tokens: Longest sequence; None takes 128 for the world and 256 for your text. [none]
        minutes: Time the proposal for your own text aims at, in minutes. [10.0]
        quick: A smaller world and shorter stages: under two minutes. [false]
        seed: Seed of the world, the weights and the order of the data. [0]
        encoding: Encoding of your files where it is not UTF-8. [none]
        skip_bad: Broken lines to skip in all before it is an error. [0]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Go the whole way, keep every score in OUT/journey.json and draw OUT/report.html; returns OUT.
    """

def chat(run: Text, *, compare: Texts = ..., port: int = 8000, host: Text = "127.0.0.1", names: Texts = ..., token: Text | None = None, store: Text | None = None, prompts: Text | None = None, gold: Text | None = None, gold_share: float = 0.05, open: bool = True, slots: int = 32, queue: int = 256, per_person: int = 4, terminal: bool = False, system: Text | None = None, sampling: Sampling | SamplingDict = ...) -> None:
    """Talk with a run's model in the browser, vote on its answers, and serve it to OpenAI's clients.

    `fledge chat` in Python: a page to talk with a model and to vote.

    Arguments:
        run: A run, a journey, a stage's folder or a checkpoint. [required]
        compare: Other runs: two drafts at once then come from the run's model and one of these, blind. [[]]
        port: Port of the page and the API; 0 takes a free one. [8000]
        host: Address to listen on; others than this machine's own need --token. [127.0.0.1]
        names: Host names under which a proxy offers this server. [[]]
        token: The owner's token, at least 32 characters; none makes one. Better in the environment variable FLEDGE_TOKEN. [none]
        store: Where votes are kept: none is RUN/votes.sqlite3; or postgresql://USER@HOST/NAME. [none]
        prompts: File of prompts ({prompt}) whose answers are rated pair by pair. [none]
        gold: File of questions with known answers ({prompt, good, bad}), which rate the raters. [none]
        gold_share: How often a gold question comes among the pairs to rate. [0.05]
        open: Open the page in the browser when started from a terminal. [true]
        slots: Answers written at the same time, per model. [32]
        queue: Answers that may wait for a slot; more are refused with 429. [256]
        per_person: Answers one person (or one program with the person's token) may have open at once. [4]
        terminal: Chat here in the terminal instead; nothing is stored. [false]
        system: Terminal: a system message, kept when old turns are dropped. [none]
        sampling: How tokens are drawn where a client does not say. A dict of
            temperature: Divides the logits; 0 takes the most likely token (greedy). [0.7]
            top_k: Keep only the k most likely tokens. [none]
            top_p: Keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1). [none]
            max_tokens: Longest answer in tokens. [256]
            seed: Row i of a call draws from a stream of (seed, i), whatever else is in its batch. [0]

    What it does and returns:
        Serve until Ctrl-C.
    """

def votes(action: Text | None = None, run: Text | None = None, *, store: Text | None = None, out: Text | None = None, to: Text | None = None) -> Statistics | None:
    """Votes in figures: `fledge votes RUN`; or look after them: `fledge votes check|backup|migrate RUN`.

    `fledge votes` in Python: votes in figures; check, backup, migrate.

    Arguments:
        action: check, backup or migrate, followed by the run; the run alone shows its votes. [none]
        run: The run whose votes these are. [none]
        store: Where the votes are: postgresql://USER@HOST/NAME or a path; none is RUN/votes.sqlite3. [none]
        out: backup: the file to write. [none]
        to: migrate: the store to fill, postgresql://USER@HOST/NAME or a path; it must be new or empty. [none]

    What it does and returns:
        Do what was asked; the run alone gives its figures. Raises ValueError where the votes cannot be read, or are damaged.
    """

def invite(run: Text, name: Text, *, revoke: bool = False, store: Text | None = None) -> str | None:
    """Invite somebody to talk and vote: prints their token once. `--revoke` ends it; their votes stay.

    `fledge invite` in Python: let somebody else talk and vote.

    Arguments:
        run: The run whose page they may use. [required]
        name: What to call them; statistics show it. [required]
        revoke: Refuse this person's token and votes from now on. [false]
        store: Where the votes are: postgresql://USER@HOST/NAME or a path; none is RUN/votes.sqlite3. [none]

    What it does and returns:
        Make a rater and print the token, which is stored nowhere; or revoke one. Raises ValueError by name.
    """

def rate(run: Text, *, rater: Text = "gold", kinds: Texts = ..., count: int = 300, task: Text | None = None, prompts: Texts = ..., noise: float = 0.0, position_bias: float = 0.0, tie_band: float = 0.0, store: Text | None = None, sampling: Sampling | SamplingDict = ..., device: Text = "auto", seed: int = 0) -> Collected:
    """Let a program rate answers of a model; the votes go where people's votes go.

    `fledge rate` in Python: let a program vote: a reward, a judge, a simulated rater.

    Arguments:
        run: Run or checkpoint whose answers are rated. [required]
        rater: gold (the task's score), exact, file.py:function, a reward model's folder, judge:URL#MODEL, or self. [gold]
        kinds: pair, thumb, score, edit, as one list with commas or one by one; none given: all that the rater can. [[]]
        count: Votes of each kind. [300]
        task: Task whose training prompts are asked; without it, and without prompts, those of the run's embedded world. [none]
        prompts: Own prompts instead: JSONL with prompt, and answer for the rater exact. [[]]
        noise: Probability that a vote is wrong. [0.0]
        position_bias: Probability that the left answer is taken whatever stands there. [0.0]
        tie_band: Rewards no further apart than this are the same. [0.0]
        store: Where the votes are: a path or postgresql://...; none: RUN/votes.sqlite3. [none]
        sampling: How answers are drawn; its seed is not used. A dict of
            temperature: Divides the logits; 0 takes the most likely token (greedy). [1.0]
            top_k: Keep only the k most likely tokens. [none]
            top_p: Keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1). [none]
            max_tokens: Longest answer in tokens. [64]
            seed: Row i of a call draws from a stream of (seed, i), whatever else is in its batch. [0]
        device: auto, cpu, cuda or cuda:1. [auto]
        seed: Seed of prompts, answers and errors; the same seed again stores nothing twice. [0]

    What it does and returns:
        Sample, rate and store; prints what was given.
    """

def export(run: Text, *, out: Text, to: Literal["hf", "gguf", "peft"] | None = None, format: Literal["dpo", "pairs", "kto", "sft", "prompts", "argilla", "arena"] | None = None, family: Text | None = None, dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto", shard_bytes: int = 5000000000, base_name: Text | None = None, store: Text | None = None, after: int = 0, upto: int | None = None, split: Literal["train", "test"] | None = None, people: Texts = ...) -> Any:
    """Write a model for other programs (--to), or the votes of a run as data (--format).

    `fledge export` in Python: a model for transformers or llama.cpp; votes as files for DPO, KTO, SFT.

    Arguments:
        run: Run or checkpoint whose model is written, or run whose votes are. [required]
        out: Model: new folder, or *.gguf. Votes: file; what it was made of stands beside it in OUT.export.json. [required]
        to: Model: hf (transformers, vLLM) or gguf (llama.cpp). Adapter: peft. [none]
        format: Votes: dpo, pairs (dpo with ties, for `fledge reward`), kto, sft, prompts, argilla or arena. [none]
        family: Model: family to write it as (llama, qwen3, ...); none: that of the imported model, else the plainest that fits. [none]
        dtype: Model: dtype of the weights; auto: that of the imported model, float32 for our own; q8_0 is for gguf. [auto]
        shard_bytes: Model: largest file of weights, in bytes. [5000000000]
        base_name: Adapter: name or folder of the exported base model, for adapter_config.json. [none]
        store: Votes: where they are, a path or postgresql://...; none: RUN/votes.sqlite3. [none]
        after: Votes: only those after this one, by its number. [0]
        upto: Votes as they stood at this number; none: all there are. [none]
        split: Votes: train or test prompts only; one prompt in eight is test. [none]
        people: Votes: only those of these people, by id; none given: everybody's. [[]]

    What it does and returns:
        Export a model, an adapter for peft, or votes where a format is named.
    """

def import_model(path: Text, files: Texts = ..., *, out: Text | None = None, base: Text | None = None, template: Literal["model", "chatml", "none"] = "model", context_tokens: int | None = None, backend: Literal["native", "transformers"] = "native", dry: bool = False, format: Literal["arena", "argilla"] = "arena", name: Text = "arena", store: Text | None = None) -> Any:
    """Take a Hugging Face model (PATH --out RUN), an adapter of peft (PATH --base RUN --out RUN), or votes (RUN FILES).

    `fledge import` in Python: a Hugging Face model or adapter as a run; votes given elsewhere.

    Arguments:
        path: Model: folder with config.json, *.safetensors and tokenizer.json. Adapter: peft's folder. Votes: the run they join. [required]
        files: Votes: files to read, JSONL, JSON or parquet. [[]]
        out: Model or adapter: run folder to write. [none]
        base: Adapter: run or checkpoint of the model it belongs to. [none]
        template: Model: its own chat template; chatml, with control tokens added where absent; or none, no chats. [model]
        context_tokens: Model: longest sequence to train on and serve, in tokens; none: what it was made for. [none]
        backend: Model: native, the families we know; transformers, any causal model that library has, slower. [native]
        dry: Model: only say what would be read, kept and passed over. [false]
        format: Votes: arena or argilla. [arena]
        name: Votes of arena: whose they are, for statistics. [arena]
        store: Votes: where they are kept, a path or postgresql://...; none: RUN/votes.sqlite3. [none]

    What it does and returns:
        Import a model, an adapter where its base is named, or votes where files are.
    """

def improve(run: Text, *, out: Text | None = None, store: Text | None = None, judge: Text = "auto", min_votes: int = 50, min_rows: int = 20, replay: float = 1.0, base_replay: float = 0.25, prompts: Texts = ..., questions: int = 512, answers: int = 4, regression: Text | None = None, sft: SftLearning | SftLearningDict = ..., dpo: DpoLearning | DpoLearningDict = ..., kto: KtoLearning | KtoLearningDict = ..., reward: RewardLearning | RewardLearningDict = ..., adapter: AdapterConfig | AdapterConfigDict | str | None = None, batch_tokens: int = 2048, device: Text = "auto", seed: int = 0, track: Text | Texts | None = None) -> dict[str, Any]:
    """Train the next model from new votes, and serve it if it is better; learning rates to beta tuned by `fledge loop`.

    `fledge improve` in Python: train the next model from the votes.

    Arguments:
        run: Run whose model people talk to: a journey or a stage's folder. [required]
        out: Folder of the round; none: the next number under RUN/rounds, or the round there that is not finished. [none]
        store: Where the votes are: a path or postgresql://... (its password belongs in ~/.pgpass); none: RUN/votes.sqlite3. [none]
        judge: Who compares new and old: auto (reward models trained on the votes), gold, a reward model's folder, judge:URL#MODEL. [auto]
        min_votes: New votes below which no round begins. [50]
        min_rows: Rows from new votes below which a stage (sft, dpo, kto) is left out. [20]
        replay: Rows of earlier rounds' votes learnt again, per new row. [1.0]
        base_replay: Rows learnt again of what the model was raised on, per new row. [0.25]
        prompts: Own questions for the comparison: JSONL with prompt; nothing is learnt from them. [[]]
        questions: Held-out questions of the comparison, at most. [512]
        answers: Answers each model gives to each of them. [4]
        regression: Questions that must still be answered: JSONL with question and answer; none: the world's facts, or held-out text. [none]
        sft: Learning from edits. A dict of
            lr: Peak learning rate. [2e-05]
            epochs: Times to read the rows. [3.0]
        dpo: Learning from choices. A dict of
            lr: Peak learning rate. [5e-05]
            epochs: Times to read the rows. [3.0]
            beta: How dearly moving away from the model before is paid. [0.2]
            nll_weight: Weight of the chosen answers' own NLL. [0.5]
            label_smoothing: Share of the votes taken to be flipped. [0.1]
        kto: Learning from thumbs. A dict of
            lr: Peak learning rate. [4e-05]
            epochs: Times to read the rows. [1.0]
            beta: How dearly moving away from the model before is paid. [0.1]
        reward: The judge's learning. A dict of
            lr: Peak learning rate. [0.0005]
            epochs: Times to read the rows. [5.0]
            batch_tokens: Positions per optimiser step; larger steps make its models agree better. [4096]
        adapter: Train a small adapter beside the frozen weights in every stage and the judge; it takes about ten times their lr. A dict of
            kind: lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora. [lora]
            rank: Rank of lora and dora, bottleneck width of houlsby. [8]
            alpha: lora and dora add alpha / rank times their product; None takes 2 x rank. [none]
            targets: Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones. [[]]
            virtual_tokens: Learned positions in front of the text, for prefix and prompt. [16]
            new_tokens: Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token. [none]
            base_bits: 8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are. [none]
        batch_tokens: Positions per optimiser step. [2048]
        device: auto, cpu, cuda or cuda:1. [auto]
        seed: Seed of the order, of what is learnt again and of the comparison. [0]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        One round, begun or continued; returns what result.json holds.

        gentle: lower this process's priority, so that a server beside it stays quick. Raises ValueError where there is
        nothing to learn from, saying what is missing.
    """

def world(out: Text = "world", *, seed: int = 0, quick: bool = False, crawl: bool = False, junk: float = 0.4) -> dict[str, Any]:
    """Write the documents, conversations, pairs and questions of the embedded world, to look at or to train on.

    `fledge world` in Python: write the embedded corpus to look at.

    Arguments:
        out: Folder for the files; made if missing. [world]
        seed: The same seed gives the same bytes. [0]
        quick: About a sixth of the text, for first tries. [false]
        crawl: Write the world's pages as a small crawl instead (WARC, WET, JSON lines) with much junk; labels beside the folder. [false]
        junk: The junk's share of the crawl's pages. [0.4]

    What it does and returns:
        Writes the world, prints what was written and returns the content of world.json (a crawl: OUT.report.json).
    """

def task(name: Text, *, out: Text, texts: int = 20000, chats: int = 2000, wrong: float = 0.0) -> dict[str, int]:
    """Write the texts, conversations and prompts of a task, to raise a model that can do a part of it.

    `fledge task` in Python: write what a model needs to learn a task.

    Arguments:
        name: arithmetic, arithmetic:3, worked, poem, poem:4x5, reverse or count; what follows the colon is size. [required]
        out: Folder for the files; made if missing. [required]
        texts: Plain documents for pretraining. [20000]
        chats: Conversations for fine-tuning. [2000]
        wrong: Share of the conversations whose answer is wrong; 0.5 leaves reinforcement learning something to do. [0.0]

    What it does and returns:
        Write text.jsonl, chats.jsonl and prompts.jsonl (training questions only); returns the rows of each.
    """

def curate(inputs: Data = ..., *, out: Text = "clean", recipe: Text = "fineweb", languages: Text | Texts = "en,zh", evaluations: Texts = ..., quality: Text | None = None, scorers: Texts = ..., keep_by: Text = "quality", keep_top: float | None = None, keep_above: float | None = None, mask_personal: bool = True, personal: PersonalSettings | PersonalSettingsDict = ..., substrings: bool = False, rejects: bool = True, read: ReadSettings | ReadSettingsDict = ..., split_bytes: int | Text = "16M", workers: int | None = None, ray: Text | None = None, show: Text | None = None) -> Path:
    """A crawl becomes training text, with every dropped page accounted for.

    `fledge curate` in Python: stage 0: a crawl becomes training text, every drop accounted for.

    Arguments:
        inputs: Files, folders or URLs: WARC, WET, HTML, JSONL, JSON, Parquet, Arrow, text, Markdown, reStructuredText, archives. [[]]
        out: Folder of the curated text: data/, rejected/ and manifest.json. [clean]
        recipe: fineweb, dclm, gopher, world, or a TOML file of rules and thresholds. [fineweb]
        languages: Languages that stay, with commas or one by one; zh is zh-Hant and zh-Hans; any: all of them. [en,zh]
        evaluations: JSONL or Parquet files of evaluation questions; pages that hold one of them are rejected. [[]]
        quality: Folder of a trained classifier (fledge quality): the column `quality`. [none]
        scorers: Further columns: perplexity:RUN, judge:URL#MODEL. [[]]
        keep_by: Column that keep_top or keep_above looks at. [quality]
        keep_top: Share of the pages that stays, the best ones by keep_by, counted after duplicates are gone. [none]
        keep_above: Pages whose keep_by is at least this stay; at most this, where lower is better (perplexity). [none]
        mask_personal: Mask e-mail addresses, phone, ID and card numbers, public IP addresses. [true]
        personal: Which of them, and by what. A dict of
            email: In place of an e-mail address. [<email>]
            phone: In place of a phone number. [<phone>]
            ip: In place of a public IP address. [<ip>]
            id: In place of an ID number of China, Taiwan or the US. [<id>]
            card: In place of a payment card's number. [<card>]
        substrings: Report the spans of 50 tokens and more that pages share. [false]
        rejects: Keep rejected pages beside the others, with step, reason and value. [true]
        read: How files become pages. A dict of
            encoding: Encoding of text, HTML and JSON files; none takes UTF-8, a stated charset, or the one that detection finds. [none]
            text_field: Field of a row that holds the text; a row without it may hold a web page in `html`. [text]
            main_text: Keep the main text of a web page; false keeps all its text, menus and footers too. [true]
            longest_bytes: Longest line, web page or record held in memory; longer ones are rejected, plain text is cut at a blank line. [8388608]
            ratio: Most bytes that one byte of an archive may unpack to. [1000]
            archive_bytes: Most bytes read out of one archive or packed file. [68719476736]
        split_bytes: Input of one shard: many small files together, or a part of a large one. [16M]
        workers: Worker processes; none: one for each usable core. [none]
        ray: Run on Ray: local, or the address of a cluster whose nodes see the same folders and have this package. [none]
        show: Print the funnel of this curated folder instead. [none]

    What it does and returns:
        The verb: curate and draw OUT/funnel.html, or print the funnel of what is there.
    """

def quality(*, good: Data, ordinary: Data, out: Text, train: TrainSettings | TrainSettingsDict = ..., read: ReadSettings | ReadSettingsDict = ...) -> Path:
    """Train a quality classifier; `fledge curate --quality OUT` then scores every page with it.

    `fledge quality` in Python: train a classifier of good against ordinary text.

    Arguments:
        good: Files or folders of text that is as one wants it. [required]
        ordinary: Files or folders of text as it comes, such as a crawl after `fledge curate`. [required]
        out: Folder of the classifier: weights, card.json, and quality.html to look at. [required]
        train: What it learns from, and how. A dict of
            pages: Pages of each side that are used at most, drawn by the hash of their words; 6 kB of memory each, 30 kB for long ones. [30000]
            held_out_by: What lies wholly on one side of the split: a page, or all pages of a web host (of a file where there is no URL). [page]
            fit: How it is trained. A dict of
                epochs: Passes over the training pages. [10]
                lr: Learning rate of AdaGrad, falling to 0 on a straight line. [0.1]
                batch_chunks: Chunks per step. [32]
                seed: Seed of their order. [0]
        read: How files become pages. A dict of
            encoding: Encoding of text, HTML and JSON files; none takes UTF-8, a stated charset, or the one that detection finds. [none]
            text_field: Field of a row that holds the text; a row without it may hold a web page in `html`. [text]
            main_text: Keep the main text of a web page; false keeps all its text, menus and footers too. [true]
            longest_bytes: Longest line, web page or record held in memory; longer ones are rejected, plain text is cut at a blank line. [8388608]
            ratio: Most bytes that one byte of an archive may unpack to. [1000]
            archive_bytes: Most bytes read out of one archive or packed file. [68719476736]

    What it does and returns:
        Read, train, measure; writes the classifier and its page, prints the figures and returns the folder.
    """

def rephrase(inputs: Data, *, out: Text, style: Literal["wiki", "qa", "easy", "hard"] = "wiki", model: Text | None = None, endpoint: Text | None = None, chunk_tokens: int = 300, passages: int | None = None, batch: int = 64, sampling: Sampling | SamplingDict = ..., concurrency: int = 8, timeout_seconds: float = 120.0, checks: CheckSettings | CheckSettingsDict = ..., device: Text = "auto") -> Path:
    """Write curated text anew in another style, through a checkpoint or an endpoint.

    `fledge rephrase` in Python: write text anew in a style: wiki, qa, easy, hard.

    Arguments:
        inputs: Curated folders; or files and folders of text. [required]
        out: Folder for the rephrased text. [required]
        style: wiki (like an encyclopedia), qa (questions and answers), easy (for a child) or hard (for a scholar). [wiki]
        model: Run or checkpoint of ours that writes. [none]
        endpoint: OpenAI-compatible endpoint that writes, as URL#MODEL; its key is taken from FLEDGE_ENDPOINT_KEY. [none]
        chunk_tokens: Longest passage in tokens (Maini et al. 2024, section 3.1); by words and Han characters where an endpoint writes. [300]
        passages: Stop after this many passages; none rephrases all. [none]
        batch: Passages asked for together; a kill loses at most these. [64]
        sampling: How the text is drawn. A dict of
            temperature: Divides the logits; 0 takes the most likely token (greedy). [0.7]
            top_k: Keep only the k most likely tokens. [none]
            top_p: Keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1). [0.95]
            max_tokens: Longest answer in tokens. [512]
            seed: Row i of a call draws from a stream of (seed, i), whatever else is in its batch. [0]
        concurrency: Questions an endpoint is asked at once. [8]
        timeout_seconds: Longest wait for one reply of an endpoint. [120.0]
        checks: What a rephrasing may be like. A dict of
            shortest: Shortest rephrasing as a share of its passage, in words and Han characters. [0.25]
            longest: Longest rephrasing as a share of its passage; questions with answers need about twice. [3.0]
            copied: Share of its 5-grams from which a rephrasing is a copy of its passage; None allows copies. [0.9]
            names: Reject names that the passage does not hold. [true]
            numbers: Reject numbers that the passage does not hold. [true]
        device: auto, cpu, cuda or cuda:1, for a checkpoint. [auto]

    What it does and returns:
        Rephrase everything and return the folder; continues what options.out already holds.
    """

@overload
def pretrain(*, out: Text, text: Data, parent: Text | None = None, vocab_size: int = 2048, tokens: int | Text | None = None, heldout_every: int | None = None, encoding: Text | None = None, skip_bad: int = 0, mask_repeats: int | None = 32, model: Shape | ShapeDict = ..., weights: float | Text | Sequence[float | Text] = ..., train: TrainConfig | TrainConfigDict = ..., track: Text | Texts | None = None) -> Path:
    """Raise a base model from text.

    `fledge pretrain` in Python: stage 1: a base model from text.

    Arguments:
        recipe: TOML file of these settings; arguments win over it.
        out: Folder of this run. [required]
        text: Files and folders: .txt .md .rst .jsonl .parquet, also .gz. [required]
        parent: Checkpoint to continue from; None starts from random weights and learns a tokenizer. [none]
        vocab_size: Tokens the tokenizer learns. [2048]
        tokens: Tokens to train on, such as 2M; None reads the text once. [none]
        heldout_every: Keep every n-th document out of training to measure bits per byte; None trains on all. [none]
        encoding: Encoding of the files where it is not UTF-8. [none]
        skip_bad: Broken lines to skip in all before it is an error. [0]
        mask_repeats: Train on no token in a span of 1 to 13 tokens that repeats this often or more; none trains on all. [32]
        model: Shape of the model. A dict of
            size: One of tiny, pocket, mini, small, base, medium, large. [pocket]
            vocab_size: Rows of the embedding, in tokens; None takes the tokenizer's. [none]
            layers: Transformer blocks. [none]
            width: Hidden width D. [none]
            heads: Query heads H; must divide width. [none]
            kv_heads: Key/value heads K of grouped-query attention; must divide heads; None takes heads. [none]
            ffn_width: Feed-forward width F; None takes 8/3 width rounded up to 32. [none]
            context_tokens: Longest sequence trained or served, in tokens. [128]
            qk_norm: RMSNorm on queries and keys per head (Qwen3). [false]
            bias: Biases on the query, key and value projections (Qwen2). [false]
            tied: Output head shares the embedding; None ties below width 1536. [none]
        weights: Share of each --text, one per --text: 1, or with its most after a colon, 3:4x (times) or 3:2M (tokens). [[]]
        train: Settings of the loop. A dict of
            steps: Optimiser steps; None lets the stage derive them from its tokens or epochs. [none]
            batch_tokens: Positions per optimiser step over all ranks. [4096]
            micro_tokens: Positions per forward pass; smaller saves memory and gives the same gradient. [16384]
            lr: Peak learning rate. [0.004]
            min_lr: Final learning rate as a share of the peak. [0.1]
            warmup: Share of the steps spent warming up. [0.02]
            schedule: Shape of the decay. [cosine]
            optimizer: AdamW, or Muon for the blocks' matrices with AdamW for the rest. [muon]
            beta1: AdamW's decay of the gradient's mean. [0.9]
            beta2: AdamW's decay of the gradient's square. [0.95]
            weight_decay: Decoupled weight decay of matrices. [0.1]
            clip: Largest gradient norm; larger ones are scaled down. [1.0]
            spike_sigma: Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off. [8.0]
            precision: Dtype of activations and products; weights stay float32. [auto]
            device: auto, cpu, cuda or cuda:1. [auto]
            threads: CPU threads; None takes all usable cores. [none]
            compile: Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on. [false]
            save_seconds: Time between checkpoints, in seconds. [120.0]
            seed: Seed of the initial weights and the order of the data. [0]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Train and return the last checkpoint; continues what recipe.out already holds.
    """
@overload
def pretrain(recipe: Text, *, out: Text = ..., text: Data = ..., parent: Text | None = None, vocab_size: int = 2048, tokens: int | Text | None = None, heldout_every: int | None = None, encoding: Text | None = None, skip_bad: int = 0, mask_repeats: int | None = 32, model: Shape | ShapeDict = ..., weights: float | Text | Sequence[float | Text] = ..., train: TrainConfig | TrainConfigDict = ..., track: Text | Texts | None = None) -> Path: ...

@overload
def sft(*, out: Text, parent: Text, chats: Data, epochs: float = 4.0, loss_on: Literal["answers", "last", "all"] = "answers", fresh: bool = False, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., track: Text | Texts | None = None) -> Path:
    """Teach a model to answer and to stop.

    `fledge sft` in Python: stage 2: teach it to answer, from conversations.

    Arguments:
        recipe: TOML file of these settings; arguments win over it.
        out: Folder of this run. [required]
        parent: Checkpoint or run to start from. [required]
        chats: Conversations in any accepted shape (messages, sharegpt, alpaca, ...), template-free rows, rows of tokens. [required]
        epochs: Times to read the conversations where train.steps is not set. [4.0]
        loss_on: Tokens of a conversation that are trained: of all answers, of the last one only (last), or the questions too (all). [answers]
        fresh: Start from random weights of the parent's shape instead of its own: the control that shows what pretraining gave. [false]
        encoding: Encoding of the files where it is not UTF-8. [none]
        skip_bad: Broken lines to skip in all before it is an error. [0]
        adapter: Train a small adapter beside the frozen weights instead of all of them. A dict of
            kind: lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora. [lora]
            rank: Rank of lora and dora, bottleneck width of houlsby. [8]
            alpha: lora and dora add alpha / rank times their product; None takes 2 x rank. [none]
            targets: Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones. [[]]
            virtual_tokens: Learned positions in front of the text, for prefix and prompt. [16]
            new_tokens: Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token. [none]
            base_bits: 8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are. [none]
        train: Settings of the loop. A dict of
            steps: Optimiser steps; None lets the stage derive them from its tokens or epochs. [none]
            batch_tokens: Positions per optimiser step over all ranks. [4096]
            micro_tokens: Positions per forward pass; smaller saves memory and gives the same gradient. [16384]
            lr: Peak learning rate. [0.001]
            min_lr: Final learning rate as a share of the peak. [0.1]
            warmup: Share of the steps spent warming up. [0.02]
            schedule: Shape of the decay. [cosine]
            optimizer: AdamW, or Muon for the blocks' matrices with AdamW for the rest. [adamw]
            beta1: AdamW's decay of the gradient's mean. [0.9]
            beta2: AdamW's decay of the gradient's square. [0.95]
            weight_decay: Decoupled weight decay of matrices. [0.1]
            clip: Largest gradient norm; larger ones are scaled down. [1.0]
            spike_sigma: Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off. [8.0]
            precision: Dtype of activations and products; weights stay float32. [auto]
            device: auto, cpu, cuda or cuda:1. [auto]
            threads: CPU threads; None takes all usable cores. [none]
            compile: Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on. [false]
            save_seconds: Time between checkpoints, in seconds. [120.0]
            seed: Seed of the initial weights and the order of the data. [0]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Train and return the last checkpoint; continues what recipe.out already holds.
    """
@overload
def sft(recipe: Text, *, out: Text = ..., parent: Text = ..., chats: Data = ..., epochs: float = 4.0, loss_on: Literal["answers", "last", "all"] = "answers", fresh: bool = False, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., track: Text | Texts | None = None) -> Path: ...

@overload
def reward(*, out: Text, parent: Text, epochs: float = 2.0, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., pairs: Data, fresh: bool = False, track: Text | Texts | None = None) -> Path:
    """Learn to score answers as the pairs rank them.

    `fledge reward` in Python: stage 3: a reward model from pairs.

    Arguments:
        recipe: TOML file of these settings; arguments win over it.
        out: Folder of this run. [required]
        parent: Checkpoint or run to start from, usually the SFT model. [required]
        epochs: Times to read the data where train.steps is not set. [2.0]
        encoding: Encoding of the files where it is not UTF-8. [none]
        skip_bad: Broken lines to skip in all before it is an error. [0]
        adapter: Train a small adapter beside the frozen weights instead of all of them. A dict of
            kind: lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora. [lora]
            rank: Rank of lora and dora, bottleneck width of houlsby. [8]
            alpha: lora and dora add alpha / rank times their product; None takes 2 x rank. [none]
            targets: Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones. [[]]
            virtual_tokens: Learned positions in front of the text, for prefix and prompt. [16]
            new_tokens: Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token. [none]
            base_bits: 8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are. [none]
        train: Settings of the loop. A dict of
            steps: Optimiser steps; None lets the stage derive them from its tokens or epochs. [none]
            batch_tokens: Positions per optimiser step over all ranks. [4096]
            micro_tokens: Positions per forward pass; smaller saves memory and gives the same gradient. [16384]
            lr: Peak learning rate. [0.0003]
            min_lr: Final learning rate as a share of the peak. [0.1]
            warmup: Share of the steps spent warming up. [0.02]
            schedule: Shape of the decay. [cosine]
            optimizer: AdamW, or Muon for the blocks' matrices with AdamW for the rest. [adamw]
            beta1: AdamW's decay of the gradient's mean. [0.9]
            beta2: AdamW's decay of the gradient's square. [0.95]
            weight_decay: Decoupled weight decay of matrices. [0.1]
            clip: Largest gradient norm; larger ones are scaled down. [1.0]
            spike_sigma: Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off. [8.0]
            precision: Dtype of activations and products; weights stay float32. [auto]
            device: auto, cpu, cuda or cuda:1. [auto]
            threads: CPU threads; None takes all usable cores. [none]
            compile: Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on. [false]
            save_seconds: Time between checkpoints, in seconds. [120.0]
            seed: Seed of the initial weights and the order of the data. [0]
        pairs: Preferences: JSONL with chosen and rejected (and tie), in any of the usual shapes; also .gz. [required]
        fresh: Start from random weights of the parent's shape instead of its own: the control that shows what pretraining gave. [false]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Train a reward model and return its last checkpoint; continues what recipe.out already holds.
    """
@overload
def reward(recipe: Text, *, out: Text = ..., parent: Text = ..., epochs: float = 2.0, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., pairs: Data = ..., fresh: bool = False, track: Text | Texts | None = None) -> Path: ...

@overload
def dpo(*, out: Text, parent: Text, epochs: float = 2.0, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., pairs: Data, reference: Text | None = None, loss: Literal["sigmoid", "ipo"] = "sigmoid", beta: float = 0.1, label_smoothing: float = 0.0, nll_weight: float = 0.0, track: Text | Texts | None = None) -> Path:
    """Pull chosen answers closer and push rejected ones away, without a reward model.

    `fledge dpo` in Python: stage 3: prefer chosen answers, without a reward model.

    Arguments:
        recipe: TOML file of these settings; arguments win over it.
        out: Folder of this run. [required]
        parent: Checkpoint or run to start from, usually the SFT model. [required]
        epochs: Times to read the data where train.steps is not set. [2.0]
        encoding: Encoding of the files where it is not UTF-8. [none]
        skip_bad: Broken lines to skip in all before it is an error. [0]
        adapter: Train a small adapter beside the frozen weights instead of all of them. A dict of
            kind: lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora. [lora]
            rank: Rank of lora and dora, bottleneck width of houlsby. [8]
            alpha: lora and dora add alpha / rank times their product; None takes 2 x rank. [none]
            targets: Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones. [[]]
            virtual_tokens: Learned positions in front of the text, for prefix and prompt. [16]
            new_tokens: Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token. [none]
            base_bits: 8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are. [none]
        train: Settings of the loop. A dict of
            steps: Optimiser steps; None lets the stage derive them from its tokens or epochs. [none]
            batch_tokens: Positions per optimiser step over all ranks. [4096]
            micro_tokens: Positions per forward pass; smaller saves memory and gives the same gradient. [16384]
            lr: Peak learning rate. [0.0003]
            min_lr: Final learning rate as a share of the peak. [0.1]
            warmup: Share of the steps spent warming up. [0.02]
            schedule: Shape of the decay. [cosine]
            optimizer: AdamW, or Muon for the blocks' matrices with AdamW for the rest. [adamw]
            beta1: AdamW's decay of the gradient's mean. [0.9]
            beta2: AdamW's decay of the gradient's square. [0.95]
            weight_decay: Decoupled weight decay of matrices. [0.1]
            clip: Largest gradient norm; larger ones are scaled down. [1.0]
            spike_sigma: Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off. [8.0]
            precision: Dtype of activations and products; weights stay float32. [auto]
            device: auto, cpu, cuda or cuda:1. [auto]
            threads: CPU threads; None takes all usable cores. [none]
            compile: Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on. [false]
            save_seconds: Time between checkpoints, in seconds. [120.0]
            seed: Seed of the initial weights and the order of the data. [0]
        pairs: Preferences: JSONL with chosen and rejected (and tie), in any of the usual shapes; also .gz. [required]
        reference: Checkpoint whose log-probs the policy is held to; None is the parent. [none]
        loss: sigmoid is DPO; ipo stops at a gap of 1/(2 beta) nats per token. [sigmoid]
        beta: How dearly moving away from the reference is paid. [0.1]
        label_smoothing: Share of the votes taken to be flipped. [0.0]
        nll_weight: Weight of the chosen answers' own NLL, which keeps their probability up. [0.0]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Train by DPO and return the last checkpoint; continues what recipe.out already holds.
    """
@overload
def dpo(recipe: Text, *, out: Text = ..., parent: Text = ..., epochs: float = 2.0, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., pairs: Data = ..., reference: Text | None = None, loss: Literal["sigmoid", "ipo"] = "sigmoid", beta: float = 0.1, label_smoothing: float = 0.0, nll_weight: float = 0.0, track: Text | Texts | None = None) -> Path: ...

@overload
def kto(*, out: Text, parent: Text, epochs: float = 2.0, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., votes: Data, reference: Text | None = None, beta: float = 0.1, desirable_weight: float | None = None, undesirable_weight: float | None = None, track: Text | Texts | None = None) -> Path:
    """Learn from single votes, liked or not, without pairs and without a reward model.

    `fledge kto` in Python: stage 3: learn from single votes, liked or not.

    Arguments:
        recipe: TOML file of these settings; arguments win over it.
        out: Folder of this run. [required]
        parent: Checkpoint or run to start from, usually the SFT model. [required]
        epochs: Times to read the data where train.steps is not set. [2.0]
        encoding: Encoding of the files where it is not UTF-8. [none]
        skip_bad: Broken lines to skip in all before it is an error. [0]
        adapter: Train a small adapter beside the frozen weights instead of all of them. A dict of
            kind: lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora. [lora]
            rank: Rank of lora and dora, bottleneck width of houlsby. [8]
            alpha: lora and dora add alpha / rank times their product; None takes 2 x rank. [none]
            targets: Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones. [[]]
            virtual_tokens: Learned positions in front of the text, for prefix and prompt. [16]
            new_tokens: Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token. [none]
            base_bits: 8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are. [none]
        train: Settings of the loop. A dict of
            steps: Optimiser steps; None lets the stage derive them from its tokens or epochs. [none]
            batch_tokens: Positions per optimiser step over all ranks. [4096]
            micro_tokens: Positions per forward pass; smaller saves memory and gives the same gradient. [16384]
            lr: Peak learning rate. [0.0003]
            min_lr: Final learning rate as a share of the peak. [0.1]
            warmup: Share of the steps spent warming up. [0.02]
            schedule: Shape of the decay. [cosine]
            optimizer: AdamW, or Muon for the blocks' matrices with AdamW for the rest. [adamw]
            beta1: AdamW's decay of the gradient's mean. [0.9]
            beta2: AdamW's decay of the gradient's square. [0.95]
            weight_decay: Decoupled weight decay of matrices. [0.1]
            clip: Largest gradient norm; larger ones are scaled down. [1.0]
            spike_sigma: Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off. [8.0]
            precision: Dtype of activations and products; weights stay float32. [auto]
            device: auto, cpu, cuda or cuda:1. [auto]
            threads: CPU threads; None takes all usable cores. [none]
            compile: Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on. [false]
            save_seconds: Time between checkpoints, in seconds. [120.0]
            seed: Seed of the initial weights and the order of the data. [0]
        votes: Votes: JSONL with prompt, completion and label, with kto_tag, or pairs (each gives two); also .gz. [required]
        reference: Checkpoint whose log-probs the policy is held to; None is the parent. [none]
        beta: How dearly moving away from the reference is paid. [0.1]
        desirable_weight: Weight of liked answers; None balances the two classes, the larger one keeping weight 1. [none]
        undesirable_weight: Weight of disliked answers; None balances the two classes, the larger one keeping weight 1. [none]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Train by KTO and return the last checkpoint; continues what recipe.out already holds.
    """
@overload
def kto(recipe: Text, *, out: Text = ..., parent: Text = ..., epochs: float = 2.0, encoding: Text | None = None, skip_bad: int = 0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., votes: Data = ..., reference: Text | None = None, beta: float = 0.1, desirable_weight: float | None = None, undesirable_weight: float | None = None, track: Text | Texts | None = None) -> Path: ...

@overload
def reinforce(*, out: Text, parent: Text, method: Literal["reinforce", "a2c", "ppo", "grpo", "rloo"] = "grpo", task: Text | None = None, prompts: Data = ..., reward: Texts = ..., watch: Texts = ..., prompts_per_update: int = 16, group_size: int = 8, max_tokens: int = 64, epochs: int | None = None, baseline: Literal["none", "mean", "value", "group", "group-std", "leave-one-out"] | None = None, divisor: Literal["token", "sequence", "fixed"] | None = None, clip: float | Sequence[float] | None = None, kl: Literal["off", "measure", "reward", "loss"] | None = None, kl_coefficient: float | None = None, kl_target: float | None = None, entropy_weight: float = 0.0, shaping: Literal["end", "steps", "potential"] = "end", resample: int = 0, cut_penalty: float = 1.0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., track: Text | Texts | None = None) -> Path:
    """Improve a model by its own scored answers (reinforcement learning).

    `fledge reinforce` in Python: stage 3: improve a model by its own scored answers.

    Arguments:
        recipe: TOML file of these settings; arguments win over it.
        out: Folder of this run. [required]
        parent: Checkpoint or run to start from, usually the SFT model; also the reference of the KL. [required]
        method: Sets baseline, divisor, epochs and clip where they are not set. [grpo]
        task: Built-in task: arithmetic, arithmetic:3, worked, poem, reverse, count, teach, world, gsm8k:FILE. [none]
        prompts: Own prompts instead of a task: JSONL with prompt, and answers where a rule needs them. [[]]
        reward: task, exact, regex:.., length:N, file.py:function, a reward model's folder, judge:URL#MODEL, piecewise(H,S); 0.5*NAME weighs. [[]]
        watch: Rewards that are not trained on, scored on held-out prompts to notice when the reward is gamed. [[]]
        prompts_per_update: Prompts of one rollout. [16]
        group_size: Answers sampled to each prompt. [8]
        max_tokens: Longest answer in tokens. [64]
        epochs: Times each rollout is trained on. [none]
        baseline: What a reward is compared with: none, mean, value, group, group-std, leave-one-out. [none]
        divisor: token: all tokens count alike; sequence: all answers; fixed: divided by answers x max_tokens. [none]
        clip: Bounds of the probability ratio: low and high, and a third number for dual clip; [] leaves it free. [none]
        kl: Where KL to the parent is paid: off, measure, reward, loss. Unset: measured, or paid where a model gives the reward. [none]
        kl_coefficient: Price of one nat of KL. [none]
        kl_target: Adapt the price so that an answer's KL stays near this many nats. [none]
        entropy_weight: Bonus per nat of entropy. [0.0]
        shaping: end: one reward per answer; steps: progress paid as it happens; potential: the same, paid back at the end. [end]
        resample: Rounds of new prompts in place of those whose answers all score the same. [0]
        cut_penalty: Taken off the reward of an answer that did not end by itself. [1.0]
        adapter: Train a small adapter beside the frozen weights instead of all of them. A dict of
            kind: lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora. [lora]
            rank: Rank of lora and dora, bottleneck width of houlsby. [8]
            alpha: lora and dora add alpha / rank times their product; None takes 2 x rank. [none]
            targets: Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones. [[]]
            virtual_tokens: Learned positions in front of the text, for prefix and prompt. [16]
            new_tokens: Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token. [none]
            base_bits: 8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are. [none]
        train: Settings of the loop; a rollout larger than batch_tokens is cut into several steps. A dict of
            steps: Optimiser steps; None lets the stage derive them from its tokens or epochs. [200]
            batch_tokens: Positions per optimiser step over all ranks. [65536]
            micro_tokens: Positions per forward pass; smaller saves memory and gives the same gradient. [16384]
            lr: Peak learning rate. [0.0001]
            min_lr: Final learning rate as a share of the peak. [0.1]
            warmup: Share of the steps spent warming up. [0.02]
            schedule: Shape of the decay. [constant]
            optimizer: AdamW, or Muon for the blocks' matrices with AdamW for the rest. [adamw]
            beta1: AdamW's decay of the gradient's mean. [0.9]
            beta2: AdamW's decay of the gradient's square. [0.95]
            weight_decay: Decoupled weight decay of matrices. [0.0]
            clip: Largest gradient norm; larger ones are scaled down. [1.0]
            spike_sigma: Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off. [8.0]
            precision: Dtype of activations and products; weights stay float32. [auto]
            device: auto, cpu, cuda or cuda:1. [auto]
            threads: CPU threads; None takes all usable cores. [none]
            compile: Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on. [false]
            save_seconds: Time between checkpoints, in seconds. [120.0]
            seed: Seed of the initial weights and the order of the data. [0]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Train and return the last checkpoint; continues what recipe.out already holds.

        ask_about: where prompts and rewards come from, for experiments that no recipe can name.
    """
@overload
def reinforce(recipe: Text, *, out: Text = ..., parent: Text = ..., method: Literal["reinforce", "a2c", "ppo", "grpo", "rloo"] = "grpo", task: Text | None = None, prompts: Data = ..., reward: Texts = ..., watch: Texts = ..., prompts_per_update: int = 16, group_size: int = 8, max_tokens: int = 64, epochs: int | None = None, baseline: Literal["none", "mean", "value", "group", "group-std", "leave-one-out"] | None = None, divisor: Literal["token", "sequence", "fixed"] | None = None, clip: float | Sequence[float] | None = None, kl: Literal["off", "measure", "reward", "loss"] | None = None, kl_coefficient: float | None = None, kl_target: float | None = None, entropy_weight: float = 0.0, shaping: Literal["end", "steps", "potential"] = "end", resample: int = 0, cut_penalty: float = 1.0, adapter: AdapterConfig | AdapterConfigDict | str | None = None, train: TrainConfig | TrainConfigDict = ..., track: Text | Texts | None = None) -> Path: ...

def best_of_n(*, out: Text, parent: Text, reward: Texts, task: Text | None = None, prompts: Data = ..., n: int = 16, count: int = 64, temperature: float = 1.0, max_tokens: int = 64, device: Text = "auto", seed: int = 0) -> dict[str, Any]:
    """Sample n answers to each prompt and keep the one with the highest reward.

    `fledge best-of-n` in Python: sample n answers to each prompt, keep the best by a reward.

    Arguments:
        out: Folder for best.jsonl (conversations for SFT), pairs.jsonl (best against worst, for DPO) and best-of-n.json. [required]
        parent: Checkpoint or run whose answers these are. [required]
        reward: As in reinforce: a reward model's folder, file.py:function, a rule, task. [required]
        task: Built-in task whose held-out prompts are answered; its score is told beside the reward. [none]
        prompts: Own prompts instead: JSONL with prompt. [[]]
        n: Answers per prompt. [16]
        count: Prompts at most. [64]
        temperature: Of the sampling; the KL of best-of-n is relative to the model at this temperature. [1.0]
        max_tokens: Longest answer in tokens. [64]
        device: auto, cpu, cuda or cuda:1. [auto]
        seed: Seed of the choice of prompts and of the sampling. [0]

    What it does and returns:
        Sample, score, write the files and print what n buys; returns what best-of-n.json holds.
    """

def lab(action: Literal["list", "run", "report", "adopt"], ids: Texts = ..., *, out: Text = "runs/labs", scale: Literal["pocket", "gpu", "full", "tiny"] = "pocket", seeds: int = 3, set: dict = ..., results: Text = "results/labs", track: Text | Texts | None = None) -> Any:
    """Rerun published claims: list them, run one or all, see them on one page.

    `fledge lab` in Python: published claims, rerun: list, run, report.

    Arguments:
        action: list, run or report; adopt takes the results of commands that share a lab's measurements, such as filters.json. [required]
        ids: Labs to run, such as P9 S11, or all; labs to adopt, where not all of them. [[]]
        out: Folder of all labs; what is done is kept and the rest continues. [runs/labs]
        scale: pocket: 2 cores, minutes. gpu: larger, from scratch. full: real checkpoints, given with --set. tiny: machinery only. [pocket]
        seeds: Repetitions, each with its own data, start and order. [3]
        set: Change a setting of the lab, as in --set.people 500; see the top of its file for what there is. [{}]
        results: Published results to show beside your own. [results/labs]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Do what is asked; returns results (run), the page (report), what is known of labs (list), files (adopt).
    """

def overoptimise(*, pairs: int | Sequence[int] = ..., noise: float = 0.15, kl_coefficients: float | Sequence[float] = ..., pool: int = 1024, prompts: int = 64, updates: int = 150, lr: float = 0.0002, out: Text, parent: Text, seeds: int = 3, track: Text | Texts | None = None) -> dict[str, Any]:
    """Watch a reward model being over-optimised: proxy and gold reward against KL, with the chart.

    `fledge overoptimise` in Python: experiment: proxy and gold reward against KL.

    Arguments:
        pairs: Votes each proxy is trained on. [(100, 500, 2000)]
        noise: Share of votes that are flipped. [0.15]
        kl_coefficients: KL penalties tried against the weakest proxy, beside none. [(0.05, 0.2)]
        pool: Answers sampled to each held-out prompt for best-of-n. [1024]
        prompts: Held-out prompts. [64]
        updates: Policy-gradient updates of 128 answers each. [150]
        lr: Learning rate of the policy gradient. [0.0002]
        out: Folder of the experiment; what is done is kept and the rest continues. [required]
        parent: SFT model of a journey through the embedded world, whose gold score is known. [required]
        seeds: Repetitions, each with its own votes, proxies and answers. [3]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Every seed, then the summary, the page and the verdict; returns what result.json holds.
    """

def methods(*, task: Text = "arithmetic", methods: Texts = ..., updates: int = 200, answers: int = 256, max_tokens: int = 8, lr: float = 0.0003, variance_rollouts: int = 32, start_tokens: int = 2000000, start_chats: int = 8000, out: Text, parent: Text | None = None, seeds: int = 3, track: Text | Texts | None = None) -> dict[str, Any]:
    """Five policy-gradient methods from one start with the same number of samples, and the curves in one chart.

    `fledge methods` in Python: experiment: five policy-gradient methods compared.

    Arguments:
        task: Built-in task; it must be able to make its own text and chats where there is no parent. [arithmetic]
        methods: Methods compared. [('reinforce', 'a2c', 'ppo', 'grpo', 'rloo')]
        updates: Rollouts per method. [200]
        answers: Answers of a rollout, 8 to each prompt. [256]
        max_tokens: Longest answer in tokens. [8]
        lr: Learning rate of every method. [0.0003]
        variance_rollouts: Rollouts from which the spread of the gradient is taken. [32]
        start_tokens: Tokens the base model reads where there is no parent. [2000000]
        start_chats: Conversations it is then taught, of which 70% end with a wrong answer. [8000]
        out: Folder of the experiment; what is done is kept and the rest continues. [required]
        parent: SFT model to start from; none makes one for the task in about a minute. [none]
        seeds: Repetitions, each with its own start and answers. [3]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Every seed, then the summary, the page and the verdict; returns what result.json holds.
    """

def mixtures(*, votes: int = 1500, weights: float | Sequence[float] = ..., updates: int = 150, lr: float = 0.0002, kl_coefficient: float = 0.05, out: Text, parent: Text, seeds: int = 3, track: Text | Texts | None = None) -> dict[str, Any]:
    """Helpful against safe: two reward models, weighted sums and the piecewise combination, with the front.

    `fledge mixtures` in Python: experiment: helpful against safe, two reward models.

    Arguments:
        votes: Votes each reward model is trained on. [1500]
        weights: Weights of helpfulness in the sums; the rest is safety's. [(0.0, 0.25, 0.5, 0.75, 1.0)]
        updates: Policy-gradient updates of 128 answers each. [150]
        lr: Learning rate of the policy gradient. [0.0002]
        kl_coefficient: Price of a nat of KL to the SFT model. [0.05]
        out: Folder of the experiment; what is done is kept and the rest continues. [required]
        parent: SFT model of a journey through the embedded world. [required]
        seeds: Repetitions, each with its own votes, reward models and answers. [3]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Every seed, then the summary, the page and the verdict; returns what result.json holds.
    """

def filters(*, pages: int = 20000, junk: float = 0.5, bland: float = 0.4, recipe: Text = "world", keep_top: float = 0.75, tokens: int | Text = "2M", size: Text = "pocket", lr: float = 0.004, spike_lr: float = 0.003, spikes: bool = True, out: Text, seeds: int = 3, track: Text | Texts | None = None) -> dict[str, Any]:
    """Clean against raw text at equal tokens, step by step, with the funnel, two controls and what a bad batch does.

    `fledge filters` in Python: experiment: clean against raw text at equal tokens.

    Arguments:
        pages: Pages of the crawl. [20000]
        junk: Share of them that are junk. [0.5]
        bland: Share of the junk that no rule of form can see: forum talk, and texts with their words in another order. [0.4]
        recipe: Rules: a shipped recipe or a TOML file. [world]
        keep_top: Share of the pages that the classifiers keep. [0.75]
        tokens: Tokens each arm trains on. [2M]
        size: Size of the models. [pocket]
        lr: Peak learning rate of every arm. [0.004]
        spike_lr: Usual learning rate of the part on spikes, which takes twice as much. [0.003]
        spikes: Also train on batches with half a page of noise, filtered, masked and not. [true]
        out: Folder of the experiment; what is done is kept and the rest continues. [required]
        seeds: Repetitions, each with its own world, crawl, start and order. [3]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Every seed, then the summary, the page and the verdict; returns what result.json holds.
    """

def rephrasing(*, pages: int | None = None, tokens: int | Text = "2M", size: Text = "pocket", lr: float = 0.004, out: Text, seeds: int = 3, track: Text | Texts | None = None) -> dict[str, Any]:
    """Raw, rephrased and mixed text at equal tokens: facts learned, and bits on clean and on noisy text.

    `fledge rephrasing` in Python: experiment: rephrased against raw text at equal tokens.

    Arguments:
        pages: Most pages of facts to use; none takes all of the quick world, about 12,000. [none]
        tokens: Largest token budget; a quarter and a half of it are run too. [2M]
        size: Size of the models. [pocket]
        lr: Peak learning rate of every arm. [0.004]
        out: Folder of the experiment; what is done is kept and the rest continues. [required]
        seeds: Repetitions, each with its own world, noise, start and order. [3]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Every seed, then the summary, the page and the verdict; returns what result.json holds.
    """

def adapters(*, out: Text, arms: Texts = ..., rank: int = 8, targets: Texts = ..., virtual_tokens: int = 16, chats: int = 256, draws: int = 3, epochs: float = 20.0, batch_tokens: int = 1024, random: bool = True, all_chats: bool = True, lr_times: float = 1.0, lr_spread: float | Sequence[float] = ..., size: Text = "pocket", tokens: int | None = None, quick: bool = False, seeds: int = 3, track: Text | Texts | None = None) -> dict[str, Any]:
    """Every kind of adapter and full training from one base model: facts, numbers trained, forgetting and time.

    `fledge adapters` in Python: experiment: every kind of adapter against full training.

    Arguments:
        out: Folder of the experiment; what is done is kept and the rest continues. [required]
        arms: What is compared: full, and kinds of adapters. [('full', 'lora', 'dora', 'houlsby', 'prefix', 'prompt', 'bitfit', 'ia3')]
        rank: Rank of lora and dora, bottleneck width of houlsby. [8]
        targets: Products that lora and dora adapt. [('q', 'k', 'v', 'o', 'down')]
        virtual_tokens: Positions of prefix and prompt. [16]
        chats: Conversations to learn from; claim S2 is about few. [256]
        draws: Sets of so many conversations, none in two, on which full training and LoRA are compared; the others read the first. [3]
        epochs: Times to read them. [20.0]
        batch_tokens: Positions per optimiser step. [1024]
        random: Also LoRA on random weights, the control that shows what pretraining gave. [true]
        all_chats: Also full training and LoRA on all conversations of seed 0, as a journey reads them: where the claim ends. [true]
        lr_times: Factor on every arm's learning rate. [1.0]
        lr_spread: Further factors at which full training and LoRA are measured, for larger steps answer more and forget more. [(0.7, 1.4)]
        size: Model size. [pocket]
        tokens: Tokens to pretrain on; none takes the journey's. [none]
        quick: A smaller world and less pretraining. [false]
        seeds: Repetitions, each with its own world, base model and order. [3]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Every seed, then the summary, the page and the verdict; returns what result.json holds.
    """

def loop(*, out: Text, parent: Texts, rounds: int = 3, votes: int = 300, noise: float = 0.1, position_bias: float = 0.2, tie_band: float = 0.25, seeds: int = 3, track: Text | Texts | None = None) -> dict[str, Any]:
    """The closed loop with simulated people: votes, the next model, and whether it is better, round after round.

    `fledge loop` in Python: experiment: votes, next model, votes, and so on.

    Arguments:
        out: Folder of the experiment; what is done is kept and the rest continues. [required]
        parent: First models: SFT models of journeys through the embedded world; seed k takes number k, from the start again. [required]
        rounds: Rounds of votes and improvement. [3]
        votes: Votes of each kind (choice, thumb, score, edit) in each round. [300]
        noise: Probability that a vote is wrong. [0.1]
        position_bias: Probability that the left answer is taken whatever stands there. [0.2]
        tie_band: Gold scores no further apart than this are the same. [0.25]
        seeds: Repetitions, each with its own votes and training. [3]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Every seed, then the summary, the page and the verdict; returns what result.json holds.
    """

def shift(aligned: Text, *, base: Text, out: Text, task: Text | None = None, prompts: Data = ..., count: int = 100, max_tokens: int = 64, context: Literal["chat", "plain"] = "chat", top: int = 5, device: Text = "auto", seed: int = 0) -> dict[str, Any]:
    """Which tokens of answers the base would not write: `fledge shift RUN --base BASE --task world --out OUT`.

    `fledge shift` in Python: which tokens a stage changed, and by how much.

    Arguments:
        aligned: Run or checkpoint that answers. [required]
        base: Run or checkpoint it was raised from; it reads the same tokens. [required]
        out: Folder for shift.json (figures) and answers.jsonl (every token of every answer). [required]
        task: Built-in task whose held-out prompts are answered. [none]
        prompts: Own prompts instead: JSONL with prompt. [[]]
        count: Prompts at most. [100]
        max_tokens: Longest answer in tokens. [64]
        context: What both models read: chat is the template, plain the bare text of the prompt and a new line. [chat]
        top: Likeliest tokens kept of each distribution. [5]
        device: auto, cpu, cuda or cuda:1. [auto]
        seed: Seed of the choice of prompts. [0]

    What it does and returns:
        Answer, compare, write the files and print the figures; returns what shift.json holds.
    """

def laws(files: Texts = ..., *, out: Text | None = None, compute: float | Sequence[float] = ..., draws: int = 100, used: float | None = None, stock: float = 300000000000000.0, growth: float = 2.4, stock_growth: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Fit scaling laws: `fledge laws runs.csv --compute 1e20 --out laws`, or `fledge laws runs/sweep`, or `fledge laws --used 15e12`.

    `fledge laws` in Python: scaling laws of runs: best size for a budget, law of loss, how long text lasts.

    Arguments:
        files: Tables (.csv, .jsonl, .json, .parquet) of parameters, tokens, loss and perhaps unique, or folders of pretraining runs. [[]]
        out: Folder for laws.json and laws.html, which has the chart; none only prints. [none]
        compute: Budgets in FLOPs (6 N D) to tell the best size, tokens and loss of. [[]]
        draws: Bootstrap draws behind the intervals of the law's constants; 0 leaves them out. [100]
        used: Tokens of today's training sets, for how long text lasts; needs no files. [none]
        stock: Tokens of text there are (Villalobos et al. 2024: 300T, between 100T and 1000T). [300000000000000.0]
        growth: Factor by which training sets grow in a year. [2.4]
        stock_growth: Factor by which the stock grows in a year. [1.0]
        seed: Seed of the bootstrap. [0]

    What it does and returns:
        Read, fit, print and write; returns what laws.json holds.
    """

def knowledge(run: Text, *, prompts: int = 10, shots: int = 4, samples: int = 16, temperature: float = 0.5, form: Text = "Q: {question}\nA: {answer}\n", max_tokens: int = 16, seed: int = 0, data: Texts, examples: Texts = ..., count: int | None = None, out: Text | None = None, device: Text = "auto") -> dict[str, Any]:
    """Sort questions by how surely a model knows the answer: `fledge knowledge RUN --data questions.jsonl --out known.jsonl`.

    `fledge knowledge` in Python: which facts a model knows always, sometimes, hardly or not at all.

    Arguments:
        prompts: Prompts for each question, each with other worked examples. [10]
        shots: Worked examples in a prompt, of the same relation. [4]
        samples: Sampled answers to each prompt. [16]
        temperature: Temperature of the samples. [0.5]
        form: How a question and its answer stand in a prompt; what follows {answer} there ends an answer. ["Q: {question}\\nA: {answer}\\n"]
        max_tokens: Longest answer in tokens. [16]
        seed: Seed of the choice of examples and of the samples. [0]
        run: Run or checkpoint; imported ones, too. [required]
        data: Questions: JSONL with question, answer (a text, or a list of all that are right) and relation. [required]
        examples: Questions that the worked examples are taken from; none takes those of data. [[]]
        count: Questions to sort, at most; none takes all. [none]
        out: JSONL to write: the rows with category, p_greedy and p_sampled. [none]
        device: auto, cpu, cuda or cuda:1. [auto]

    What it does and returns:
        Sort the questions, write OUT and print a table; returns counts and rows.
    """

def probe(run: Text, *, data: Texts, test: Texts = ..., out: Text | None = None, layers: Literal["final", "all"] = "final", query: bool = False, device: Text = "auto") -> dict[str, Any]:
    """Fit a linear probe on labelled texts: `fledge probe runs/first/base --data people.jsonl --layers all`.

    `fledge probe` in Python: what a linear probe reads off a model's states, layer by layer.

    Arguments:
        run: Run or checkpoint whose states are read; it stays as it is. [required]
        data: Rows to fit on: JSONL with text and label, such as {"text": "Mira Kolden", "label": "Belmora"}. [required]
        test: Rows to test on; empty keeps every fifth row of the data for it. [[]]
        out: File for the figures as JSON; none only prints them. [none]
        layers: final: the normed state before the head; all: the embedding and each block as well. [final]
        query: Learn a query token after each text and read the answer off the model's own output rows, instead of a regression. [false]
        device: auto, cpu, cuda or cuda:1. [auto]

    What it does and returns:
        Fit and test a probe on each layer asked for, print a table; returns what OUT holds.
    """

def memorise(run: Text, *, text: Texts = ..., data: Texts = ..., begin: float = 0.5, search: Search | SearchDict = ..., recall_only: bool = False, out: Text | None = None, device: Text = "auto") -> dict[str, Any]:
    """What a model holds by heart: `fledge memorise RUN --text "To be, or not to be" --out found.json`.

    `fledge memorise` in Python: what a model holds by heart: verbatim recall, adversarial compression ratio.

    Arguments:
        run: Run or checkpoint, also an imported one. [required]
        text: Texts, as many as you like. [[]]
        data: Texts in files instead: JSONL with text, or plain text. [[]]
        begin: Share of each text's tokens that recall begins from. [0.5]
        search: How hard short prompts are looked for. A dict of
            start: Length of prompt that is tried first, in tokens; 1 is tried before it where that is exhaustive. [5]
            step: Tokens more after a failure. [5]
            longest: Prompts are tried up to this many times the text's length; where none is found, ACR is said to be 1 over this. [5.0]
            growth: Steps are multiplied by this after a failure. [1.2]
            top: Replacements named by the gradient, for each token of the prompt. [64]
            candidates: Replacements tried in a step, for each restart. [64]
            steps: Steps of a search. [60]
            restarts: Searches from different prompts, side by side. [3]
            seed: Seed of prompts and replacements. [0]
        recall_only: Look for no prompts: recall takes seconds, the search minutes. [false]
        out: File for the figures as JSON; none only prints them. [none]
        device: auto, cpu, cuda or cuda:1. [auto]

    What it does and returns:
        Recall and compress each text, print a table; returns what OUT holds.
    """

def passk(run: Text, *, task: Text | None = None, prompts: Texts = ..., samples: int = 64, count: int = 200, temperature: float = 1.0, max_tokens: int = 64, context: Literal["chat", "plain"] = "chat", threshold: float = 1.0, out: Text | None = None, device: Text = "auto", seed: int = 0) -> dict[str, Any]:
    """Sample answers and estimate pass@k: `fledge passk RUN --task world --samples 64`.

    `fledge passk` in Python: pass@k: how often one of k sampled answers is right.

    Arguments:
        run: Run or checkpoint that answers, also an imported one. [required]
        task: Built-in task whose held-out questions are answered and scored. [none]
        prompts: Own questions instead: JSONL with prompt and answer, compared exactly. [[]]
        samples: Answers to each question. [64]
        count: Questions at most. [200]
        temperature: Temperature of the samples. [1.0]
        max_tokens: Longest answer in tokens. [64]
        context: What the model reads: chat is the template, plain the bare text and a new line. [chat]
        threshold: Score from which an answer counts as right. [1.0]
        out: File for the figures as JSON; none only prints them. [none]
        device: auto, cpu, cuda or cuda:1. [auto]
        seed: Seed of the samples and of the choice of questions. [0]

    What it does and returns:
        Sample, score and print pass@k for k = 1, 2, 4, ...; returns the figures.
    """

def power(run: Text, *, alpha: float = 4.0, temperature: float | None = None, steps: int = 10, blocks: int = 4, max_tokens: int = 32, climb: bool = False, seed: int = 0, prompts: Texts = ..., text: Text | None = None, count: int = 100, context: Literal["chat", "plain"] = "chat", out: Text | None = None, device: Text = "auto") -> list[dict[str, Any]]:
    """Sample whole answers from p^alpha: `fledge power RUN --prompts questions.jsonl --alpha 4`, or --text "Who ...?".

    `fledge power` in Python: whole answers from p^alpha: power sampling of a model without training.

    Arguments:
        alpha: Exponent on the probability of a whole answer; 1 is the model itself. [4.0]
        temperature: Temperature of the proposal; none is 1/alpha. [none]
        steps: Metropolis-Hastings steps after each block. [10]
        blocks: Blocks an answer grows by. [4]
        max_tokens: Longest answer in tokens. [32]
        climb: Take only what is likelier: a search for the likeliest answer instead of a sample. [false]
        seed: Seed of all draws. [0]
        run: Run or checkpoint that answers, also an imported one. [required]
        prompts: Questions: JSONL with prompt. [[]]
        text: One question instead. [none]
        count: Questions at most. [100]
        context: What the model reads: chat is the template, plain the bare text and a new line. [chat]
        out: File for the answers as JSON lines; none only prints them. [none]
        device: auto, cpu, cuda or cuda:1. [auto]

    What it does and returns:
        Sample, print and write; returns one row for each question, with its greedy answer.
    """

def resume(run: Text, *, track: Text | Texts | None = None) -> Any:
    """Continue an interrupted run, bit for bit.

    `fledge resume` in Python: continue whatever was interrupted.

    Arguments:
        run: The run's folder. [required]
        track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]

    What it does and returns:
        Say what is there, then run the stored recipe again; gives what its verb gives.
    """

def follow(run: Text, *, to: Literal["tensorboard", "trackio", "wandb"], project: Text | None = None, folder: Text | None = None, once: bool = False) -> dict[str, int]:
    """Send a run's metrics to a tracker until the run is done.

    `fledge follow` in Python: send a run's metrics to TensorBoard, trackio or wandb.

    Arguments:
        run: Folder of a run, or of several: a journey, an experiment; it may not exist yet. [required]
        to: Tracker to send to. [required]
        project: Project in trackio or wandb; None is that of WANDB_PROJECT or TRACKIO_PROJECT, else fledge. [none]
        folder: Where TensorBoard's or wandb's files go; None is inside each run. [none]
        once: Send what is there and end, whether the run is done or not. [false]

    What it does and returns:
        Send until all is done, or once; returns the last step of each run that was sent.

        Raises ValueError where the tracker's package is missing, and with `once` where there is nothing to send or another
        process sends it.
    """

def runs(folder: Text = "runs") -> Listing[Run]:
    """List the runs in a folder.

    `fledge runs` in Python: all runs in a folder, with where they stand.

    Arguments:
        folder: Folder to look in, two levels deep. [runs]

    What it does and returns:
        Every run, shown as a line each. Raises ValueError where there is none.
    """

def eval(run: Text, *, tasks: Texts = ..., limit: int | None = None, shots: int | None = None, chat: bool | None = None, out: Text | None = None, device: Text = "auto", precision: Text = "float32", seed: int = 0) -> Listing[TaskResult]:
    """Evaluate a model on tasks of lm-evaluation-harness, own files, or the embedded world.

    `fledge eval` in Python: score a model on tasks of lm-evaluation-harness, files or its world.

    Arguments:
        run: Run or checkpoint. [required]
        tasks: Names with commas or one by one, or YAML files; none given: choices:own and cloze:own, of the journey's world. [[]]
        limit: Documents of each task at most; none takes all. [none]
        shots: Solved examples before each question; none: as the task says, 0 for ours. [none]
        chat: Ask through the chat template; none: yes unless the run is pretrained or imported. [none]
        out: Folder for the results; none: RUN/eval. [none]
        device: auto, cpu, cuda or cuda:1. [auto]
        precision: float32, so that scores are the model's own, or bfloat16. [float32]
        seed: Seed of the choice of solved examples. [0]

    What it does and returns:
        Evaluate and say where the files are; the results are shown as a table.
    """

def compare(a: Text, b: Text, *, tasks: Texts = ..., limit: int | None = None, chat: bool | None = None, level: float = 0.95, draws: int = 10000, out: Text | None = None, device: Text = "auto", seed: int = 0) -> Listing[Difference]:
    """Compare two models on what both were evaluated on.

    `fledge compare` in Python: two models on the same tasks: paired differences with intervals.

    Arguments:
        a: Run, checkpoint, or folder of results. [required]
        b: Another; differences are b less a. [required]
        tasks: Evaluate both on these first, as `fledge eval` does; none: compare the results that are there. [[]]
        limit: Documents of each task at most, where tasks are evaluated. [none]
        chat: As in `fledge eval`, where tasks are evaluated. [none]
        level: Share of the resamples that an interval holds. [0.95]
        draws: Resamples of the documents. [10000]
        out: File for the figures (.json); none: they are only printed. [none]
        device: auto, cpu, cuda or cuda:1. [auto]
        seed: Seed of the resamples. [0]

    What it does and returns:
        Compare, and write the figures where they are wanted; the differences are shown as a table.
    """

def judge(a: Text, b: Text | None = None, *, questions: Text, judge: Text, out: Text | None = None, limit: int | None = None, sampling: Sampling | SamplingDict = ..., rubric: Text | None = None, concurrency: int = 8, device: Text = "auto") -> dict[str, Any]:
    """Let a judge give points to a model's answers, or compare two models.

    `fledge judge` in Python: MT-bench: a judge gives points, or compares two models.

    Arguments:
        a: Run or checkpoint. [required]
        questions: MT-bench's question.jsonl: turns, and category and reference where there are any. [required]
        judge: URL#MODEL of the judge, OpenAI-compatible; its key is in FLEDGE_JUDGE_KEY. [required]
        b: Another to compare it with; none: points only. [none]
        out: Folder for judge.json (figures) and judgments.jsonl; none: A/judge. [none]
        limit: Questions at most. [none]
        sampling: How answers are drawn. A dict of
            temperature: Divides the logits; 0 takes the most likely token (greedy). [0.0]
            top_k: Keep only the k most likely tokens. [none]
            top_p: Keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1). [none]
            max_tokens: Longest answer in tokens. [512]
            seed: Row i of a call draws from a stream of (seed, i), whatever else is in its batch. [0]
        rubric: What the judge looks at; none: correct, to the point, clear, no longer than needed. [none]
        concurrency: Questions to the judge under way at once. [8]
        device: auto, cpu, cuda or cuda:1. [auto]

    What it does and returns:
        Answer, judge, print a table on stdout and write both files.
    """

def merge(run: Text, *, out: Text) -> Path:
    """Make an adapter part of its base's weights: a run that everything can start from, serve and export.

    `fledge merge` in Python: an adapter and its base as one plain model.

    Arguments:
        run: Run or checkpoint of an adapter (lora, dora, ia3 or bitfit). [required]
        out: Run folder to write. [required]

    What it does and returns:
        Write the merged model and return its checkpoint; the same merge again does nothing.

        Raises ValueError where `run` holds no adapter, or one that is no change of weights.
    """

def lineage(run: Text) -> Listing[HistoryModel]:
    """Print the family tree of a run's models.

    `fledge lineage` in Python: the family tree of a run's models.

    Arguments:
        run: A journey's folder, or any folder of runs. [required]

    What it does and returns:
        Every model, shown as the family tree; a parent outside the folder by its id. Raises ValueError where there is none.
    """

def convert(inputs: Data, *, to: Literal["messages", "sharegpt", "alpaca", "prompt-completion", "dpo", "pairs", "kto", "prompts", "text"], out: Text, take: Literal["all", "liked"] = "all", tools: Literal["reject", "text"] = "reject", rename: Texts = ..., report: Text | None = None, encoding: Text | None = None, skip_bad: int = 0) -> Converted:
    """Write conversations, pairs, votes, prompts or text in another shape; what it cannot hold is counted, by reason.

    `fledge convert` in Python: write data in another shape: messages, sharegpt, alpaca, dpo, kto, prompts, text.

    Arguments:
        inputs: Files and folders to read: JSONL, JSON, Parquet or Arrow, also .gz and .zst, in any accepted shape. [required]
        to: messages, sharegpt, alpaca, prompt-completion, dpo, pairs (dpo with ties), kto, prompts or text. [required]
        out: File to write: .jsonl or .json, also .gz and .zst, .parquet or .arrow. [required]
        take: all, or liked: only chosen and liked answers, as conversations. [all]
        tools: Rows with tool calls, tool results or reasoning: reject, or write them out as text. [reject]
        rename: Columns under other names, THEIRS=OURS: input=prompt. [[]]
        report: File for what was left out and rejected, with samples, as JSON. [none]
        encoding: Encoding of the files where it is not UTF-8. [none]
        skip_bad: Broken lines to skip in all before it is an error. [0]

    What it does and returns:
        Write the file; prints how many rows there are, what they lost, and the rows left out by reason.
    """

def show(chats: Data, *, model: Text | None = None, loss_on: Literal["answers", "last", "all"] = "answers", first: int = 5) -> Listing[TokenView]:
    """Show which tokens of conversations are trained.

    `fledge show` in Python: coloured view: which tokens of a chat are trained.

    Arguments:
        chats: Conversations in any accepted shape, template-free rows, or rows of tokens. [required]
        model: Run or checkpoint whose tokenizer is used; None learns a small one from the file. [none]
        loss_on: As of `fledge sft`: all answers, the last one only (last), or the questions too (all). [answers]
        first: Conversations to show. [5]

    What it does and returns:
        The first conversations, shown as tokens.
    """
