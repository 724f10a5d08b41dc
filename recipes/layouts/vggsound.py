"""VGGSound (Chen, Xie, Vedaldi, Zisserman, ICASSP 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.config.reader import Count
from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import (
    SOUND_CAPTIONS,
    SOUND_HINT,
    Quality,
    Sounds,
    read_picture,
    shrink,
    sounds_below,
    webp,
)
from onepeace.datasets.reading import find, read_rows, whole_number
from onepeace.errors import UserError
from onepeace.files.video import clip

LICENSE = "list: CC BY 4.0; sounds belong to the owners of the videos"
PICTURES = (".mp4", ".png", ".webp", ".jpeg", ".jpg")
"""Suffixes of files that show a clip; of two files, the one whose suffix comes later is read."""
SPLITS = ("test", "train")
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

    prefix = "vggsound"
    shared_folder = "audio_text"
    hint = SOUND_HINT
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("test",), "official splits that are validation data")
    pictures: bool = option(False, "whether each sample has a picture of its clip beside the sound")
    size: Count = option(256, "short side of the pictures in pixels")
    quality: Quality = option(78, "quality of the WebP files, up to 100")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        table = find(folder, "vggsound.csv", what="the labels")
        sounds = {path.stem: path for path in sounds_below(folder)}
        pictures = _pictures_below(folder) if self.pictures else {}
        videos_of_audiocaps = {record.about["youtube_id"] for record in held_out("audiocaps")}
        rows = _read_table(table)
        classes = sorted({row["label"] for _, row in rows})
        target_by_label = {label: target for target, label in enumerate(classes)}
        records: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for where, row in rows:
            split = row["split"]
            clip_name = f"{row['video']}_{whole_number(row['start'], where):06d}"
            if split not in self.val and row["video"] in videos_of_audiocaps:
                continue
            media = {"audio": sounds.get(clip_name)}
            if self.pictures:
                media["image"] = pictures.get(clip_name)
            records[split].append(_record(row, clip_name, media, target_by_label[row["label"]]))
        return {split: Table(table, records_of_split, classes) for split, records_of_split in records.items()}

    def encode(self, record: Record) -> Encoded:
        sound = super().encode(record)
        if "image" not in record.inputs:
            return sound
        path = record.inputs["image"]
        if path.suffix.lower() == ".mp4":
            picture = clip(path, 1, 1)[0].image
        else:
            picture = read_picture(path)
        small = shrink(picture, self.size)
        return Encoded({**sound.files, "webp": webp(small, self.quality)})


def _read_table(table: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of vggsound.csv, each with its place for messages."""
    rows = list(read_rows(table, *COLUMNS, columns=COLUMNS))
    if not rows:
        raise UserError("has no rows", where=table)
    for where, row in rows:
        if row["split"] not in SPLITS:
            raise UserError(f"the split is {row['split']!r}, not train or test", where=where)
    return rows


def _record(row: Mapping[str, str], clip_name: str, media: Mapping[str, Any], target: int) -> Record:
    """The sample of a row of vggsound.csv, with its files and the number of its class."""
    label = row["label"]
    return Record(
        key=f"vgg_{clip_name}",
        source=f"VGGSound {row['split']}",
        inputs={**media, "text": [caption.format(label) for caption in SOUND_CAPTIONS]},
        targets={"label": label},
        about={
            "license": LICENSE,
            "target": target,
            "youtube_id": row["video"],
            "start": int(row["start"]),
        },
    )


def _pictures_below(folder: Path) -> dict[str, Path]:
    """Pictures and videos of clips by their names."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES]
    files.sort(key=lambda path: PICTURES.index(path.suffix.lower()))
    return {path.stem: path for path in files}


layout = VGGSound()
