"""What a layout has written of a download."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import soundfile
from PIL import Image

from onepeace.data.sample import Sample
from onepeace.data.source import read_source
from onepeace.datasets.layout import Record

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "layouts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "\nlayout = " in path.read_text())
"""Names of all layouts; the other files are what several share."""


def layout_file(name: str) -> str:
    return str(FOLDER / f"{name}.py")


@dataclass(frozen=True)
class Prepared:
    """The shards of a layout, and the messages of the command that made them."""

    root: Path
    train: dict[str, Record]
    """What was written, by key; below `about` what only the .json says."""
    val: dict[str, Record]
    out: str
    err: str

    def samples(self, pattern: str, *modalities: str, targets: tuple[str, ...] = ()) -> dict[str, Sample]:
        """The samples as a trainer reads them, by key."""
        samples = read_source(pattern, modalities or ("image",), self.root, targets=targets)
        return {sample.key: sample for sample in samples}

    def sample(self, pattern: str, *modalities: str, targets: tuple[str, ...] = ()) -> Sample:
        """The only one."""
        (sample,) = self.samples(pattern, *modalities, targets=targets).values()
        return sample

    def classes(self, folder: str) -> list:
        return json.loads((self.root / folder / "classes.json").read_text())


def captions(record):
    """All of them; in the shard itself is one."""
    return record.about["captions"]


def media(record):
    return next(content for modality, content in record.inputs.items() if modality != "text")


def picture_of(content):
    return Image.open(io.BytesIO(content))


def size_of(record):
    return picture_of(media(record)).size


def wave_of(record):
    return soundfile.read(io.BytesIO(media(record)))
