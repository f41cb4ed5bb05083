#!/usr/bin/env python3
"""Measures forerun and llama.cpp on the same file, the same threads, in one run.

    pip install llama-cpp-python
    cargo build --release
    python benches/peers/llama_bench.py -m MODEL.gguf -p 16,32,128 -n 32 -d 0,512 -r 5

A row is `pp N` (one forward pass over N tokens, or several of the batch size), `tg N` (N tokens
one at a time) or `tg N xS` (S sequences side by side, one token of each a pass, every token
counted, as llama-batched-bench counts) at a depth: that many tokens are in the KV cache already and are not timed. The
engines take turns within each repetition, because clocks and neighbours drift; the ratio of a row
is taken within a repetition, and its median is given with the least and the greatest. Of llama.cpp
the better of flash attention on and off counts, row by row. `--only llama` needs no forerun
binary; with it the table has no ratio.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import llama

ROOT = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """What is timed: a prompt or a generation, never both."""

    prompt_len: int
    generate_len: int
    depth: int
    sequences: int = 1

    def name(self):
        """The row as llama-bench writes it."""
        kind = f"pp{self.prompt_len}" if self.prompt_len else f"tg{self.generate_len}"
        kind += f" x{self.sequences}" if self.sequences > 1 else ""
        return f"{kind} @ d{self.depth}" if self.depth else kind

    def token_count(self):
        """Tokens computed while the clock runs."""
        return (self.prompt_len or self.generate_len) * self.sequences

    def sequence_len(self):
        """Tokens of each sequence at the end."""
        return self.depth + (self.prompt_len or self.generate_len)


def rows_of(args):
    """Every asked combination, generations after prompts, as `forerun bench` orders them."""
    prompts = [Row(p, 0, d) for d in args.depths for p in args.prompts if p]
    generations = [
        Row(0, n, d, s)
        for d in args.depths
        for s in args.sequences
        for n in args.generations
        if n
    ]
    return prompts + generations


class LlamaCpp:
    """llama.cpp with one session per flash-attention setting over shared weights."""

    def __init__(self, path, rows, threads):
        model = llama.Model(path)
        context_len = max(row.sequence_len() for row in rows) + 1
        sequences = max(row.sequences for row in rows)
        self.sessions = {
            setting: llama.Session(model, context_len, threads, setting)
            for setting in llama.FLASH_ATTENTION
        }
        # A session of several sequences holds its cache apart: one sequence alone is measured
        # without it.
        self.many = {
            setting: llama.Session(model, context_len, threads, setting, sequences=sequences)
            for setting in (llama.FLASH_ATTENTION if sequences > 1 else [])
        }
        draw = random.Random(1)
        # The lower half of a vocabulary holds ordinary tokens; special ones come last.
        self.ids = [draw.randrange(256, model.vocab_size // 2) for _ in range(context_len)]

    def measure(self, rows):
        """Tokens a second by setting and row, each row timed once."""
        return {
            setting: {
                row: self._rate_of_many(self.many[setting], row)
                if row.sequences > 1
                else self._rate(session, row)
                for row in rows
            }
            for setting, session in self.sessions.items()
        }

    def _rate_of_many(self, session, row):
        for sequence in range(row.sequences):
            session.truncate_to(sequence, min(session.lengths[sequence], row.depth))
            missing = self.ids[session.lengths[sequence] : row.depth]
            if missing:
                session.decode_in(sequence, missing)
        begin = time.perf_counter()
        for token in self.ids[row.depth : row.sequence_len()]:
            session.decode_each([token] * row.sequences)
        return row.token_count() / (time.perf_counter() - begin)

    def _rate(self, session, row):
        # Whatever a session holds is a prefix of `ids`, so only the missing depth is computed.
        session.truncate(min(session.length, row.depth))
        session.decode(self.ids[session.length : row.depth])
        timed = self.ids[row.depth : row.depth + row.token_count()]
        steps = [timed] if row.prompt_len else [[token] for token in timed]
        begin = time.perf_counter()
        for step in steps:
            session.decode(step)
        return row.token_count() / (time.perf_counter() - begin)


class Forerun:
    """The runtime's own `bench` command."""

    def __init__(self, binary, path, args):
        if not binary.exists():
            raise SystemExit(f"{binary} does not exist: cargo build --release, or --only llama")
        self.command = [str(binary), "bench", "-m", str(path), "-o", "json", "-r", "1"]
        self.command += ["-p", join(args.prompts), "-n", join(args.generations)]
        self.command += ["-d", join(args.depths), "-t", str(args.threads)]
        self.command += ["-s", join(args.sequences)]

    def measure(self, rows):
        """Tokens a second by row, each row timed once."""
        done = subprocess.run(self.command, stdout=subprocess.PIPE, text=True, check=True)
        rates = {
            Row(*(entry[f"n_{key}"] for key in ("prompt", "gen", "depth", "sequences"))): entry[
                "avg_ts"
            ]
            for entry in json.loads(done.stdout)
        }
        return {row: rates[row] for row in rows}

    def version(self):
        """The first line of `--version`."""
        command = [self.command[0], "--version"]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def join(numbers):
    """`[16, 32]` as the command line writes it; an empty list is skipped by `0`."""
    return ",".join(map(str, numbers)) or "0"


