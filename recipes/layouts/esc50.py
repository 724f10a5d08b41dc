"""ESC-50 (K. J. Piczak, ACM Multimedia 2015)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onepeace.config.reader import Probability
from onepeace.datasets.layout import Encoded, HeldOut, Layout, Record, Skipped, Split, option, shuffled
from onepeace.datasets.media import RATE, load_sound, ogg
from onepeace.datasets.reading import read_json
from onepeace.errors import UserError

SECONDS = 5
ESC10 = frozenset({0, 1, 10, 11, 12, 20, 21, 38, 40, 41})
"""Targets of the ten classes that are under CC BY, the ESC-10 part."""


@dataclass(frozen=True)
class ESC50(Layout):
    """ESC-50: 2,000 five-second sounds of 50 classes, from github.com/karolpiczak/ESC-50.

    SOURCE is the checkout: audio/FOLD-CLIP-TAKE-TARGET.wav. The sounds become 16 kHz mono Ogg Vorbis of exactly five
    seconds. Fold 5 is validation data, folds 1 to 4 are training data. Captions are three sentences per class
    (esc50_captions.json).
    """

    level: Probability = option(0.9, "compression of Vorbis, 0 (best) to 1 (smallest)")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        captions = read_json(Path(__file__).with_name("esc50_captions.json"))  # in the order of the targets
        misnamed = []
        records = []
        for clip in _clips(folder, captions):
            if isinstance(clip, Skipped):
                misnamed.append(clip)
            else:
                records.append(clip)
        if not records:
            raise UserError("no sounds named FOLD-CLIP-TAKE-TARGET.wav, such as audio/1-100032-A-0.wav", where=folder)
        val = []
        train = []
        for record in shuffled(records):
            if record.about["fold"] == 5:
                val.append(record)
            else:
                train.append(record)
        yield Split("val/esc50_fold5/esc50_fold5", [*misnamed, *val], self.encode, classes=list(captions))
        yield Split("train/audio_text/esc50", train, self.encode)

    def encode(self, record: Record) -> Encoded:
        """Exactly five seconds of the sound of a record."""
        samples = load_sound(record.inputs["audio"], SECONDS)
        padded = np.pad(samples, (0, RATE * SECONDS - len(samples)))
        return Encoded({"ogg": ogg(padded, self.level)})


def _clips(folder: Path, captions: dict[str, list[str]]) -> Iterator[Record | Skipped]:
    """The clips, with fold and target from the names of their files."""
    names = list(captions)
    for path in sorted(folder.rglob("*.wav")):
        name = re.fullmatch(r"([1-5])-(\d+)-([A-Z])-(\d+)", path.stem)
        target = int(name[4]) if name else -1
        if name is None or target >= len(names):
            yield Skipped(str(path), "not named FOLD-CLIP-TAKE-TARGET with a target of 0 to 49")
            continue
        fold, recording, take = name.group(1, 2, 3)
        label = names[target]
        yield Record(
            key=f"esc50_{fold}-{recording}-{take}-{target}",
            source="ESC-50",
            inputs={"audio": path, "text": captions[label]},
            targets={"label": label},
            about={
                "license": "CC BY 3.0" if target in ESC10 else "CC BY-NC 3.0",
                "target": target,
                "fold": int(fold),
                "freesound_id": recording,
            },
        )


layout = ESC50()
