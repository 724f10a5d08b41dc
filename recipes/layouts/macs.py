"""MACS: recordings of places (Martin, Mesaros, DCASE 2021), for audio_retrieval.yaml."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.config import read_yaml
from onepeace.datasets.layout import HeldOut, Record, Split, present
from onepeace.datasets.media import SOUND_HINT, Sounds, sounds_below
from onepeace.datasets.reading import find, sentence
from onepeace.errors import UserError

MACS_LICENSE = "captions: MACS licence (Tampere University); sounds: non-commercial (TAU Urban Acoustic Scenes 2019)"


@dataclass(frozen=True)
class Macs(Sounds):
    """MACS: ten-second recordings of places in cities with two to five sentences each (Martin, Mesaros, DCASE 2021),
    from zenodo.org/records/5114771.

    SOURCE holds MACS.yaml and, at any depth, the sounds of TAU Urban Acoustic Scenes 2019, development
    (zenodo.org/records/2589280), such as audio/airport-barcelona-0-0-a.wav. The set has no splits; all of it is
    training data. The label is the kind of place, from the name of the file.
    """

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        table = find(folder, "MACS.yaml", what="the captions")
        sounds = {path.name: path for path in sounds_below(folder)}
        records = []
        rows = read_yaml(table).get("files")
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{table}: has no list of files, or an empty one")
        for i, row in enumerate(rows, 1):
            where = f"{table}: file {i} of the list"
            try:
                name = Path(row["filename"]).name
                captions = [sentence(note["sentence"]) for note in row["annotations"]]
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{where} has no filename and annotations with sentences: {row!r:.100}") from error
            inputs = {"audio": sounds.get(name), "text": [caption for caption in captions if caption]}
            if not inputs["text"]:
                raise UserError(f"{where}, {name}, has no sentence")
            label = name.partition("-")[0].replace("_", " ")
            key = f"macs_{Path(name).stem}"
            records.append(Record(key, "MACS", inputs, {"label": label}, {"license": MACS_LICENSE}))
        yield Split("train/audio_text/macs", present(records, table, SOUND_HINT), self.encode)


layout = Macs()
