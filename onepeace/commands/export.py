"""`onepeace export`: the branches of a model as ONNX or torch.export files, for programs without this package."""

import argparse

from onepeace.commands import options
from onepeace.files.table import format_table

EPILOG = """example:
  onepeace export tiny -o exported
  onepeace export tiny -o exported-text --form int8 --modalities text
  onepeace export models/mine -o programs --form torch

FOLDER gets a file for each modality (image.onnx, audio.onnx, text.onnx; or .pt2), from raw inputs to unit vectors, any
number of items of any length; tokenizer.json; and export.json, which says how pictures, sounds and texts become inputs.
Each file has given the vectors of the model to 1e-4 before it is there. The distance that is printed is the largest
between the two, on made-up items.

onnx   files for onnxruntime
int8   the same, matrix products in int8: a quarter of the size; of the bundled model texts take 1/2.2 of the time and
       pictures 1/1.1, as measured on an x86 CPU
torch  files for torch.export.load

All but torch need the extra "onnx".
"""
FORMS = ("onnx", "int8", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="tiny, a model folder or a released model")
    options.add_output(parser, "FOLDER", "the folder to make")
    text = f"{', '.join(FORMS)} (onnx)"
    parser.add_argument("--form", choices=FORMS, default="onnx", metavar="NAME", help=text)
    parser.add_argument("--modalities", metavar="A,B", help="only these of image, audio, text")


def run(args: argparse.Namespace) -> int:
    """Print a line for each file."""
    from onepeace.export.folder import export_model

    modalities = None if args.modalities is None else [name.strip() for name in args.modalities.split(",")]
    done = export_model(args.model, args.output, form=args.form, modalities=modalities, replace=args.force)
    rows = [(str(file.path), f"{file.bytes / 1e6:.1f}", f"{file.distance:.1g}") for file in done]
    print(format_table(("file", "MB", "distance"), rows, right=(1, 2)))
    return 0
