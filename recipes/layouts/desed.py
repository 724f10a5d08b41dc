"""DESED: sounds with the beginning and end of each event (Turpault, Serizel, Salamon, Shah, DCASE 2019)."""

from dataclasses import dataclass
from pathlib import Path

from sound_events import SoundEvents

from onepeace.datasets.layout import option
from onepeace.datasets.reading import find
from onepeace.errors import UserError


@dataclass(frozen=True)
class DESED(SoundEvents):
    """DESED: ten-second sounds of ten kinds of domestic events, whose beginnings and ends are known, from
    project.inria.fr/desed.

    SOURCE holds the folders metadata and audio of its download. A split is the path of a table below metadata, without
    ending: train/synthetic21_train/soundscapes, train/audioset_strong (sounds in audio/train/strong_label_real),
    validation/validation, eval/public; its sounds are in the folder of that path below audio. Tables without onset and
    offset (weak labels) are not read. The target "events" is a list of [onset, offset, label], in seconds.
    """

    key = "desed"
    name: str = option("desed", "name of the shards and their folders")
    license: str = option("DESED's (synthetic: CC BY 4.0; others by their sources)", "licence of the sounds")
    train: tuple[str, ...] = option(("train/synthetic21_train/soundscapes",), "tables that are training data")
    val: tuple[str, ...] = option(("validation/validation",), "tables that are validation data")

    def files_of_split(self, folder: Path, split: str) -> tuple[Path, Path]:
        metadata = find(folder, "metadata", what="the tables")
        table = metadata / f"{split}.tsv"
        if not table.is_file():
            raise UserError(f"no such table; train and val name tables below {metadata}, without .tsv", where=table)
        sounds = metadata.parent / "audio" / split.replace("audioset_strong", "strong_label_real")
        return table, sounds


layout = DESED()
