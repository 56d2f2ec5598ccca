"""The published claims one can rerun: one line each, and the module that runs it. Imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A claim and where its lab is."""

    module: str  # in fledge.labs
    title: str
    chinese: str
    claim: str  # in a sentence
    paper: str  # who, year, section
    minutes: float  # one seed at pocket, measured alone on 2 cores; the shared models it needs are counted apart
    needs: tuple[str, ...] = ()  # shared models, see bench.SHARED

    def load(self) -> Any:
        """The lab's module: Setup, SCALES, measure, judge and draw (see `bench.Lab`)."""
        return import_module(f"fledge.labs.{self.module}")


# fmt: off
LABS = {
    "P2": Entry("p02_next_token", "Next token is classification", "預測下一個詞就是分類",
                "A language model is a classifier of the next token: it reaches the entropy of its source, and cannot go below.",
                "Shannon 1948, section 7; Bengio et al. 2003", 0.4),
    "P3": Entry("p03_filters", "Curation: rules, duplicates, quality", "資料篩選：規則、去重、品質模型",
                "Each step of curation, rules, duplicates, a quality model, makes the same number of training tokens worth more.",
                "Li et al. 2024 (DCLM), section 4", 7.0),
    "P4": Entry("p04_rephrasing", "Rephrasing the web", "把網頁改寫一遍",
                "Text that is half rephrased teaches as much with about a third of the tokens; rephrased text alone loses the web's style.",
                "Maini et al. 2024 (WRAP)", 8.0),
    "P5": Entry("p05_isoflop", "The best size for a budget", "給定算力的最佳大小",
                "For fixed compute there is a best balance of model and text, which a power law foretells; repeated text wears out.",
                "Hoffmann et al. 2022, section 3; Muennighoff et al. 2023", 6.2),
    "P7": Entry("p07_memorisation", "Memorisation is compression", "背誦就是壓縮",
                "What was read often is written out from a prompt much shorter than itself, even after the model has learned to refuse.",
                "Schwarzschild et al. 2024", 3.4),
    "P8": Entry("p08_latent", "More than it says", "會的比說出來的多",
                "A base model seldom answers, yet the answer is among its samples; power sampling finds what it holds likely.",
                "Karan and Du 2025; Chen et al. 2021; Yue et al. 2025", 2.3),
    "P9": Entry("p09_extraction", "One wording is not enough", "只讀一種寫法，問了答不出",
                "A fact can be asked for only if pretraining met it in several shuffled wordings, however well it is known by heart.",
                "Allen-Zhu and Li 2023 (Physics of Language Models 3.1, 3.2)", 11.3),
    "S1": Entry("s01_template", "A template, a loss on the answers, an end", "對話模板、只學答案、學會停",
                "A base model becomes one that answers and stops by a template with roles, a loss on the answers, and a trained end token.",
                "Touvron et al. 2023 (Llama 2), section 3.1", 0.4),
    "S2": Entry("s02_initialisation", "Initialisation is the key", "初始參數是關鍵",
                "A few examples show a pretrained model what is wanted; from random weights they teach nothing but their own answers.",
                "Hu et al. 2021, table 2, for LoRA", 0.4),
    "S10": Entry("s10_rules", "Three rules instead of training", "三條規則，不必訓練",
                 "A base model follows instructions under three rules on its logits, or after a few examples in its context.",
                 "Hewitt et al. 2024, section 5.2; Lin et al. 2023 (URIAL)", 1.2),
    "S11": Entry("s11_shift", "Alignment changes few tokens", "對齊只改了幾個詞",
                 "Fine-tuning changes few tokens of an answer: how it begins, and that it ends; what it says is the base's own.",
                 "Lin et al. 2023, section 2", 2.2),
    "S12": Entry("s12_categories", "Teaching what it does not know", "教它不知道的事",
                 "Fine-tuned on facts it does not know, a model learns them slowly and loses what it knew; imitation gives style, not facts.",
                 "Gekhman et al. 2024, table 2; Ren et al. 2024; Gudibande et al. 2023", 1.1),
    "S13": Entry("s13_embers", "Embers of autoregression", "預訓練的餘燼",
                 "A model undoes the ciphers that its pretraining text was full of, and not the equally easy ones it seldom read.",
                 "McCoy et al. 2023", 1.9),
    "R2": Entry("r02_reward_model", "A reward model from comparisons", "由比較學出來的獎勵模型",
                "A reward model learns a taste from comparisons; pretraining pays, and best-of-n by it wins most of what the taste would.",
                "Ouyang et al. 2022, section 3.5; Nakano et al. 2021", 1.5),
    "R3": Entry("r03_methods", "Learning from one's own scored answers", "從自己被評分的答案中學習",
                "REINFORCE, actor-critic, PPO, GRPO and RLOO all raise a model by its own answers; a baseline calms the gradient.",
                "Williams 1992; Schulman et al. 2017; Shao et al. 2024", 3.0),
    "R4": Entry("r04_preferences", "Preferences without a reward model", "不用獎勵模型，直接學偏好",
                "Preferences teach a policy without a reward model: DPO from pairs, KTO from thumbs alone.",
                "Rafailov et al. 2023; Ethayarajh et al. 2024", 1.3),
    "R5": Entry("r05_overoptimise", "Over-optimising a reward model", "過度最佳化獎勵模型",
                "Optimising a reward model first helps, then harms; more votes and a price on KL put the harm off.",
                "Gao et al. 2023, figures 1 and 3", 8.0),
    "R7": Entry("r07_mixtures", "Helpful against safe", "有用與安全",
                "Helpfulness and safety pull apart; two reward models combined piecewise beat every weighted sum of them.",
                "Touvron et al. 2023 (Llama 2), section 3.2.3", 7.0),
    "R9": Entry("r09_credit", "Credit: token by token, or the answer as a whole", "逐字計分，還是看整個答案",
                "A token loss prefers what looks alike, a reward what means the same; one's own method is learned better than a teacher's.",
                "Uesato et al. 2022; Lightman et al. 2023; Yuan et al. 2023 (RFT)", 3.4),
}
# fmt: on


def entry(name: str) -> Entry:
    """The entry called `name`, whatever its case. Raises ValueError naming those there are."""
    found = LABS.get(name.upper())
    if found is None:
        raise ValueError(f"no lab {name!r}: there are {', '.join(LABS)} (`fledge lab list`)")
    return found
