"""The training loop: AdamW under a warmed-up cosine, and continuations from trained parameters."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .formats import TURN_END
from .model import generate, loss

LOG_EVERY_STEPS = 50
GENERATE_ROWS = 128


def fit(params, config, batches, peak_lr, steps, label):
    """Train on `steps` batches and return the parameters."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak_lr, min(150, steps // 3), steps, peak_lr * 0.03
    )
    is_matrix = {name: value.ndim == 2 for name, value in params.items()}
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=0.05, mask=is_matrix),
    )

    @jax.jit
    def update(params, state, batch):
        value, gradients = jax.value_and_grad(loss)(params, config, batch)
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses, began = optimiser.init(params), [], time.monotonic()
    for step, batch in zip(range(1, steps + 1), batches):
        params, state, value = update(params, state, batch)
        losses.append(value)
        if step % LOG_EVERY_STEPS == 0 or step == steps:
            mean, elapsed = float(np.mean(losses)), time.monotonic() - began
            print(f"{label}: step {step} of {steps}, loss {mean:.4f}, {elapsed:.0f} s", flush=True)
            losses = []
    return params


def continuations(params, config, tokenizer, prompts, temperatures, length, seed):
    """The text that follows each prompt, within `length` tokens in all; special tokens kept."""
    stop = tokenizer.token_to_id(TURN_END)
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    texts = []
    for begin in range(0, len(prompts), GENERATE_ROWS):
        part = encoded[begin : begin + GENERATE_ROWS]
        tokens = np.zeros((GENERATE_ROWS, length), np.int32)
        lengths, heat = np.ones(GENERATE_ROWS, np.int32), np.zeros(GENERATE_ROWS, np.float32)
        for row, ids in enumerate(part):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            heat[row] = temperatures[begin + row]
        key = jax.random.PRNGKey(seed + begin)
        filled = np.asarray(generate(params, config, jnp.asarray(tokens), lengths, heat, key, stop))
        for ids, row in zip(part, filled):
            following = row[len(ids) :].tolist()
            end = following.index(stop) if stop in following else len(following)
            texts.append(tokenizer.decode(following[:end], skip_special_tokens=False))
    return texts
