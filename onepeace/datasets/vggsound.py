"""VGGSound (Chen, Xie, Vedaldi, Zisserman, ICASSP 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, Record, Skipped, Split, present
from onepeace.datasets.reading import find, read_rows, whole_number
from onepeace.datasets.sounds import HINT, Sounds, sounds_below
from onepeace.errors import UserError

TEMPLATES = ("{}", "the sound of {}", "a recording of {}")
LICENSE = "list: CC BY 4.0; sounds belong to the owners of the videos"
COLUMNS = ("video", "start", "label", "split")


@dataclass(frozen=True)
class VGGSound(Sounds):
    """VGGSound: ten-second sounds of YouTube videos in 309 classes, from www.robots.ox.ac.uk/~vgg/data/vggsound.

    SOURCE holds vggsound.csv (video, start second, label, split; no names of columns) and, at any depth, the sounds
    that you have: wav, flac, ogg, opus or mp3, cut to their ten seconds and named ID_START with START in six digits,
    such as ---g-f_I2yQ_000001.wav. Videos are not read: extract their sound first. Captions are sentences around the
    label. Clips whose video is validation data of AudioCaps below the same root are left out of training.
    """

    family = "vgg"

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        table = find(folder, "vggsound.csv", what="the labels")
        sounds = {path.stem: path for path in sounds_below(folder)}
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
            clips = []
            for video, start, label in rows[split]:
                name = f"{video}_{start:06d}"
                inputs = {"audio": sounds.get(name), "text": [template.format(label) for template in TEMPLATES]}
                about = {"license": LICENSE, "target": targets[label], "youtube_id": video, "start": start}
                if video not in apart:
                    clips.append(Record(f"vgg_{name}", f"VGGSound {split}", inputs, {"label": label}, about))
            return present(clips, "audio", table, HINT)

        yield Split("val/vggsound/vggsound_test", records("test", set()), self.encode, classes=labels)
        apart = {record.about["youtube_id"] for record in held_out("audiocaps")}
        yield Split("train/audio_text/vggsound_train", records("train", apart), self.encode)

    def group(self, record: Record) -> tuple[str, str]:
        return "youtube", record.about["youtube_id"]
