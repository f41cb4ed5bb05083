#!/usr/bin/env python3
"""Writes llama.cpp's greedy texts, which the runtime's own are compared with.

    pip install llama-cpp-python jinja2
    python benches/peers/greedy.py MODEL.gguf ... --out tests/fixtures/llama_cpp

One `<model>.json` a file: for each prompt of `prompts.json` its rendered text and ids, the next
64 greedy ids, and at each step the gap between the two best logits (in nat, since both share one
normaliser) with the second-best id. Where the runtime chooses another token, the gap shows
whether that is a near-tie; text after the first difference is not comparable. Generation goes on
past an end-of-turn token, whose index is `ends_at`. `widened` holds the 64 greedy ids after the
same weights in f32: no activation is rounded to int8 there. That copy of the file is temporary,
and up to eight times as large. Keys and values are f32 throughout: their storage is not what is
compared.
"""

import argparse
import hashlib
import json
import re
import tempfile
from pathlib import Path

import jinja2.ext
import jinja2.sandbox
import numpy as np

import llama

GENERATOR = "benches/peers/greedy.py"
PROMPTS = Path(__file__).with_name("prompts.json")
GREEDY_LEN = 64
CONTEXT_LEN = 1024


def render(template, message):
    """One user message as the model's own chat template renders it, with generation prompt."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    messages = [{"role": "user", "content": message}]
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)


def greedy(session, ids):
    """`(greedy ids, gaps, second-best ids)` after `ids`; ties go to the lower id."""
    session.truncate(0)
    session.decode(ids)
    chosen, gaps, seconds = [], [], []
    for _ in range(GREEDY_LEN):
        logits = session.logits()
        best = int(logits.argmax())
        top, logits[best] = logits[best], -np.inf
        second = int(logits.argmax())
        chosen.append(best)
        seconds.append(second)
        gaps.append(round(float(top - logits[second]), 4))
        session.decode([best])
    return chosen, gaps, seconds


def session_of(model, threads):
    """A session that keeps keys and values in f32."""
    return llama.Session(model, CONTEXT_LEN, threads, f32_kv=True)


def widened_texts(path, threads, prompts):
    """Greedy ids after each of `prompts`, with the weights of `path` in f32."""
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder, path.name)
        llama.widen(path, wide, threads)
        session = session_of(llama.Model(wide), threads)
        return [greedy(session, ids)[0] for ids in prompts]


def reference(path, threads):
    """The reference file of one model, as a dictionary."""
    model = llama.Model(path)
    session = session_of(model, threads)
    entries = []
    for prompt in json.loads(PROMPTS.read_text())["prompts"]:
        chat = prompt["kind"] == "chat"
        text = render(model.chat_template(), prompt["text"]) if chat else prompt["text"]
        ids = model.tokenize(text)
        chosen, gaps, seconds = greedy(session, ids)
        ends = [i for i, token in enumerate(chosen) if model.ends_generation(token)]
        entries.append({
            "name": prompt["name"],
            "text": text,
            "ids": ids,
            "greedy": chosen,
            "gaps": gaps,
            "second": seconds,
            "ends_at": ends[0] if ends else None,
        })
    texts = widened_texts(path, threads, [entry["ids"] for entry in entries])
    for entry, text in zip(entries, texts):
        entry["widened"] = text
    return {
        "generator": GENERATOR,
        "engine": llama.version(),
        "settings": "f32 KV, flash attention off, one batch per prompt, then one token at a time",
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "prompts": entries,
    }


def to_json(value):
    """Indented JSON with each list of numbers on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\d\s,.]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-t", "--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.models:
        result = reference(path, args.threads)
        (args.out / f"{path.stem}.json").write_text(to_json(result))
        least = ", ".join(f"{min(entry['gaps']):.3f}" for entry in result["prompts"])
        print(f"{path.name}: {len(result['prompts'])} prompts, least gaps {least}")


if __name__ == "__main__":
    main()
