"""`onepeace bench encode`: how fast this machine encodes, as a share of what it could, and against open_clip."""

import argparse
import sys

from onepeace.errors import UsageError

EPILOG = """example:
  onepeace bench encode --size base --modalities image --dtypes bfloat16 --json encode.json

Measured is the model alone, on inputs in memory: the bundled model, and one of base size with random weights. Beside
each stands the limit, the matrix products of one block alone at the same size, and for pictures at base size the image
tower of open_clip's ViT-B-16; all take turns in the same run. The table on stdout has medians, JSON the quartiles too.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("what", choices=["encode"], help="what to measure")
    parser.add_argument(
        "--size", default="tiny,base", metavar="A,B", help="tiny, base or names of models (default: tiny,base)"
    )
    parser.add_argument("--modalities", metavar="A,B", help="only these of text, image, audio")
    parser.add_argument("--dtypes", default="float32,bfloat16", metavar="A,B", help="default: float32,bfloat16")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, mps")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: all it may use)")
    parser.add_argument("--batch", type=int, metavar="N", help="items in a pass (default: about 1600 tokens)")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="N", help="time for each row (default: 8)")
    parser.add_argument(
        "--rival", action=argparse.BooleanOptionalAction, default=True, help="run open_clip beside base"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")


def run(args: argparse.Namespace) -> int:
    for name in ("threads", "batch"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    import torch

    from onepeace.bench.encode import Settings, bench_encode, table, write_json
    from onepeace.bench.timing import usable_cpus
    from onepeace.device import choose_device, choose_dtype

    device = choose_device(args.device)
    settings = Settings(
        sizes=_names(args.size),
        modalities=_names(args.modalities) if args.modalities else None,
        dtypes=[choose_dtype(name, device, 0) for name in _names(args.dtypes)],
        device=device,
        seconds=args.seconds,
        batch=args.batch,
        rival=args.rival,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or usable_cpus())
    try:
        report = bench_encode(settings, _say)
    finally:
        torch.set_num_threads(before)
    if args.json:
        write_json(report, args.json)
    print(table(report))
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _say(text: str) -> None:
    print("onepeace:", text, file=sys.stderr)
