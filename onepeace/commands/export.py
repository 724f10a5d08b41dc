"""`onepeace export`: the branches of a model as ONNX or torch.export files, for programs without this package."""

import argparse

from onepeace.errors import UsageError
from onepeace.files.table import format_table

EPILOG = """example:
  onepeace export tiny -o exported --onnx
  onepeace export tiny -o exported-text --onnx --modalities text --int8 dynamic
  onepeace export models/mine -o programs --torch-export

FOLDER gets a file for each modality (image.onnx, audio.onnx, text.onnx; or .pt2), from raw inputs to unit vectors, any
number of items of any length; tokenizer.json; and export.json, which says how pictures, sounds and texts become inputs.
Each file has given the vectors of the model to 1e-4 before it is there. The distance that is printed is the largest
between the two, on made-up items.

--int8 dynamic  matrix products in int8: a quarter of the size; of the bundled model texts take 1/2.2 of the time and
                pictures 1/1.1, as measured on an x86 CPU
--int8 weights  int8 weights, computed in float32: a quarter of the size, the speed of float32, nearer to the model

What both cost in accuracy: onepeace bench export tiny --data FOLDER. Needs the extra "onnx", but for --torch-export.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="tiny, a model folder or a released model")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the folder to make")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--onnx", dest="kind", action="store_const", const="onnx", help="files for onnxruntime")
    kinds.add_argument(
        "--torch-export", dest="kind", action="store_const", const="torch", help="files for torch.export.load"
    )
    parser.add_argument("--modalities", metavar="A,B", help="only these of image, audio, text")
    parser.add_argument("--int8", choices=("dynamic", "weights"), help="smaller ONNX files; see below")
    parser.add_argument("--force", action="store_true", help="replace FOLDER if it is an export")


def run(args: argparse.Namespace) -> int:
    """Print a line for each file."""
    if args.int8 and args.kind != "onnx":
        raise UsageError(f"--int8 {args.int8} is for --onnx")
    from onepeace.export.folder import export_model

    modalities = None if args.modalities is None else [name.strip() for name in args.modalities.split(",")]
    done = export_model(
        args.model, args.output, kind=args.kind, modalities=modalities, int8=args.int8, replace=args.force
    )
    rows = [(str(file.path), f"{file.bytes / 1e6:.1f}", f"{file.distance:.1g}") for file in done]
    print(format_table(("file", "MB", "distance"), rows, right=(1, 2)))
    return 0
