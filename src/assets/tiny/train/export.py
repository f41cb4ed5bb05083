"""Writes the pair as two Hugging Face folders with `judge.json` and the problem files."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from . import formats
from .model import EPS, HEAD_DIM, THETA
from .problems import KEPT_BACK, problem_set
from .steps import step_text
from .tokenizer import VOCAB

CONTEXT_LEN = 1024
# The read-out and threshold that suit the published weights; another pair needs its own sweep.
SCORE, THRESHOLD = "mean", 5.5
JUDGE_NOTE = (
    "After the last step (its blank line included) append judge_suffix; the next token is one "
    "digit. A user message is '<problem> <instruction>'. A bare '</think>' followed by a blank "
    "line is a step too and is judged like one."
)


def write_json(path, value):
    """Indented JSON in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export_model(folder, config, params, tokenizer):
    """One model: weights in bf16, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: np.ascontiguousarray(np.asarray(value).astype(ml_dtypes.bfloat16))
        for name, value in params.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model_config(config))
    write_json(folder / "generation_config.json", GENERATION_CONFIG)
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    tokenizer.save(str(folder / "tokenizer.json"))


def export_shared(folder, seed, tokenizer):
    """`judge.json` and the problems that training never saw."""
    write_json(folder / "judge.json", judge_config(tokenizer))
    for name in KEPT_BACK:
        with open(folder / f"problems_{name}.jsonl", "w", encoding="utf-8") as file:
            for problem in problem_set(seed, name):
                file.write(json.dumps(problem_entry(problem)) + "\n")


def problem_entry(problem):
    """One line of a problem file."""
    return {
        "problem": problem.text,
        "answer": problem.answer,
        "steps": [step_text(step) for step in problem.steps],
        "chain": [[step.a, step.op, step.b, step.result] for step in problem.steps],
    }


GENERATION_CONFIG = {
    "bos_token_id": 0,
    "eos_token_id": [2, 0],
    "pad_token_id": 0,
    "do_sample": False,
    "max_new_tokens": 400,
}


def model_config(config):
    """`config.json` of a `LlamaForCausalLM`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_LEN,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
    }


def tokenizer_config():
    """`tokenizer_config.json`, with the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_LEN,
        "bos_token": formats.END_OF_TEXT,
        "eos_token": formats.TURN_END,
        "pad_token": formats.END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": formats.SPECIAL_TOKENS[1:],
        "added_tokens_decoder": {
            str(index): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, token in enumerate(formats.SPECIAL_TOKENS)
        },
        "chat_template": formats.CHAT_TEMPLATE,
    }


def judge_config(tokenizer):
    """`judge.json`: the judge turn and how its score is read."""
    return {
        "instruction": formats.INSTRUCTION,
        "judge_prompt": formats.JUDGE_PROMPT,
        "assistant_prefill": formats.JUDGE_PREFILL,
        "judge_suffix": formats.JUDGE_SUFFIX,
        "threshold": THRESHOLD,
        "score_min": 0,
        "score_max": 9,
        "digit_token_ids": [tokenizer.encode(str(digit)).ids[0] for digit in range(10)],
        "step_stop": formats.STEP_STOP,
        "end_of_thinking": formats.THINK_END,
        "note": JUDGE_NOTE,
        "score": SCORE,
    }
