"""Two tasks on letters: write a word backwards, and count a letter in it. Words are random, so none is known by heart.

Both ask about spelling, which a tokenizer with many merges hides from a model: `fledge pretrain --vocab_size 264` (only
bytes) shows it every letter, and the lesson's texts let any tokenizer learn how its tokens are spelt.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from fledge.tasks.base import Example, Message, answered, known_split, share_right, user
from fledge.world.dice import Dice
from fledge.world.relations import LANGUAGES

TEST_QUESTIONS, TRAIN_QUESTIONS = 500, 8000
"""Most questions of each split; the test split takes at most a fifth of what there is."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONGEST = 20
_PATIENCE_DRAWS = 3000
"""Short words run out: after so many draws without a new one there are taken to be no more."""
LINES = 5
"""Questions of one plain document."""
_REVERSE = {"en": "reverse {word}:", "zh": "倒寫{word}："}
_COUNT = {"en": "how many {letter} in {word}?", "zh": "{word}有幾個{letter}？"}


class _Words:
    """What both tasks share: which questions there are, and training material made of them. They differ in `ask`."""

    def __init__(self, shortest: int = 3, longest: int = 6, languages: tuple[str, ...] = ("en",), seed: int = 0):
        """Lengths in letters. languages: of the prompts; each question is put in one of them.

        Raises ValueError for lengths outside 2 to 20 or in the wrong order, and for unknown languages.
        """
        if not 2 <= shortest <= longest <= LONGEST:
            raise ValueError(f"lengths {shortest} to {longest}: must be 2 to {LONGEST} letters, the shorter first")
        if not languages or set(languages) - set(LANGUAGES):
            raise ValueError(f"languages = {languages!r}: must be one or more of {', '.join(LANGUAGES)}")
        self.lengths, self.languages, self.seed = (shortest, longest), tuple(languages), seed

    def ask(self, dice: Dice, number: int) -> Example:
        """Draw one question; `number` tells its language."""
        raise NotImplementedError

    @cached_property
    def _splits(self) -> dict[str, list[Example]]:
        """Disjoint by word."""
        dice, found, number, newest = Dice(self.seed, 33), {}, 0, 0
        while len(found) < TEST_QUESTIONS + TRAIN_QUESTIONS and number - newest < _PATIENCE_DRAWS:
            example = self.ask(dice, number)
            if example.meta["word"] not in found:
                found[example.meta["word"]], newest = example, number
            number += 1
        examples = list(found.values())
        test = min(TEST_QUESTIONS, len(examples) // 5)
        return {"test": examples[:test], "train": examples[test:]}

    def examples(self, split: str) -> list[Example]:
        """Up to 8,000 questions for training, up to 500 for tests; no word is in both."""
        return self._splits[known_split(split)]

    def score(self, example: Example, answer: str) -> float:
        """1.0 if the answer is the right one and nothing else but spaces around it; else 0.0."""
        return float(answer.strip() == example.answers[0])

    def texts(self, count: int) -> Iterator[str]:
        """Pages of five questions with their answers, one a line."""
        dice, train = Dice(self.seed, 34), self.examples("train")
        for _ in range(count):
            chosen = (dice.pick(train) for _ in range(LINES))
            yield "\n".join(f"{e.prompt[0]['content']} {e.answers[0]}" for e in chosen)

    def chats(self, count: int, wrong: float = 0.0) -> Iterator[list[Message]]:
        """A question and its answer; the wrong ones are near misses."""
        dice, train = Dice(self.seed, 35), self.examples("train")
        for _ in range(count):
            example = dice.pick(train)
            missed = self.missed(dice, example)
            yield answered(example, missed if dice.chance(wrong) else example.answers[0])

    def missed(self, dice: Dice, example: Example) -> str:
        """A wrong answer such as a learner gives."""
        raise NotImplementedError

    def _example(self, word: str, answer: str, forms: dict[str, str], number: int, kind: str, letter: str) -> Example:
        language = self.languages[number % len(self.languages)]
        prompt = user(forms[language].format(word=word, letter=letter))
        meta = {"word": word}
        return Example(
            id=f"{word}.{language}", prompt=prompt, answers=(answer,), kind=kind, language=language, meta=meta
        )

    def _length(self, dice: Dice) -> int:
        shortest, longest = self.lengths
        return shortest + dice.below(longest - shortest + 1)


class Reverse(_Words):
    """Write a word backwards: "reverse kibano:" is answered by "onabik"."""

    def ask(self, dice: Dice, number: int) -> Example:
        word = "".join(dice.pick(LETTERS) for _ in range(self._length(dice)))
        return self._example(word, word[::-1], _REVERSE, number, "reverse", "")

    def progress(self, example: Example, partial: str) -> float:
        """Share of the letters that are written and right; see `share_right`."""
        return share_right(example, partial)

    def missed(self, dice: Dice, example: Example) -> str:
        """One letter is left out, so that it is wrong for a palindrome too."""
        right, at = example.answers[0], dice.below(len(example.answers[0]))
        return right[:at] + right[at + 1 :]


class CountLetters(_Words):
    """Count a letter: "how many a in bacaba?" is answered by "3". A word has up to three letters, so counts vary."""

    def ask(self, dice: Dice, number: int) -> Example:
        letters = dice.sample(LETTERS, 3)
        word = "".join(dice.pick(letters) for _ in range(self._length(dice)))
        letter = dice.pick(letters)
        return self._example(word, str(word.count(letter)), _COUNT, number, "count", letter)

    def missed(self, dice: Dice, example: Example) -> str:
        """One more or one fewer."""
        right = int(example.answers[0])
        return str(right + 1 if right == 0 or dice.chance(0.5) else right - 1)