def measure_all(args, rows, peer, forerun):
    """`{engine: {row: [tokens a second, one per repetition]}}`, engines taking turns."""
    engines = [f"llama.cpp fa {setting}" for setting in llama.FLASH_ATTENTION] if peer else []
    engines += ["forerun"] if forerun else []
    samples = {engine: {row: [] for row in rows} for engine in engines}
    if peer:
        peer.measure(rows)  # pages the weights in; forerun's bench warms up by itself
    for _ in range(args.repetitions):
        measured = {}
        if peer:
            for setting, rates in peer.measure(rows).items():
                measured[f"llama.cpp fa {setting}"] = rates
        if forerun:
            measured["forerun"] = forerun.measure(rows)
        for engine, rates in measured.items():
            for row, rate in rates.items():
                samples[engine][row].append(rate)
    return samples


def summarise(samples, row):
    """Medians of one row, the better llama.cpp, and the paired ratio with its spread."""
    medians = {engine: statistics.median(of_row[row]) for engine, of_row in samples.items()}
    peers = [engine for engine in medians if engine.startswith("llama.cpp")]
    summary = {"row": row.name(), **row._asdict(), "median_ts": medians}
    summary["samples_ts"] = {engine: of_row[row] for engine, of_row in samples.items()}
    if peers:
        summary["best_peer"] = max(peers, key=medians.get)
    if peers and "forerun" in medians:
        best = samples[summary["best_peer"]][row]
        ratios = [ours / theirs for ours, theirs in zip(samples["forerun"][row], best)]
        summary["ratio"] = statistics.median(ratios)
        summary["ratio_min"], summary["ratio_max"] = min(ratios), max(ratios)
    return summary


def table(summaries):
    """A markdown table of the summaries."""
    engines = list(summaries[0]["median_ts"])
    header = ["row", *[f"{engine} t/s" for engine in engines], "forerun / llama.cpp (least-most)"]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for summary in summaries:
        rates = [f"{summary['median_ts'][engine]:.2f}" for engine in engines]
        ratio = "not measured"
        if "ratio" in summary:
            ratio = "{ratio:.2f} ({ratio_min:.2f}-{ratio_max:.2f})".format(**summary)
        lines.append([summary["row"], *rates, ratio])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cpu_name():
    """The processor's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def numbers(text):
    """`16,32` as `[16, 32]`."""
    return [int(part) for part in text.split(",")]


def parse_args():
    """Command line, with llama-bench's letters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-p", "--prompts", type=numbers, default=[16, 32, 128])
    parser.add_argument("-n", "--generations", type=numbers, default=[32])
    parser.add_argument("-d", "--depths", type=numbers, default=[0, 512])
    parser.add_argument("-s", "--sequences", type=numbers, default=[1])
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--forerun", type=Path, default=ROOT / "target/release/forerun")
    parser.add_argument("--only", choices=["llama", "forerun"], help="measure one engine alone")
    parser.add_argument("--json", type=Path, help="also write every sample here")
    return parser.parse_args()


def main():
    """Measure, print the table, write the JSON."""
    args = parse_args()
    rows = rows_of(args)
    forerun = None if args.only == "llama" else Forerun(args.forerun, args.model, args)
    versions = {"forerun": forerun.version()} if forerun else {}
    peer = None
    if args.only != "forerun":
        peer = LlamaCpp(args.model, rows, args.threads)
        versions["llama.cpp"] = llama.version()
    load_before = os.getloadavg()[0]
    samples = measure_all(args, rows, peer, forerun)
    report = {
        "model": args.model.name,
        "cpu": cpu_name(),
        "threads": args.threads,
        "repetitions": args.repetitions,
        "load_average_before": load_before,
        "versions": versions,
        "rows": [summarise(samples, row) for row in rows],
    }
    print(f"{report['model']}, {report['cpu']}, {args.threads} threads, {args.repetitions} "
          f"repetitions, load average before {load_before:.2f}")
    for engine, version in versions.items():
        print(f"{engine}: {version}")
    print("\n" + table(report["rows"]))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
