"""`onepeace explain`: where in pictures, and when in sounds, a query is found; as numbers or heat maps."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError, UserError, printable
from onepeace.files.source import describe
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from onepeace.embed.explain import Explanation

SHOWN = ("image", "audio")
SIDE = 768
"""Longest side of a drawn picture; small ones are enlarged to at least half of it, so that the caption is legible."""
EXAMPLES = f"""\
A heat map shows how well each part of a picture, or each moment of a sound, matches the query. Its colours range from
the lowest to the highest value in the file, so check the similarity too: if the query is not there, some part is still
best.

  onepeace explain dog.jpg "a dog" --draw maps
  onepeace explain holidays --image hat.jpg --draw maps
  onepeace explain *.wav --audio bark.ogg --json

{files.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    files.add_paths(parser)
    query = parser.add_mutually_exclusive_group()
    query.add_argument("--text", metavar="T", help="the query is a phrase; also without --text, after the paths")
    query.add_argument("--image", metavar="F", help="the query is a picture")
    query.add_argument("--audio", metavar="F", help="the query is a sound")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write the heat maps over the files (PNG)")
    options.add_model(parser, batch_size=None, dtype=False)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    modality, value = _query(args)
    found_files, problems = files.find(args.paths)
    readable = files.readable(found_files, SHOWN, "explain")
    from onepeace.embed.items import reason_of
    from onepeace.files.drawing import Drawings

    drawings = Drawings(args.draw) if args.draw else None
    model = options.load(args)
    query = model.encode([{modality: value}], progress=False)[0]
    caption = value if modality == "text" else os.path.basename(value)
    rows = []
    for file in readable:
        try:
            explanation = model.explain({file.modality: file.path}, query)
            if drawings:
                drawings.save(_drawn(file.path, explanation, caption), file.path)
        except UserError as error:
            problems.append(files.Unreadable(file.path, reason_of(describe(file.path), error)))
            continue
        if args.json:
            print(json.dumps({"path": os.fspath(file.path), **_plain(explanation)}), flush=True)
        rows.append((f"{explanation.similarity:.3f}", _where(explanation), str(file.path)))
    if rows and not args.json:
        print(format_table(("similarity", "best at", "path"), rows))
    return files.exit_code(problems, len(rows))


def _query(args: argparse.Namespace) -> tuple[str, str]:
    """Modality and value of the query.

    Raises:
        UsageError: there is no query, or no such file.
    """
    given = {modality: getattr(args, modality) for modality in ("text", "image", "audio")}
    queries = [(modality, value) for modality, value in given.items() if value is not None]
    words = files.take_words(args.paths, bool(queries))
    if words is not None:
        return "text", words
    if not queries:
        raise UsageError('no query; give words after the paths, "a dog", or --text, --image or --audio')
    modality, value = queries[0]
    if modality != "text":
        files.check_input(value)
    elif not value.strip():
        raise UsageError("--text is empty; give a phrase to look for")
    return modality, value


def _drawn(path: Path, explanation: "Explanation", query: str) -> "Image.Image":
    """The heat map over the picture or waveform of a file, captioned with the query and the similarity.

    UserError if the file cannot be read.
    """
    from onepeace.files.drawing import over_picture, over_sound
    from onepeace.processors import AudioProcessor, ImageProcessor

    caption = f"{printable(query)}: {explanation.similarity:.2f}"
    values = explanation.values.numpy()
    if explanation.modality == "image":
        picture = ImageProcessor(size=SIDE // 2).load(path)
        picture.thumbnail((SIDE, SIDE))
        scale = max(1, round(SIDE / 2 / max(picture.size)))
        picture = picture.resize((picture.width * scale, picture.height * scale))
        return over_picture(picture, values, caption, explanation.area)
    processor = AudioProcessor()
    samples = processor.load(path).numpy()
    seconds = len(samples) / processor.sample_rate
    return over_sound(samples, seconds, explanation.positions.numpy(), values, caption)


def _where(explanation: "Explanation") -> str:
    """The position of the peak, as a cell of the table."""
    if explanation.unit == "second":
        return f"{explanation.peak[0]:.1f} s"
    across, down = explanation.peak
    return f"{across:.0%} across, {down:.0%} down"


def _plain(explanation: "Explanation") -> dict[str, Any]:
    """An explanation as plain JSON values: the rows of the image grid from the top, or frames with their seconds."""
    rows = explanation.values.reshape(-1, explanation.values.shape[-1])
    values = _rounded(rows, 6)
    plain = {
        "modality": explanation.modality,
        "similarity": round(explanation.similarity, 6),
        "peak": [round(coordinate, 4) for coordinate in explanation.peak],
    }
    if explanation.unit == "second":
        return {**plain, "values": values[0], "seconds": _rounded(explanation.positions, 3)}
    return {**plain, "grid": list(explanation.values.shape), "area": list(explanation.area), "values": values}


def _rounded(matrix: "Tensor", digits: int) -> list[list[float]]:
    return [[round(value, digits) for value in row] for row in matrix.tolist()]
