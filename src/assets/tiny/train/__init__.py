"""Trains and measures the embedded pair: two tiny chat models for arithmetic word problems.

Run from the folder above: `python -m train all --seed 1234 --out DIR`. Data flows through
`problems` and `steps` (what is learnt), `tokenizer`, `packing` (rows of tokens), `model` and
`fit` (JAX), `curriculum` (which phases, in which order) to `export`; `forward`, `evaluate` and
`golden` read only exported files, in NumPy. The invariant: everything follows from the seed, and
with the published seed the tokenizer and the problem files come out byte for byte.
"""
