#!/usr/bin/env python3
"""The first day on a GPU, in one command: tests, sanitizer, bandwidth and a pair, as one report.

    python3 benches/first-gpu-day/run.py                 # on the GPU of this machine
    python3 benches/first-gpu-day/run.py --emulated      # the same, tiny, on the software GPU

Needs what a build needs (cargo, an nvcc) and nothing else but Python's standard library. Each step
is a command whose output goes into the report; a step that cannot run here says why, loudly, and
one that fails makes the exit code 1. Under `--emulated` no time is a GPU's, and the report says so
wherever there is one.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Pairs for the end-to-end step, the first that is present.
PAIRS = ["qwq-r1", "qwq-zr1", "skywork-r1", "skywork-zr1", "qwen2.5-coder"]
SANITIZERS = ["memcheck", "initcheck", "racecheck", "synccheck"]
QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
# Tests of the CUDA device that the software GPU gets through in seconds.
QUICK_TESTS = ["an_embedding_is", "queries_keys_and_values"]
NO_TIME = "**Software GPU: no time below is a GPU's.**"
OUTPUT_LINES = 200


class Step:
    """One part of the report."""

    def __init__(self, title):
        self.title, self.state, self.why, self.seconds, self.body = title, "passed", "", 0.0, []

    def line(self):
        seconds = f"{self.seconds:.0f}" if self.seconds else ""
        return f"| {self.title} | {self.state.upper()} | {seconds} | {self.why} |"


class Day:
    def __init__(self, options):
        self.options, self.steps = options, []
        self.env = dict(os.environ, FORERUN_REQUIRE_KERNELS="1")
        for name in ("FORERUN_TEST_GPU", "FORERUN_CUDA_DRIVER"):
            self.env.pop(name, None)
        if not options.emulated:
            self.env["FORERUN_TEST_GPU"] = "1"

    def step(self, title):
        self.steps.append(Step(title))
        print(f"== {title}", file=sys.stderr)
        return self.steps[-1]

    def skip(self, step, why):
        step.state, step.why = "skipped", why
        print(f"SKIPPED: {why}", file=sys.stderr)

    def run(self, step, command, markdown=False, may_fail=False):
        """Runs a command and writes it down; its standard output where it succeeded."""
        shown = shlex.join(str(word) for word in command).replace(str(self.target), "target")
        shown = shown.replace(str(ROOT), ".")
        begun = time.monotonic()
        try:
            done = subprocess.run(
                list(map(str, command)),
                cwd=ROOT,
                env=self.env,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.options.limit_s,
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        except FileNotFoundError:
            code, out, err = 127, "", f"{command[0]}: not found"
        except subprocess.TimeoutExpired as late:
            code, out, err = 124, text(late.stdout), text(late.stderr) + "\ntoo long: ended"
        step.seconds += time.monotonic() - begun
        said, failed = out, code != 0 and not may_fail
        if failed:
            step.state, step.why = "failed", f"exit code {code} of `{shown}`"
        step.body.append(f"`{shown}`\n")
        if markdown and not failed:
            step.body.append(out.strip() + "\n")
            out = ""
        log = "\n".join(part.strip() for part in (out, err) if part.strip())
        if log:
            lines = log.replace(str(self.target), "target").replace(str(ROOT), ".").splitlines()
            dropped = len(lines) - OUTPUT_LINES
            if dropped > 0:
                lines = [f"... {dropped} lines before", *lines[-OUTPUT_LINES:]]
            step.body.append("```text\n" + "\n".join(lines) + "\n```\n")
        return "" if failed else said

    # What the steps share.

    @property
    def target(self):
        """The folder cargo builds into."""
        if not hasattr(self, "_target"):
            command = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
            out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            self._target = Path(json.loads(out.stdout)["target_directory"])
        return self._target

    @property
    def forerun(self):
        return self.target / "release" / "forerun"

    @property
    def device(self):
        """Flags that open the GPU, or the software one."""
        library = self.target / "release" / "libgpu_emulator.so"
        return ["--device", "cuda"] + (["--cuda-driver", library] if self.options.emulated else [])

    # The steps.

    def machine(self):
        step = self.step("Machine and versions")
        step.body.append(f"{platform.platform()}, Python {platform.python_version()}\n")
        for command in (
            ["git", "rev-parse", "HEAD"],
            ["git", "status", "--short"],
            ["rustc", "--version"],
            [os.environ.get("NVCC", "nvcc"), "--version"],
            ["nvidia-smi"],
            ["compute-sanitizer", "--version"],
        ):
            self.run(step, command, may_fail=True)

    def build(self):
        step = self.step("Build")
        self.run(step, ["cargo", "build", "--release"])
        if step.state == "passed":
            self.run(step, [self.forerun, "devices"])
        return step.state == "passed"

    def tests(self):
        step = self.step("Tests of the CUDA device")
        command = ["cargo", "test", "--release", "--test", "cuda"]
        if self.options.emulated:
            command += ["--", *QUICK_TESTS]
        else:
            # One at a time: an engine may take half of the memory.
            command += ["--test", "cuda_calls", "--", "--test-threads=1", "--nocapture"]
        out = self.run(step, command)
        if step.state == "passed" and re.search(r"\b0 passed", out):
            step.state, step.why = "failed", "no test ran"

    def sanitizer(self):
        if self.options.emulated:
            step = self.step("compute-sanitizer")
            return self.skip(step, "the software GPU checks memory and races itself, always")
        if shutil.which("compute-sanitizer") is None:
            return self.skip(self.step("compute-sanitizer"), "not installed: no kernel was checked")
        short = [self.forerun, "run", *self.device, "--enforce-eager", "--pair", "tiny"]
        short += ["--token-budget", "24", QUESTION]
        for tool in SANITIZERS:
            step = self.step(f"compute-sanitizer {tool}")
            self.run(step, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *short])

    def kernels(self):
        step = self.step("Achieved bandwidth of each kernel")
        command = ["cargo", "bench", "--bench", "first_gpu_day", "--"]
        command += ["--emulated"] if self.options.emulated else self.options.models
        out = self.run(step, command, markdown=True)
        if step.state == "passed" and "| head |" not in out:
            step.state, step.why = "failed", "the table has no head"
        if self.options.emulated and "not a GPU" not in out:
            step.state, step.why = "failed", "times without the software GPU's label"

    def pair(self):
        step = self.step("SpecReason end to end")
        pair = self.options.pair
        if pair is None:
            listed = subprocess.run(
                [self.forerun, "list"], capture_output=True, text=True, check=False
            ).stdout
            words = [line.split() for line in listed.splitlines()]
            present = {line[0] for line in words if len(line) > 1 and line[1] == "present"}
            pair = next((name for name in PAIRS if name in present), "tiny")
        if self.options.emulated:
            pair = "tiny"
        elif pair == "tiny":
            step.why = f"only the embedded pair: none of {', '.join(PAIRS)} is on this machine"
        tokens = ["--tokens-max", "24"] if self.options.emulated else []
        command = [self.forerun, "bench", "--overlap-sweep", *self.device, "--pair", pair, *tokens]
        out = self.run(step, command, markdown=True)
        if step.state == "passed" and "| stream |" not in out:
            step.state, step.why = "failed", "the table has no mode stream"
        if not self.options.emulated:
            self.run(step, [self.forerun, "run", *self.device, "--pair", pair, QUESTION])

    def report(self):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        lines = ["# First GPU day", "", now, ""]
        if self.options.emulated:
            lines += [NO_TIME, ""]
        lines += ["| step | | s | |", "|---|---|---:|---|", *(s.line() for s in self.steps), ""]
        for step in self.steps:
            lines += [f"## {step.title}", ""]
            if self.options.emulated:
                lines += [NO_TIME, ""]
            if step.why:
                lines += [f"{step.state.upper()}: {step.why}", ""]
            lines += step.body
        return "\n".join(lines).rstrip() + "\n"


def text(captured):
    """What a command that was ended had said."""
    if captured is None:
        return ""
    return captured if isinstance(captured, str) else captured.decode(errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="the software GPU, tiny sizes")
    parser.add_argument("--pair", help="pair of the catalogue [default: the largest present]")
    parser.add_argument("--out", type=Path, default=Path("first-gpu-day.md"), help="the report")
    parser.add_argument("--limit-s", type=float, default=3600, help="seconds a command may take")
    parser.add_argument("models", nargs="*", help="models whose kernels are timed [default: all]")
    day = Day(parser.parse_args())
    day.machine()
    if day.build():
        for step in (day.tests, day.sanitizer, day.kernels, day.pair):
            step()
    day.options.out.write_text(day.report())
    print("\n".join(step.line() for step in day.steps))
    print(f"report: {day.options.out}")
    return 1 if any(step.state == "failed" for step in day.steps) else 0


if __name__ == "__main__":
    sys.exit(main())
