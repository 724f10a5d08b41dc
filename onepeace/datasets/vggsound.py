"""VGGSound (Chen, Xie, Vedaldi, Zisserman, ICASSP 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.datasets.layout import Encoded, HeldOut, Record, Skipped, Split, option, present, skipped
from onepeace.datasets.pictures import open_picture, shrink, webp
from onepeace.datasets.reading import find, read_rows, whole_number
from onepeace.datasets.sounds import HINT, Sounds, sounds_below
from onepeace.errors import UserError
from onepeace.files.video import clip

TEMPLATES = ("{}", "the sound of {}", "a recording of {}")
LICENSE = "list: CC BY 4.0; sounds belong to the owners of the videos"
PICTURES = (".mp4", ".png", ".webp", ".jpeg", ".jpg")
"""Of two files of a clip the one whose ending comes later is read."""
COLUMNS = ("video", "start", "label", "split")


@dataclass(frozen=True)
class VGGSound(Sounds):
    """VGGSound: ten-second sounds of YouTube videos in 309 classes, from www.robots.ox.ac.uk/~vgg/data/vggsound.

    SOURCE holds vggsound.csv (video, start second, label, split; no names of columns) and, at any depth, the sounds
    that you have: wav, flac, ogg, opus or mp3, cut to their ten seconds and named ID_START with START in six digits,
    such as ---g-f_I2yQ_000001.wav. Videos are not read: extract their sound first. Captions are sentences around the
    label. Clips whose video is validation data of AudioCaps below the same root are left out of training.

    With pictures=true each sample has a picture of its clip too: ID_START.jpg (png, webp), or what is shown in the
    middle of ID_START.mp4, whose sound lies beside it all the same. Clips without one are left out.
    """

    family = "vgg"
    pictures: bool = option(False, "whether each sample has a picture of its clip beside the sound")
    size: int = option(256, "short side of the pictures in pixels")
    quality: int = option(78, "quality of the WebP files, up to 100")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        table = find(folder, "vggsound.csv", what="the labels")
        sounds = {path.stem: path for path in sounds_below(folder)}
        shown = _pictures_below(folder) if self.pictures else {}
        rows: dict[str, list[tuple[str, int, str]]] = {"test": [], "train": []}
        for where, row in read_rows(table, *COLUMNS, columns=COLUMNS):
            if row["split"] not in rows:
                raise UserError(f"{where}: the split is {row['split']!r}, not train or test")
            rows[row["split"]].append((row["video"], whole_number(row["start"], where), row["label"].strip()))
        labels = sorted({label for clips in rows.values() for _, _, label in clips})
        if not labels:
            raise UserError(f"{table}: has no rows")
        targets = {label: target for target, label in enumerate(labels)}

        def records(split: str, apart: set[str]) -> Iterator[Record | Skipped]:
            clips: list[Record] = []
            for video, start, label in rows[split]:
                name = f"{video}_{start:06d}"
                inputs: dict[str, Any] = {
                    "audio": sounds.get(name),
                    "text": [template.format(label) for template in TEMPLATES],
                }
                about = {"license": LICENSE, "target": targets[label], "youtube_id": video, "start": start}
                if self.pictures:
                    inputs["image"] = shown.get(name)
                if video not in apart:
                    clips.append(Record(f"vgg_{name}", f"VGGSound {split}", inputs, {"label": label}, about))
            if unseen := [clip.key for clip in clips if self.pictures and clip.inputs["image"] is None]:
                yield skipped(table, f"{len(unseen)} of {len(clips)} clips have no picture ({unseen[0]}, ...)")
            seen = [clip for clip in clips if clip.key not in set(unseen)]
            if seen:
                yield from present(seen, "audio", table, HINT)

        yield Split("val/vggsound/vggsound_test", records("test", set()), self.encode, classes=labels)
        apart = {record.about["youtube_id"] for record in held_out("audiocaps")}
        yield Split("train/audio_text/vggsound_train", records("train", apart), self.encode)

    def encode(self, record: Record) -> Encoded:
        found = super().encode(record)
        if "image" not in record.inputs:
            return found
        picture = webp(shrink(_shown(record.inputs["image"]), self.size), self.quality)
        return Encoded({**found.files, "webp": picture})

    def group(self, record: Record) -> tuple[str, str]:
        return "youtube", record.about["youtube_id"]


def _pictures_below(folder: Path) -> dict[str, Path]:
    """What shows each clip, by its name."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES]
    return {path.stem: path for path in sorted(files, key=lambda path: PICTURES.index(path.suffix.lower()))}


def _shown(path: Path) -> Any:
    if path.suffix.lower() != ".mp4":
        return open_picture(path)
    (frame,) = clip(path, 1, 1)
    return frame.image
