"""`onepeace bench`: how fast this machine encodes, computes losses and trains, each beside a baseline."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onepeace.commands.files import positive, say
from onepeace.errors import UsageError, UserError

EPILOG = """examples:
  onepeace bench encode --size base --modalities image --dtypes bfloat16 --json encode.json
  onepeace bench loss --sizes 1024,8192
  onepeace bench train recipes/pretrain/base_image_text.yaml run.batch_size=8 --dtypes bfloat16

encode  The model alone, on inputs in memory: the bundled model, and one of base size with random weights. Beside each
        stands the limit, the matrix products of one block alone at the same size, and for pictures at base size the
        image tower of open_clip's ViT-B-16.
loss    The losses in tiles beside the same losses with all logits at once, forward and backward: time and memory.
train   Steps of a recipe beside the same steps with every item padded to the longest of its batch. Weights are random,
        items made up: captions of 4 to 13 tokens, clips of 1 to 15 seconds.

What is compared takes turns in the same run; if two that should compute the same do not, the run ends with an error.
The table on stdout has medians, the JSON file has quartiles too.
"""
SIZES = "1024,2048,4096,8192,16384,32768"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("what", choices=list(BENCHMARKS), help="what to measure")
    parser.add_argument(
        "recipe", nargs="*", metavar="RECIPE a.b=value", help="train: a recipe, and fields in its place"
    )
    common = parser.add_argument_group("all")
    common.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, mps")
    common.add_argument("--threads", type=positive, metavar="N", help="threads of the CPU (default: all it may use)")
    common.add_argument("--seconds", type=float, default=8.0, metavar="N", help="time for each row (default: 8)")
    common.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    models = parser.add_argument_group("encode and train")
    models.add_argument("--dtypes", default="float32,bfloat16", metavar="A,B", help="default: float32,bfloat16")
    encode = parser.add_argument_group("encode")
    encode.add_argument("--size", default="tiny,base", metavar="A,B", help="tiny, base or names of models (tiny,base)")
    encode.add_argument("--batch", type=positive, metavar="N", help="items in a pass (default: about 1600 tokens)")
    encode.add_argument("--modalities", metavar="A,B", help="only these of text, image, audio")
    encode.add_argument(
        "--baseline", action=argparse.BooleanOptionalAction, default=True, help="run open_clip beside base"
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument("--kinds", default="contrastive,denoising", metavar="A,B", help="default: both losses")
    loss.add_argument("--sizes", default=SIZES, metavar="A,B", help=f"pairs, or tokens (default: {SIZES})")
    loss.add_argument("--dim", type=positive, default=256, metavar="N", help="width of the vectors (default: 256)")


def run(args: argparse.Namespace) -> int:
    if args.recipe and args.what != "train":
        raise UsageError(f"bench {args.what} takes no recipe")
    import torch

    from onepeace.bench.timing import usable_cpus
    from onepeace.device import choose_device

    device = choose_device(args.device)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or usable_cpus())
    try:
        report, text = BENCHMARKS[args.what](args, device)
    finally:
        torch.set_num_threads(before)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{args.json}: cannot be written ({error.strerror or error})") from error
    print(text)
    return 0


def _encode(args: argparse.Namespace, device: Any) -> tuple[Mapping[str, Any], str]:
    from onepeace.bench.encode import Settings, bench_encode, table
    from onepeace.device import choose_dtype

    settings = Settings(
        sizes=_names(args.size),
        modalities=_names(args.modalities) if args.modalities else None,
        dtypes=[choose_dtype(name, device, 0) for name in _names(args.dtypes)],
        device=device,
        seconds=args.seconds,
        batch=args.batch,
        baseline=args.baseline,
    )
    report = bench_encode(settings, say)
    return report, table(report)


def _loss(args: argparse.Namespace, device: Any) -> tuple[Mapping[str, Any], str]:
    from onepeace.bench.loss import Settings, bench_loss, table

    kinds, sizes = _names(args.kinds), [_number("--sizes", name, 2) for name in _names(args.sizes)]
    if unknown := [kind for kind in kinds if kind not in ("contrastive", "denoising")]:
        raise UsageError(f"--kinds: {unknown[0]!r} is neither contrastive nor denoising")
    report = bench_loss(Settings(kinds, sizes, args.dim, device, args.seconds), say)
    return report, table(report)


def _train(args: argparse.Namespace, device: Any) -> tuple[Mapping[str, Any], str]:
    from onepeace.bench.train import Settings, bench_train, table
    from onepeace.device import choose_dtype
    from onepeace.train.recipe import read_recipe

    if not args.recipe:
        raise UsageError("bench train needs a recipe, as in: onepeace bench train recipes/pretrain/quick.yaml")
    path, *overrides = args.recipe
    dtypes = [choose_dtype(name, device, 0) for name in _names(args.dtypes)]
    settings = Settings(read_recipe(path, overrides), Path(path).parent, dtypes, device, args.seconds)
    report = bench_train(settings, say)
    return report, table(report)


BENCHMARKS: dict[str, Callable[[argparse.Namespace, Any], tuple[Mapping[str, Any], str]]] = {
    "encode": _encode,
    "loss": _loss,
    "train": _train,
}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _number(option: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"{option}: {text!r} is not a whole number from {least} up")
    return int(text)
