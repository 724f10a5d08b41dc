"""VGGSound (Chen, Xie, Vedaldi, Zisserman, ICASSP 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.pictures import open_picture, shrink, webp
from onepeace.datasets.reading import find, read_rows, whole_number
from onepeace.datasets.sounds import CAPTIONS, HINT, Sounds, sounds_below
from onepeace.errors import UserError
from onepeace.files.video import clip

LICENSE = "list: CC BY 4.0; sounds belong to the owners of the videos"
PICTURES = (".mp4", ".png", ".webp", ".jpeg", ".jpg")
"""Suffixes of files that show a clip; of two files, the one whose suffix comes later is read."""
COLUMNS = ("video", "start", "label", "split")


@dataclass(frozen=True)
class VGGSound(Sounds, OfficialSplits):
    """VGGSound: ten-second sounds of YouTube videos in 309 classes, from www.robots.ox.ac.uk/~vgg/data/vggsound.

    SOURCE holds vggsound.csv (video, start second, label, split; no names of columns) and, at any depth, the sounds
    that you have: wav, flac, ogg, opus or mp3, cut to their ten seconds and named ID_START with START in six digits,
    such as ---g-f_I2yQ_000001.wav. Videos are not read: extract their sound first. Captions are sentences around the
    label. Clips whose video is validation data of AudioCaps below the same root are left out of training.

    With pictures=true each sample has a picture of its clip too: ID_START.jpg (png, webp), or the middle frame
    of ID_START.mp4, for which the sound file is still needed. Clips without one are left out.
    """

    prefix, pairs, hint = "vggsound", "audio_text", HINT
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("test",), "official splits that are validation data")
    pictures: bool = option(False, "whether each sample has a picture of its clip beside the sound")
    size: int = option(256, "short side of the pictures in pixels")
    quality: int = option(78, "quality of the WebP files, up to 100")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        table = find(folder, "vggsound.csv", what="the labels")
        sounds = {path.stem: path for path in sounds_below(folder)}
        shown = _pictures_below(folder) if self.pictures else {}
        apart = {record.about["youtube_id"] for record in held_out("audiocaps")}
        records: dict[str, list[Record]] = {"test": [], "train": []}
        rows = list(read_rows(table, *COLUMNS, columns=COLUMNS))
        targets = {label: target for target, label in enumerate(sorted({row["label"] for _, row in rows}))}
        if not rows:
            raise UserError(f"{table}: has no rows")
        for where, row in rows:
            video, start, label, split = row["video"], whole_number(row["start"], where), row["label"], row["split"]
            if split not in records:
                raise UserError(f"{where}: the split is {split!r}, not train or test")
            name = f"{video}_{start:06d}"
            inputs: dict[str, Any] = {"audio": sounds.get(name), "text": [one.format(label) for one in CAPTIONS]}
            if self.pictures:
                inputs["image"] = shown.get(name)
            about = {"license": LICENSE, "target": targets[label], "youtube_id": video, "start": start}
            if split in self.val or video not in apart:
                records[split].append(Record(f"vgg_{name}", f"VGGSound {split}", inputs, {"label": label}, about))
        return {split: Table(table, found, list(targets)) for split, found in records.items()}

    def encode(self, record: Record) -> Encoded:
        found = super().encode(record)
        if "image" not in record.inputs:
            return found
        path = record.inputs["image"]
        picture = clip(path, 1, 1)[0].image if path.suffix.lower() == ".mp4" else open_picture(path)
        return Encoded({**found.files, "webp": webp(shrink(picture, self.size), self.quality)})


def _pictures_below(folder: Path) -> dict[str, Path]:
    """Pictures and videos of clips by their names."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES]
    return {path.stem: path for path in sorted(files, key=lambda path: PICTURES.index(path.suffix.lower()))}
