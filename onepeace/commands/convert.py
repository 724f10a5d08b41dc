"""`onepeace convert`: a released checkpoint becomes a model folder."""

import argparse

EPILOG = """example:
  onepeace convert one-peace.pt models/one-peace --bpe BPE
  onepeace convert finetune_coco.pt models/coco-384 --image-size 384 --dtype bfloat16 --bpe BPE
  onepeace convert ofa_base.pt models/ofa-base --bpe BPE

No code in the file is ever run. What came out: onepeace info models/one-peace
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a .pt, .pth, .pkl or .bin file of the original code, a transformers folder, or a model folder",
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="side of pictures in pixels, a multiple of the patch"
    )
    parser.add_argument("--modalities", metavar="A,B", help="keep only these of text, image, audio")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the file's)")
    parser.add_argument(
        "--bpe",
        metavar="DIR",
        help="folder with the vocabulary: encoder.json, vocab.bpe and dict.txt (default: the Hub)",
    )
    parser.add_argument(
        "--base", metavar="NAME", help="leave out what this model has too; OUT then needs it, as a head needs its model"
    )
    parser.add_argument(
        "--no-average",
        action="store_true",
        help="of a file that also holds the moving average of its weights, take the weights themselves",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it is a model folder")


def run(args: argparse.Namespace) -> int:
    from onepeace.hub.convert.convert import convert

    modalities = None if args.modalities is None else [name.strip() for name in args.modalities.split(",")]
    folder = convert(
        args.checkpoint,
        args.out,
        image_size=args.image_size,
        modalities=modalities,
        dtype=args.dtype,
        bpe=args.bpe,
        base=args.base,
        average=not args.no_average,
        replace_existing=args.force,
        progress=True,
    )
    print(folder)
    return 0
