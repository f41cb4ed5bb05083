"""Every fixed text: special tokens, instruction, chat template, judge turn.

The runtime sees the same strings through `tokenizer_config.json` and `judge.json`; both are
written from here, so training and inference cannot drift apart.
"""

import re

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, THINK_END = "<think>", "</think>"
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END, THINK, THINK_END]

STEP_STOP = "\n\n"
INSTRUCTION = "Reason step by step, separate the steps with blank lines and box the answer."
JUDGE_PROMPT = (
    "Is the last reasoning step correct? Score it with one digit from 0 (wrong) to 9 (right)."
)
JUDGE_PREFILL = "<think>I think the quality score is: "
JUDGE_SUFFIX = (
    f"{TURN_END}\n{TURN_START}user\n{JUDGE_PROMPT}{TURN_END}\n"
    f"{TURN_START}assistant\n{JUDGE_PREFILL}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


def user_message(problem_text):
    """What the user says: the problem and how to answer it."""
    return f"{problem_text} {INSTRUCTION}"


def prompt_text(problem_text):
    """The rendered chat up to and including the generation prompt."""
    return (
        f"{TURN_START}user\n{user_message(problem_text)}{TURN_END}\n"
        f"{TURN_START}assistant\n{THINK}\n"
    )


def closing_text(answer):
    """What follows the last step."""
    return f"{THINK_END}{STEP_STOP}The answer is \\boxed{{{answer}}}."


def boxed_answer(text):
    """The integer in `\\boxed{}`, or None."""
    found = re.search(r"\\boxed\{(\d+)\}", text)
    return int(found[1]) if found else None
