"""Sounds of datasets: 16 kHz mono Ogg Vorbis."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.datasets.layout import Encoded, Layout, Record, option

RATE = 16000
"""Samples per second of the sounds in the shards."""

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
"""Suffixes of the sound files that are read. Video files are not read: extract their sound first."""

CAPTIONS = ("{}", "the sound of {}", "a recording of {}")
"""Templates of captions for the label of a sound."""

HINT = f"{', '.join(sorted(SOUNDS))} are read, not videos: extract their sound"


@dataclass(frozen=True)
class Sounds(Layout):
    """A layout whose sounds are stored as Ogg Vorbis."""

    seconds: float = option(10.0, "longest sound; more is cut off")
    level: float = option(0.9, "compression of Vorbis, 0 (best) to 1 (smallest)")

    def encode(self, record: Record) -> Encoded:
        """The first `seconds` of the sound of a record."""
        samples = load_sound(record.inputs["audio"], self.seconds)
        return Encoded({"ogg": ogg(samples, self.level)})


def sounds_below(folder: Path) -> list[Path]:
    """The sound files of a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)


def load_sound(path: Path, seconds: float) -> Any:
    """(n,) float32 from -1 to 1: the first `seconds` of a file, mono, at `RATE`; UserError when it cannot be read."""
    from onepeace.processors import AudioProcessor

    return AudioProcessor(sample_rate=RATE).load(path, seconds=seconds).clamp(-1, 1).numpy()


def ogg(samples: Any, level: float) -> bytes:
    """Mono float samples at `RATE` as Ogg Vorbis; level is libsndfile's, 0 (best) to 1 (smallest)."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="OGG", subtype="VORBIS", compression_level=level)
    return buffer.getvalue()
