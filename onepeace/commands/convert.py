"""`onepeace convert`: convert a released checkpoint to a model folder."""

import argparse

from onepeace.commands import files, options

EPILOG = """example:
  onepeace convert one-peace.pt -o models/one-peace --bpe BPE
  onepeace convert finetune_coco.pt -o models/coco --dtype bfloat16 --bpe BPE
  onepeace convert ofa_base.pt -o models/ofa-base --bpe BPE

No code in the file is executed. To inspect the result: onepeace info models/one-peace
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a .pt, .pth, .pkl or .bin file of the original code, or a model folder",
    )
    options.add_output(parser, "FOLDER", "model folder to create")
    parser.add_argument("--modalities", metavar="A,B", help="keep only these modalities of text, image, audio")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (that of the file)")
    text = "folder of the vocabulary: encoder.json, vocab.bpe and dict.txt (downloaded from the Hub)"
    parser.add_argument("--bpe", metavar="DIR", help=text)
    text = "omit tensors that this model contains; FOLDER is then loaded on top of it"
    parser.add_argument("--base", metavar="NAME", help=text)


def run(args: argparse.Namespace) -> int:
    from onepeace.hub.weights import convert

    modalities = None if args.modalities is None else [name.strip() for name in args.modalities.split(",")]
    folder = convert(
        args.checkpoint,
        args.output,
        modalities=modalities,
        dtype=args.dtype,
        bpe=args.bpe,
        base=args.base,
        replace_existing=args.force,
        progress=True,
    )
    files.show(folder)
    return 0
