"""The Llama architecture in JAX: the training loss and batched generation.

Parameters carry their Hugging Face names and `[out, in]` shapes from the start, so export is a
cast. Shapes: B rows, T tokens, H query heads, G key/value heads, D head dimension, V vocab.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from .tokenizer import VOCAB

HEAD_DIM, EPS, THETA = 32, 1e-5, 10000.0
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of one model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int


BASE = ModelConfig(hidden=192, layers=6, heads=6, kv_heads=2, ffn=384)
DRAFT = ModelConfig(hidden=128, layers=2, heads=4, kv_heads=2, ffn=256)


def init_params(config, seed):
    """Random parameters; matrices that write to the residual are scaled down with depth."""
    rng = np.random.default_rng(seed)
    hidden, residual = config.hidden, 1 / np.sqrt(2 * config.layers)
    q_len, kv_len = config.heads * HEAD_DIM, config.kv_heads * HEAD_DIM
    matrices = {
        "self_attn.q_proj": (q_len, hidden, 1.0),
        "self_attn.k_proj": (kv_len, hidden, 1.0),
        "self_attn.v_proj": (kv_len, hidden, 1.0),
        "self_attn.o_proj": (hidden, q_len, residual),
        "mlp.gate_proj": (config.ffn, hidden, 1.0),
        "mlp.up_proj": (config.ffn, hidden, 1.0),
        "mlp.down_proj": (hidden, config.ffn, residual),
    }
    params = {EMBEDDING: rng.standard_normal((VOCAB, hidden)) * 0.05}
    params["model.norm.weight"] = np.ones(hidden)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns, gain) in matrices.items():
            matrix = rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)
            params[f"{prefix}{name}.weight"] = matrix
        for norm in ("input_layernorm", "post_attention_layernorm"):
            params[f"{prefix}{norm}.weight"] = np.ones(hidden)
    return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}


def _rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * weight


def _rotate(x, positions):
    """Half-split rotary embedding of `[B, T, heads, D]`."""
    inv_freq = THETA ** (-np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    angles = positions[..., None, None] * inv_freq
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _forward(params, config, tokens, positions, attend):
    """Logits `[B, T, V]`; `attend(layer, q, k, v)` mixes `[B, T, H or G, D]` over positions."""
    batch, length = tokens.shape
    x = params[EMBEDDING][tokens]
    for layer in range(config.layers):

        def project(name, x):
            return x @ params[f"model.layers.{layer}.{name}.weight"].T

        def norm(name, x):
            return _rms_norm(x, params[f"model.layers.{layer}.{name}.weight"])

        def heads(name, x):
            return project(name, x).reshape(batch, length, -1, HEAD_DIM)

        h = norm("input_layernorm", x)
        q = _rotate(heads("self_attn.q_proj", h), positions)
        k = _rotate(heads("self_attn.k_proj", h), positions)
        mixed = attend(layer, q, k, heads("self_attn.v_proj", h))
        x = x + project("self_attn.o_proj", mixed.reshape(batch, length, -1))
        h = norm("post_attention_layernorm", x)
        gated = jax.nn.silu(project("mlp.gate_proj", h)) * project("mlp.up_proj", h)
        x = x + project("mlp.down_proj", gated)
    return _rms_norm(x, params["model.norm.weight"]) @ params[EMBEDDING].T


def _visible(batch):
    """Which token sees which, `[B, 1, T, T]`: see `packing`."""
    index = jnp.arange(batch.token.shape[1])
    earlier = index[:, None] >= index[None, :]
    own_segment = batch.segment[:, :, None] == batch.segment[:, None, :]
    own_branch = batch.branch[:, :, None] == batch.branch[:, None, :]
    on_main = batch.branch[:, None, :] == 0
    before_fork = on_main & (batch.position[:, None, :] < batch.fork[:, :, None])
    return (earlier & own_segment & (own_branch | before_fork))[:, None]


def _query_blocks(length):
    """`(begin, end)` of blocks of queries; keys after `end` are out of sight and skipped."""
    return [(begin, min(begin + 128, length)) for begin in range(0, length, 128)]


def loss(params, config, batch):
    """Weighted mean negative log-likelihood of the targets."""
    mask = _visible(batch)

    def attend(_layer, q, k, v):
        blocks = [
            jax.nn.dot_product_attention(
                q[:, begin:end], k[:, :end], v[:, :end], mask=mask[:, :, begin:end, :end]
            )
            for begin, end in _query_blocks(q.shape[1])
        ]
        return jnp.concatenate(blocks, axis=1)

    logits = _forward(params, config, batch.token, batch.position, attend)
    chosen = jnp.take_along_axis(logits, batch.target[..., None], -1)[..., 0]
    nll = jax.nn.logsumexp(logits, -1) - chosen
    return (nll * batch.weight).sum() / batch.weight.sum()


@functools.partial(jax.jit, static_argnames="config")
def generate(params, config, tokens, lengths, temperatures, key, stop):
    """Continue right-padded prompts `[B, T]` until they are full or `stop` was drawn.

    Temperature 0 is greedy. The prompt goes through the same one-token steps as the rest: at this
    size that costs little, and one compiled loop serves all lengths.
    """
    rows, length = tokens.shape
    cache_shape = (config.layers, rows, length, config.kv_heads, HEAD_DIM)

    def step(carry, at):
        tokens, keys, values, done, key = carry

        def attend(layer, q, k, v):
            nonlocal keys, values
            keys = jax.lax.dynamic_update_slice(keys, k[None], (layer, 0, at, 0, 0))
            values = jax.lax.dynamic_update_slice(values, v[None], (layer, 0, at, 0, 0))
            mask = (jnp.arange(length) <= at)[None, None, None, :]
            return jax.nn.dot_product_attention(q, keys[layer], values[layer], mask=mask)

        position = jnp.full((rows, 1), at)
        logits = _forward(params, config, tokens[:, at][:, None], position, attend)[:, 0]
        key, draw = jax.random.split(key)
        noise = jax.random.gumbel(draw, logits.shape) * temperatures[:, None]
        drawn = jnp.where(done, stop, jnp.argmax(logits + noise, -1).astype(tokens.dtype))
        free = at + 1 >= lengths
        following = jnp.where(free, drawn, tokens[:, at + 1])
        tokens = jax.lax.dynamic_update_slice(tokens, following[:, None], (0, at + 1))
        return (tokens, keys, values, done | (free & (drawn == stop)), key), None

    start = (tokens, jnp.zeros(cache_shape), jnp.zeros(cache_shape), jnp.zeros(rows, bool), key)
    (tokens, *_), _ = jax.lax.scan(step, start, jnp.arange(length - 1))
    return tokens
