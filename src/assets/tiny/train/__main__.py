"""The command line: `python -m train STAGE --seed N --out DIR`.

`all` runs every stage in order; a single stage reads what the earlier ones left in DIR. Stages
that only read an exported pair (`evaluate`, `golden`, `check`) work on any, the published one
included.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .problems import KEPT_BACK, SET_SIZE, problem_set


def stage_tokenizer(args):
    """Train the shared tokenizer."""
    from .tokenizer import train_tokenizer

    train_tokenizer(args.seed).save(str(args.work / "tokenizer.json"))


def stage_draft(args):
    """Train the draft."""
    from .curriculum import train_draft

    save_params(args.work / "draft.npz", train_draft(load_tokenizer(args), args.seed, args.scale))


def stage_samples(args):
    """Let the draft write steps and label them."""
    from .curriculum import draft_steps, save_drafted

    params = load_params(args.work / "draft.npz")
    drafted = draft_steps(params, load_tokenizer(args), args.seed, args.scale)
    save_drafted(args.work / "drafted.jsonl", drafted)
    labels = [right for _, steps in drafted for _, _, right in steps]
    print(f"samples: {len(drafted)} problems, {len(labels)} steps, {labels.count(False)} wrong")


def stage_base(args):
    """Train the base."""
    from .curriculum import load_drafted, train_base

    drafted = load_drafted(args.work / "drafted.jsonl")
    params = train_base(load_tokenizer(args), args.seed, args.scale, drafted)
    save_params(args.work / "base.npz", params)


def stage_export(args):
    """Write the pair."""
    from .export import export_model, export_shared
    from .model import BASE, DRAFT

    tokenizer = load_tokenizer(args)
    for name, config in (("base", BASE), ("draft", DRAFT)):
        params = load_params(args.work / f"{name}.npz")
        export_model(args.out / name, config, params, tokenizer)
    export_shared(args.out, args.seed, tokenizer)


def stage_evaluate(args):
    """Measure the pair and print the report."""
    from .evaluate import evaluate

    problems = problem_set(args.seed, args.set)[: args.limit]
    report = evaluate(args.out, problems, args.sweep, args.jobs)
    text = json.dumps({"set": args.set, "seed": args.seed, **report}, indent=1)
    print(text)
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / f"evaluation-{args.set}.json").write_text(text + "\n")


def stage_golden(args):
    """Write `golden.json`."""
    from .export import write_json
    from .golden import golden

    write_json(args.out / "golden.json", golden(args.out, args.seed))


def stage_check(args):
    """Compare what follows from the seed alone, and the goldens, with the pair's files."""
    from .check import differences

    found = differences(args.out, args.seed)
    print("\n".join(found) or "tokenizer, problems, judge and goldens agree")
    if found:
        raise SystemExit(1)


STAGES = {
    "tokenizer": stage_tokenizer,
    "draft": stage_draft,
    "samples": stage_samples,
    "base": stage_base,
    "export": stage_export,
    "evaluate": stage_evaluate,
    "golden": stage_golden,
    "check": stage_check,
}


def load_tokenizer(args):
    """The tokenizer that the first stage wrote."""
    return Tokenizer.from_file(str(args.work / "tokenizer.json"))


def save_params(path, params):
    """Parameters in float32."""
    np.savez(path, **{name: np.asarray(value) for name, value in params.items()})


def load_params(path):
    """What `save_params` wrote."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def setting(text):
    """`mean:5.5` as `("mean", 5.5)`; the read-outs are greedy, mean and prob."""
    score, threshold = text.split(":")
    if score not in ("greedy", "mean", "prob"):
        raise argparse.ArgumentTypeError(f"{score!r} is not one of greedy, mean, prob")
    return score, float(threshold)


def parse_args():
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("stage", choices=["all", *STAGES])
    parser.add_argument("--seed", type=int, default=1234, help="the published pair's is 1234")
    parser.add_argument("--out", type=Path, required=True, help="where the pair is or goes")
    parser.add_argument("--work", type=Path, help="checkpoints and reports; DIR/work if not given")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything")
    parser.add_argument("--set", choices=KEPT_BACK, default="heldout")
    parser.add_argument("--limit", type=int, default=SET_SIZE, help="problems to evaluate")
    parser.add_argument("--sweep", type=setting, nargs="*", default=[], metavar="SCORE:THRESHOLD")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the evaluation")
    args = parser.parse_args()
    args.work = args.work or args.out / "work"
    if args.smoke:
        args.limit = min(args.limit, 6)
    return args


def main():
    """Run the stages asked for."""
    args = parse_args()
    if args.stage not in ("evaluate", "golden", "check"):
        from .curriculum import FULL, SMOKE

        args.scale = SMOKE if args.smoke else FULL
        args.work.mkdir(parents=True, exist_ok=True)
    for name in STAGES if args.stage == "all" else [args.stage]:
        print(f"stage {name}", flush=True)
        STAGES[name](args)


if __name__ == "__main__":
    main()
