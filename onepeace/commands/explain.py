"""`onepeace explain`: where in pictures, and when in sounds, a query is found; as numbers or heat maps."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError, UserError
from onepeace.files.drawing import Drawings
from onepeace.files.source import describe
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from PIL import Image

    from onepeace.embed.explain import Explanation

SHOWN = ("image", "audio")
SIDE = 768
"""Longest side of a drawn picture; small ones are enlarged to at least half of it, so that the caption is legible."""
EXAMPLES = f"""\
A heat map shows how well each part of a picture, or each moment of a sound, matches the query. Its colours range from
the lowest to the highest value in the file, so check the similarity too: if the query is not there, some part is still
best.

  onepeace explain dog.jpg --text "a dog" --draw maps
  onepeace explain holidays --image hat.jpg --draw maps
  onepeace explain *.wav --audio bark.ogg --json

{files.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    files.add_paths(parser)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", metavar="T", help="query: a phrase,")
    asked.add_argument("--image", metavar="F", help="... a picture,")
    asked.add_argument("--audio", metavar="F", help="... or a sound")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write the heat maps over the files (PNG)")
    options.add_model(parser, batch_size=None, dtype=False)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    kind, value = next((key, given) for key in ("text", *SHOWN) if (given := getattr(args, key)) is not None)
    if kind != "text":
        files.check_input(value)
    elif not value.strip():
        raise UsageError("--text is empty; give a phrase to look for")
    found, problems = files.find(args.paths)
    found = files.readable(found, SHOWN, "explain")
    drawings = Drawings(args.draw) if args.draw else None
    from onepeace.embed.items import reason_of

    model = options.load(args)
    query = model.encode([{kind: value}], progress=False)[0]
    asked = value if kind == "text" else os.path.basename(value)
    rows, failed = [], []
    for file in found:
        try:
            explanation = model.explain({file.modality: file.path}, query)
            drawn = _drawn(file.path, explanation, asked) if drawings else None
        except UserError as error:
            failed.append(files.Unreadable(file.path, reason_of(describe(file.path), error)))
            continue
        if drawn and drawings:
            drawings.save(drawn, file.path)
        if args.json:
            print(json.dumps({"path": os.fspath(file.path), **_plain(explanation)}), flush=True)
        rows.append((f"{explanation.similarity:.3f}", _where(explanation), files.shown(file.path)))
    if rows and not args.json:
        print(format_table(("similarity", "best at", "path"), rows))
    return files.exit_code([*problems, *failed], len(rows))


def _drawn(path: Path, explanation: "Explanation", query: str) -> "Image.Image":
    """The heat map over the picture or waveform of a file, captioned with the query and the similarity.

    UserError if the file cannot be read.
    """
    from onepeace.files.heatmap import over_picture, over_sound
    from onepeace.processors import AudioProcessor, ImageProcessor

    caption = f"{files.shown(query)}: {explanation.similarity:.2f}"
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
    values = [
        [round(value, 6) for value in row]
        for row in explanation.values.reshape(-1, explanation.values.shape[-1]).tolist()
    ]
    about: dict[str, Any] = {"modality": explanation.modality, "similarity": round(explanation.similarity, 6)}
    about["peak"] = [round(place, 4) for place in explanation.peak]
    if explanation.unit == "second":
        seconds = [[round(second, 3) for second in frame] for frame in explanation.positions.tolist()]
        return {**about, "values": values[0], "seconds": seconds}
    return {**about, "grid": list(explanation.values.shape), "area": list(explanation.area), "values": values}
