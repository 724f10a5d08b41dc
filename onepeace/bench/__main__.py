"""python -m onepeace.bench: how fast this machine encodes, writes, computes losses and trains."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onepeace.errors import UsageError, UserError

EPILOG = """examples:
  python -m onepeace.bench encode --size base --modalities image --dtypes bfloat16 --json encode.json
  python -m onepeace.bench loss --sizes 1024,8192
  python -m onepeace.bench train recipes/pretrain/base_image_text.yaml run.batch_size=8 --dtypes bfloat16
  python -m onepeace.bench export tiny --data shards --json export.json
  python -m onepeace.bench generate --size tiny --beams 1,5

encode  The model alone, on inputs in memory: the bundled model, and one of base size with random weights. Beside each
        stands the limit, the matrix products of one block alone at the same size, and for pictures at base size the
        image tower of open_clip's ViT-B-16.
loss    The losses in tiles beside the same losses with all logits at once, forward and backward: time and memory.
train   Steps of a recipe beside the same steps with every item padded to the longest of its batch. Weights are random,
        items made up: captions of 4 to 13 tokens, clips of 1 to 15 seconds.
export  The branches of MODEL as ONNX files in float32 and int8, beside torch: size, speed and, with --data, accuracy on
        val/flickr8k, val/tiny_imagenet and val/esc50_fold5 below FOLDER; sets.image.keys="*7" takes a part of them.
generate  Answers of OFA's decoder, tiny and base with random weights, beside the same without its cache and beside
        transformers' BART of the same shape.

What is compared takes turns in the same run; if two that should compute the same do not, the run ends with an error.
The table on stdout has medians, the JSON file has quartiles too.
"""
Benchmark = tuple[Iterable[dict[str, Any]], Callable[[Mapping[str, Any]], dict[str, str]]]
"""Rows, measured as they are asked for, and the columns of one in a table."""
SIZES = "1024,2048,4096,8192,16384,32768"


def several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between them; `one` reads each."""
    return lambda text: [one(part.strip()) for part in text.split(",") if part.strip()]


NAMES, NUMBERS = several(str), several(int)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table; 1 and a line on stderr if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m onepeace.bench", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_arguments(parser)
    try:
        return run(parser.parse_intermixed_args(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=list(BENCHMARKS), help="what to measure")
    of_what = "train: a recipe, and fields in its place; export: a model"
    parser.add_argument("given", nargs="*", metavar="RECIPE a.b=value, or MODEL", help=of_what)
    common = parser.add_argument_group("all")
    common.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, mps")
    common.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: all it may use)")
    common.add_argument("--seconds", type=float, default=8.0, metavar="N", help="time for each row (default: 8)")
    common.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    models = parser.add_argument_group("encode, train and generate")
    models.add_argument(
        "--dtypes", type=NAMES, default="float32,bfloat16", metavar="A,B", help="default: float32,bfloat16"
    )
    encode = parser.add_argument_group("encode and generate")
    encode.add_argument(
        "--size", type=NAMES, default="tiny,base", metavar="A,B", help="tiny, base or names of models (tiny,base)"
    )
    encode.add_argument(
        "--baseline", action=argparse.BooleanOptionalAction, default=True, help="run open_clip beside base"
    )
    branches = parser.add_argument_group("encode, export and generate")
    branches.add_argument(
        "--batch", type=int, metavar="N", help="items in a pass (default: about 1600 tokens, 8 answers)"
    )
    branches.add_argument("--modalities", type=NAMES, metavar="A,B", help="only these of text, image, audio")
    export = parser.add_argument_group("export")
    export.add_argument("--data", metavar="FOLDER", help="folder of shards to measure accuracy on (default: none)")
    generate = parser.add_argument_group("generate")
    generate.add_argument(
        "--beams",
        type=NUMBERS,
        default="1,5",
        metavar="A,B",
        help="hypotheses that are followed (default: 1,5)",
    )
    generate.add_argument("--length", type=int, default=16, metavar="N", help="tokens of an answer (default: 16)")
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--kinds", type=NAMES, default="contrastive,denoising", metavar="A,B", help="default: both losses"
    )
    loss.add_argument(
        "--sizes", type=NUMBERS, default=SIZES, metavar="A,B", help=f"pairs, or tokens (default: {SIZES})"
    )
    loss.add_argument("--dim", type=int, default=256, metavar="N", help="width of the vectors (default: 256)")


def run(args: argparse.Namespace) -> int:
    if args.given and args.what not in ("train", "export"):
        raise UsageError(f"{args.what} takes no recipe and no files")
    import torch

    from onepeace.bench.comparison import machine, markdown_report
    from onepeace.device import choose_device

    device = choose_device(args.device)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or _usable_cpus())
    try:
        measured, columns = BENCHMARKS[args.what](args, device)
        rows = list(measured)
        report = {"machine": machine(device), "seconds_per_row": args.seconds, "rows": rows}
    finally:
        torch.set_num_threads(before)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{args.json}: cannot be written ({error.strerror or error})") from error
    print(markdown_report([columns(row) for row in rows], report["machine"]))
    return 0


def _encode(args: argparse.Namespace, device: Any) -> Benchmark:
    from onepeace.bench.encode import bench_encode, columns

    dtypes = _dtypes(args, device)
    rows = bench_encode(args.size, args.modalities, dtypes, device, args.seconds, args.batch, args.baseline)
    return rows, columns


def _loss(args: argparse.Namespace, device: Any) -> Benchmark:
    from onepeace.bench.loss import bench_loss, columns

    if unknown := [kind for kind in args.kinds if kind not in ("contrastive", "denoising")]:
        raise UsageError(f"--kinds: {unknown[0]!r} is neither contrastive nor denoising")
    return bench_loss(args.kinds, args.sizes, args.dim, device, args.seconds), columns


def _train(args: argparse.Namespace, device: Any) -> Benchmark:
    from onepeace.bench.train import bench_train, columns
    from onepeace.train.recipe import read_recipe

    if not args.given:
        raise UsageError(
            "bench train needs a recipe, as in: python -m onepeace.bench train recipes/pretrain/quick.yaml"
        )
    path, *overrides = args.given
    rows = bench_train(read_recipe(path, overrides), Path(path).parent, _dtypes(args, device), device, args.seconds)
    return rows, columns


def _export(args: argparse.Namespace, device: Any) -> Benchmark:
    from onepeace.bench.export import bench_export, columns

    if device.type != "cpu":
        raise UsageError(f"bench export runs on the cpu, not on {device}")
    model, *overrides = args.given or ["tiny"]
    return bench_export(model, args.modalities, args.seconds, args.batch, args.data, overrides), columns


def _generate(args: argparse.Namespace, device: Any) -> Benchmark:
    from onepeace.bench.generate import bench_generate, columns

    dtypes = _dtypes(args, device)
    return bench_generate(args.size, args.beams, args.batch or 8, args.length, dtypes, device, args.seconds), columns


BENCHMARKS: dict[str, Callable[[argparse.Namespace, Any], Benchmark]] = {
    "encode": _encode,
    "loss": _loss,
    "train": _train,
    "export": _export,
    "generate": _generate,
}


def _dtypes(args: argparse.Namespace, device: Any) -> list[Any]:
    from onepeace.device import choose_dtype

    return [choose_dtype(name, device, 0) for name in args.dtypes]


def _usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
