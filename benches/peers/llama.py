"""llama.cpp behind four verbs: load, decode, read logits, forget.

A thin layer over the C API as `llama-cpp-python` exposes it, so that the measurements and the
reference texts use exactly what the library does, with nothing of the Python engine's sampling
or caching in between. The invariant: a `Session` holds one sequence; `decode` appends to it and
`truncate` shortens it. Read `llama_bench.py` and `greedy.py` next.
"""

import ctypes

import llama_cpp
import numpy as np

FLASH_ATTENTION = {
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}


@llama_cpp.llama_log_callback
def _silent(_level, _text, _user_data):
    """Start-up chatter would drown the tables; failures arrive as exceptions."""


llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))


def version():
    """The binding's version, the ggml it carries, and what that was built for."""
    library = llama_cpp.llama_cpp._lib  # the only handle that already has the library loaded
    names = {}
    for function in (library.ggml_version, library.ggml_commit):
        function.restype = ctypes.c_char_p
        names[function.__name__] = function().decode()
    built = llama_cpp.llama_print_system_info().decode().split(":", 1)[-1]
    features = [part.split("=")[0].strip() for part in built.split("|") if "= 1" in part]
    return (
        f"llama-cpp-python {llama_cpp.__version__}, ggml {names['ggml_version']} "
        f"({names['ggml_commit']}), {' '.join(features)}"
    )


class Model:
    """A GGUF file on the CPU; several sessions may share it."""

    def __init__(self, path):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def chat_template(self):
        """The Jinja source that the file carries."""
        return llama_cpp.llama_model_chat_template(self.handle, None).decode()

    def tokenize(self, text):
        """Ids of `text`; special tokens are recognised, none is added."""
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 1))()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), False, True)
        return ids[:count]

    def ends_generation(self, token):
        """Whether `token` is an end of turn or of text."""
        return llama_cpp.llama_vocab_is_eog(self.vocab, token)


def widen(path, to, threads):
    """Write `path` to `to` with every weight as f32, exactly the value its block stands for.

    Weights in f32 meet activations in f32: the only way to have llama.cpp round none of them.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(path).encode(), str(to).encode(), params) != 0:
        raise RuntimeError(f"llama.cpp cannot widen {path}")


class Session:
    """One sequence of one model, or several, with their KV caches, by default in f16.

    `decode`, `truncate` and `length` are about the first sequence; the methods that name a sequence,
    and `decode_each`, keep `lengths`.
    """

    def __init__(
        self, model, context_len, threads, flash_attention="off", f32_kv=False, sequences=1
    ):
        self.model = model
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context_len * sequences
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        if f32_kv:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RuntimeError(f"llama.cpp cannot open a context of {context_len} tokens")
        self.batch_max = llama_cpp.llama_n_batch(self.handle)
        self.length = 0
        self.lengths = [0] * sequences
        self.batch = llama_cpp.llama_batch_init(max(sequences, 512), 0, 1)

    def _decode_batch(self, rows):
        """Compute `rows`, triples of token, sequence and whether its logits are wanted."""
        self.batch.n_tokens = len(rows)
        for i, (token, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = self.lengths[sequence]
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
            self.lengths[sequence] += 1
        status = llama_cpp.llama_decode(self.handle, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode of {len(rows)} rows returned {status}")
        llama_cpp.llama_synchronize(self.handle)

    def decode_in(self, sequence, ids):
        """Append `ids` to one of several sequences."""
        for begin in range(0, len(ids), 512):
            self._decode_batch([(token, sequence, False) for token in ids[begin : begin + 512]])

    def decode_each(self, ids):
        """Append one token to each of the first sequences, all in one pass, with logits."""
        self._decode_batch([(token, sequence, True) for sequence, token in enumerate(ids)])

    def truncate_to(self, sequence, length):
        """Forget everything of one of several sequences from position `length` on."""
        memory = llama_cpp.llama_get_memory(self.handle)
        if not llama_cpp.llama_memory_seq_rm(memory, sequence, length, -1):
            raise RuntimeError(f"llama.cpp cannot truncate sequence {sequence} to {length}")
        self.lengths[sequence] = length

    def decode(self, ids):
        """Append `ids` to the sequence and wait until they are computed."""
        for begin in range(0, len(ids), self.batch_max):
            part = ids[begin : begin + self.batch_max]
            array = (llama_cpp.llama_token * len(part))(*part)
            status = llama_cpp.llama_decode(
                self.handle, llama_cpp.llama_batch_get_one(array, len(part))
            )
            if status != 0:
                raise RuntimeError(f"llama_decode of {len(part)} tokens returned {status}")
        llama_cpp.llama_synchronize(self.handle)
        self.length += len(ids)

    def logits(self):
        """Logits `[V]` after the last decoded token, copied."""
        row = llama_cpp.llama_get_logits_ith(self.handle, -1)
        return np.ctypeslib.as_array(row, shape=(self.model.vocab_size,)).copy()

    def truncate(self, length):
        """Forget everything from position `length` on."""
        memory = llama_cpp.llama_get_memory(self.handle)
        if not llama_cpp.llama_memory_seq_rm(memory, 0, length, -1):
            raise RuntimeError(f"llama.cpp cannot truncate to {length} tokens")
        self.length = length
