"""``python docs/results/bench.py encode|train``: speed on this machine, against a baseline in the same run.

encode  The model on inputs in memory: the bundled model, and one of base size with random weights. Each is compared
        with the matrix products of one block at the same size, the upper limit; for pictures at base size also with the
        image tower of open_clip's ViT-B-16.
train   Training steps of a recipe, compared with the same steps when every item is padded to the longest of its batch.
        Weights are random, items synthetic: captions of 4 to 13 tokens, clips of 1 to 15 seconds.

The candidates take turns. If two that should compute the same do not, the run ends with an error. The table shows
medians, with quartiles in brackets.
"""

import argparse
import sys
from collections.abc import Sequence

from onepeace.errors import UsageError, UserError
from onepeace.threads import sleep_while_waiting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and print its table; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python docs/results/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("encode", "train"), help="what to measure")
    parser.add_argument("recipe", nargs="*", metavar="RECIPE a.b=value", help="train: a recipe and changes to it")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="N", help="seconds per row (8)")
    parser.add_argument("--dtypes", default="float32,bfloat16", metavar="A,B", help="float32,bfloat16")
    parser.add_argument("--size", default="tiny,base", metavar="A,B", help="encode: names of models (tiny,base)")
    parser.add_argument("--batch", type=int, metavar="N", help="encode: items per batch (about 1600 tokens)")
    try:
        return _run(parser.parse_args(arguments))
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _run(args: argparse.Namespace) -> int:
    sleep_while_waiting()
    import torch
    from benchmarks import encode, train
    from benchmarks.comparison import markdown_report

    from onepeace.device import choose_device, choose_dtype
    from onepeace.train.recipe import read_recipe

    _check(args)
    device = choose_device(args.device)
    dtypes = [choose_dtype(name, device, 0) for name in args.dtypes.split(",")]
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "encode":
        rows = list(encode.bench_encode(args.size.split(","), dtypes, device, args.seconds, args.batch))
        columns = encode.columns
    else:
        path, *overrides = args.recipe
        rows = list(train.bench_train(read_recipe(path, overrides), dtypes, device, args.seconds))
        columns = train.columns
    print(markdown_report([columns(row) for row in rows], device))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise `UsageError` for arguments that are out of range, or that are not for what is measured."""
    if args.what == "train" and not args.recipe:
        raise UsageError("train takes a recipe")
    if args.what == "encode" and args.recipe:
        raise UsageError("encode takes no recipe")
    for name in ("threads", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; give at least 1")
    if not 0 <= args.seconds < 1e6:
        raise UsageError(f"--seconds is {args.seconds}; give a number of seconds")


if __name__ == "__main__":
    sys.exit(main())
