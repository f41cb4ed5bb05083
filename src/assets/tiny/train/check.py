"""Whether a pair's files are what this code makes of the seed; trained weights are not compared."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from .export import judge_config, problem_entry
from .golden import golden
from .problems import problem_set
from .tokenizer import train_tokenizer

LOGIT_TOLERANCE = 1e-3


def differences(folder, seed):
    """One line for each file that differs."""
    folder = Path(folder)
    stored_tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
    found = []
    if train_tokenizer(seed).to_str() != stored_tokenizer.to_str():
        found.append("base/tokenizer.json differs from the seed's tokenizer")
    if json.loads((folder / "judge.json").read_text()) != judge_config(stored_tokenizer):
        found.append("judge.json differs from formats.py and export.py")
    stored = [json.loads(line) for line in open(folder / "problems_dev.jsonl", encoding="utf-8")]
    if stored != [problem_entry(problem) for problem in problem_set(seed, "dev")]:
        found.append("problems_dev.jsonl differs from the seed's problems")
    made = golden(folder, seed)["prompts"]
    kept = json.loads((folder / "golden.json").read_text())["prompts"]
    if len(made) != len(kept) or not all(map(_agree, made, kept)):
        found.append("golden.json differs from the NumPy forward over the weights")
    return found


def _agree(made, kept):
    """Texts and ids are equal, logits within the tolerance."""
    if made["ids"] != kept["ids"]:
        return False
    for role in ("base", "draft"):
        if made[role]["greedy"] != kept[role]["greedy"]:
            return False
        for rows in ("top5_generated", "top5_prompt"):
            for row, other in zip(made[role][rows], kept[role][rows], strict=True):
                logits = zip(sorted(row), sorted(other), strict=True)
                if any(a != b or abs(x - y) > LOGIT_TOLERANCE for (a, x), (b, y) in logits):
                    return False
    return True
