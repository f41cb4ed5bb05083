"""The pair's shared tokenizer: a byte-level BPE of 576 tokens trained on generated problems.

Digits stand alone, the rest is split as Qwen2 splits, and `.\\n\\n` becomes one token, so a step
ends with a whole token.
"""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .builder import WIDE
from .formats import JUDGE_PREFILL, JUDGE_PROMPT, SPECIAL_TOKENS, THINK, THINK_END, user_message
from .problems import generate
from .steps import solution_text

VOCAB = 576
CORPUS_SIZE = 6000
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(seed):
    """The tokenizer of a seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return tokenizer


def _corpus(seed):
    """Problems and solutions without special tokens; every second time a judge turn."""
    rng = random.Random(f"{seed}-tok")
    for index in range(CORPUS_SIZE):
        problem = generate(rng, WIDE)
        yield user_message(problem.text)
        yield from solution_text(problem).replace(THINK, "").split(THINK_END)
        if index % 2 == 0:
            yield "user\n" + JUDGE_PROMPT
            yield "assistant\n" + JUDGE_PREFILL.removeprefix(THINK)
