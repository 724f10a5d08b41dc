"""MACS (Martin, Mesaros, DCASE 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.datasets.layout import HeldOut, Record, Split, present
from onepeace.datasets.reading import find, sentence
from onepeace.datasets.sounds import HINT, Sounds, sounds_below
from onepeace.errors import UserError

LICENSE = "captions: MACS licence (Tampere University); sounds: non-commercial (TAU Urban Acoustic Scenes 2019)"


@dataclass(frozen=True)
class Macs(Sounds):
    """MACS: ten-second recordings of places in cities with two to five sentences each, from zenodo.org/records/5114771.

    SOURCE holds MACS.yaml and, at any depth, the sounds of TAU Urban Acoustic Scenes 2019, development
    (zenodo.org/records/2589280), such as audio/airport-barcelona-0-0-a.wav. The set has no splits; all of it is
    training data. The label is the kind of place, from the name of the file.
    """

    family = "macs"

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        table = find(folder, "MACS.yaml", what="the captions")
        sounds = {path.name: path for path in sounds_below(folder)}
        records = []
        for where, row in _rows(table):
            try:
                name = Path(row["filename"]).name
                captions = [sentence(note["sentence"]) for note in row["annotations"]]
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{where}: no filename and annotations with sentences: {row!r:.100}") from error
            inputs = {"audio": sounds.get(name), "text": [caption for caption in captions if caption]}
            if not inputs["text"]:
                raise UserError(f"{where}: {name} has no sentence")
            label = name.partition("-")[0].replace("_", " ")
            key = f"macs_{Path(name).stem}"
            records.append(Record(key, "MACS", inputs, {"label": label}, {"license": LICENSE}))
        if not records:
            raise UserError(f"{table}: its list of files is empty")
        yield Split("train/audio_text/macs", present(records, "audio", table, HINT), self.encode)


def _rows(path: Path) -> list[tuple[str, Any]]:
    """The entries of the list of files, each with "FILE:LINE" for messages."""
    import yaml

    try:
        # As SafeLoader, in C where PyYAML was built with it: seconds in place of half a minute.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        content = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    rows = content.get("files") if isinstance(content, dict) else None
    if root is None or not isinstance(rows, list):
        raise UserError(f"{path}: has no list of files")
    nodes = next(value for key, value in root.value if key.value == "files").value
    return [(f"{path}:{node.start_mark.line + 1}", row) for node, row in zip(nodes, rows, strict=True)]
