"""A float32 NumPy forward over exported folders, with a cache that follows edits of the sequence.

It shares nothing with the JAX model but the files, so a wrong export shows in the evaluation.
"""

import json
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives NumPy the bfloat16 that the files hold)
import numpy as np
from safetensors.numpy import load_file


class Llama:
    """One sequence of one model; `logits_after` recomputes only what changed."""

    def __init__(self, folder):
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.astype(np.float32) for name, tensor in stored.items()}
        self.head_dim = self.config["head_dim"]
        self.kv_heads = self.config["num_key_value_heads"]
        context_len = self.config["max_position_embeddings"]
        inv_freq = self.config["rope_theta"] ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.arange(context_len)[:, None] * inv_freq
        self.cos, self.sin = np.cos(angles).astype("f4"), np.sin(angles).astype("f4")
        layers = self.config["num_hidden_layers"]
        self.keys = np.zeros((layers, self.kv_heads, context_len, self.head_dim), np.float32)
        self.values = np.zeros_like(self.keys)
        self.ids = []

    def logits_after(self, ids):
        """Logits `[V]` that follow `ids`."""
        return self.logits(ids, keep_max=len(ids) - 1)[-1]

    def logits(self, ids, keep_max=0):
        """Logits of every token of `ids` beyond the cached prefix, which is at most `keep_max`."""
        shared = 0
        limit = min(keep_max, len(self.ids))
        while shared < limit and self.ids[shared] == ids[shared]:
            shared += 1
        self.ids = list(ids)
        return self._forward(np.asarray(ids[shared:]), shared)

    def greedy(self, ids, is_done, limit):
        """Greedy ids after `ids` until `is_done(new ids)` or `limit`; ties go to the lower id."""
        new = []
        while len(new) < limit and not (new and is_done(new)):
            new.append(int(self.logits_after(ids + new).argmax()))
        return new

    def _forward(self, ids, start):
        embedding = self.weights["model.embed_tokens.weight"]
        x = embedding[ids]
        for layer in range(self.config["num_hidden_layers"]):
            x = x + self._attention(layer, x, start)
            x = x + self._feed_forward(layer, x)
        return self._norm("model.norm", x) @ embedding.T

    def _norm(self, name, x):
        mean_square = np.mean(x * x, -1, keepdims=True)
        scale = np.sqrt(mean_square + np.float32(self.config["rms_norm_eps"]))
        return x / scale * self.weights[f"{name}.weight"]

    def _linear(self, layer, name, x):
        return x @ self.weights[f"model.layers.{layer}.{name}.weight"].T

    def _attention(self, layer, x, start):
        end = start + len(x)
        h = self._norm(f"model.layers.{layer}.input_layernorm", x)
        q, k, v = (
            self._linear(layer, f"self_attn.{part}_proj", h)
            .reshape(len(x), -1, self.head_dim)
            .swapaxes(0, 1)
            for part in "qkv"
        )
        self.keys[layer, :, start:end] = self._rotate(k, start, end)
        self.values[layer, :, start:end] = v
        q = self._rotate(q, start, end).reshape(self.kv_heads, -1, len(x), self.head_dim)
        keys, values = self.keys[layer, :, None, :end], self.values[layer, :, None, :end]
        scores = q @ keys.swapaxes(-1, -2) / np.float32(np.sqrt(self.head_dim))
        future = np.arange(end)[None, :] > np.arange(start, end)[:, None]
        scores = np.where(future, np.float32(-np.inf), scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ values
        mixed = mixed.reshape(-1, len(x), self.head_dim).swapaxes(0, 1).reshape(len(x), -1)
        return self._linear(layer, "self_attn.o_proj", mixed)

    def _rotate(self, x, start, end):
        """Half-split rotary embedding of `[heads, T, D]`."""
        cos, sin = self.cos[start:end], self.sin[start:end]
        first, second = np.split(x, 2, -1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def _feed_forward(self, layer, x):
        h = self._norm(f"model.layers.{layer}.post_attention_layernorm", x)
        gate = self._linear(layer, "mlp.gate_proj", h)
        gated = gate / (1 + np.exp(-gate)) * self._linear(layer, "mlp.up_proj", h)
        return self._linear(layer, "mlp.down_proj", gated)
