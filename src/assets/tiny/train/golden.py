"""Reference ids and logits of the pair, for tests of other implementations."""

from dataclasses import replace

import numpy as np

from .evaluate import Pair
from .formats import JUDGE_SUFFIX, STEP_STOP, prompt_text
from .problems import problem_set
from .steps import step_text

GREEDY_LEN, TOP = 32, 5
NOTE = (
    "float32 NumPy forward over the bf16 weights. greedy: first 32 argmax tokens after ids "
    "(generation does not stop at eos). top5_generated: logits that choose greedy[0..2]; "
    "top5_prompt: logits at prompt positions 0..2. Entries are [token id, logit]. "
    "min_top2_margin: smallest gap between the two best logits over the 32 tokens."
)


def golden(folder, seed):
    """The content of `golden.json`."""
    pair = Pair(folder)
    prompts = []
    for note, text in _texts(problem_set(seed, "dev")):
        ids = pair.encode(text)
        if pair.decode(ids) != text:
            raise ValueError(f"the tokenizer does not round-trip {text!r}")
        prompt = {"note": note, "text": text, "ids": ids}
        for role in ("base", "draft"):
            prompt[role] = _entry(pair, getattr(pair, role), ids)
        prompts.append(prompt)
    return {"note": NOTE, "prompts": prompts}


def _texts(problems):
    """`(note, text)` of every prompt."""
    for index in range(5):
        yield f"problem {index}", prompt_text(problems[index].text)
    yield "judge, correct step", _judge_text(problems[5], problems[5].steps[0])
    step = problems[6].steps[0]
    yield "judge, step off by 10", _judge_text(problems[6], replace(step, result=step.result + 10))
    unusual = "Zoë has 7 🍎 and buys 5 more. Wie viele Äpfel — 苹果?"
    yield "utf-8 (quality of the text is not meaningful)", prompt_text(unusual)


def _judge_text(problem, step):
    return prompt_text(problem.text) + step_text(step) + STEP_STOP + JUDGE_SUFFIX


def _entry(pair, model, ids):
    rows = model.logits(ids)
    prompt_top = [_top(row) for row in rows[:3]]
    greedy, generated_top, margin, row = [], [], np.inf, rows[-1]
    for _ in range(GREEDY_LEN):
        second, best = np.sort(row)[-2:]
        margin = min(margin, float(best - second))
        generated_top.append(_top(row))
        greedy.append(int(row.argmax()))
        row = model.logits_after(ids + greedy)
    return {
        "greedy": greedy,
        "greedy_text": pair.decode(greedy),
        "top5_generated": generated_top[:3],
        "top5_prompt": prompt_top,
        "min_top2_margin": round(margin, 4),
    }


def _top(row):
    return [[int(token), round(float(row[token]), 4)] for token in np.argsort(-row)[:TOP]]
