"""`onepeace export`: export the branches of a model as ONNX or torch.export files, to run without this package."""

import argparse

from onepeace.commands import options
from onepeace.files.table import format_table

EPILOG = """example:
  onepeace export tiny -o exported
  onepeace export tiny -o exported-text --form int8 --modalities text
  onepeace export models/mine -o programs --form torch

FOLDER contains one file per modality (image.onnx, audio.onnx, text.onnx; or .pt2), which maps raw inputs to unit
vectors, with dynamic batch size and length; tokenizer.json; and export.json, which describes the preprocessing. A head
that classifies single items, as onepeace finetune trains it, is a further output of its modality's file, with the
probabilities of its labels. A file is written only if its vectors agree with the model's to 1e-4 (int8: 0.4), and its
probabilities to 1e-4 (int8: 0.2). The printed distance is the largest difference on random items.

onnx   files for onnxruntime
int8   the same with int8 matrix products: a quarter of the size; on an x86 CPU the bundled model runs 2.2 times as
       fast on text and 1.1 times on pictures
torch  files for torch.export.load

onnx and int8 need the extra "onnx".
"""
FORMS = ("onnx", "int8", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="tiny, a model folder or a released model")
    options.add_output(parser, "FOLDER", "folder to create")
    text = f"{', '.join(FORMS)} (onnx)"
    parser.add_argument("--form", choices=FORMS, default="onnx", metavar="NAME", help=text)
    parser.add_argument("--modalities", metavar="A,B", help="only these modalities of image, audio, text")


def run(args: argparse.Namespace) -> int:
    """Print one row per file."""
    from onepeace.export.folder import export_model

    modalities = None if args.modalities is None else [name.strip() for name in args.modalities.split(",")]
    done = export_model(args.model, args.output, form=args.form, modalities=modalities, replace=args.force)
    rows = [(str(file.path), f"{file.bytes / 1e6:.1f}", f"{file.distance:.1g}") for file in done]
    print(format_table(("file", "MB", "distance"), rows, right=(1, 2)))
    return 0
