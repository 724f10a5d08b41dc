"""Large photographs and long sounds, made of the samples: python docs/results/large_files.py FOLDER COUNT.

A picture has 12 megapixels and 1.5 MB; each tenth file is a sound of a minute, 570 kB. The first `DIFFERENT` files
are made; the others are those again with another comment, so that no two files have the same bytes.
"""

import argparse
import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image, ImageChops, ImageOps

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
WIDTH, HEIGHT = 4000, 3000
MARGIN = 400
"""Pixels by which an enlarged sample is larger than a picture that is cut from it."""
NOISE = 24
"""Largest value added to a pixel: with it, a picture has about 1.5 MB at QUALITY."""
QUALITY = 80
RATE, SECONDS = 44_100, 60
SOUND_EVERY = 10
SOUNDS_OF_A_JOB = 50
PER_FOLDER = 1000
DIFFERENT = 1000
"""Number of the first file that repeats another one."""


def make(folder: Path, num_files: int) -> None:
    """Write pictures and, in place of each tenth, a sound."""
    for number in range(0, num_files, PER_FOLDER):
        _path(folder, number).parent.mkdir(parents=True, exist_ok=True)
        _path(folder, number + SOUND_EVERY - 1).parent.mkdir(parents=True, exist_ok=True)
    write_files(folder, range(min(num_files, DIFFERENT)), seed=0)
    for number in range(DIFFERENT, num_files):
        repeat(folder, number)


def repeat(folder: Path, number: int) -> None:
    """Write a file with the content of another one, and its number as a comment."""
    comment = f"{number:06}"
    if _is_sound(number):
        source = av.open(_path(folder, number % DIFFERENT))
        with source, av.open(_path(folder, number), "w") as target:
            stream = target.add_stream_from_template(source.streams.audio[0])
            stream.metadata["comment"] = comment
            for packet in source.demux(audio=0):
                if packet.dts is not None:  # the last one is empty
                    packet.stream = stream
                    target.mux(packet)
    else:
        content = _path(folder, number % DIFFERENT).read_bytes()
        segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment.encode()
        _path(folder, number).write_bytes(content[:2] + segment + content[2:])


def write_files(folder: Path, numbers: Iterable[int], seed: int) -> None:
    """Write the files with these numbers; with another seed, their contents are others."""
    sounds = []
    by_sample: dict[Path, list[int]] = {}
    samples = sorted((SAMPLES / "images").iterdir())
    for number in numbers:
        if _is_sound(number):
            sounds.append(number)
        else:
            by_sample.setdefault(samples[number % len(samples)], []).append(number)
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(write_pictures, folder, *job, seed) for job in by_sample.items()]
        for start in range(0, len(sounds), SOUNDS_OF_A_JOB):
            jobs.append(pool.submit(write_sounds, folder, sounds[start : start + SOUNDS_OF_A_JOB], seed))
        for job in jobs:
            job.result()


def write_pictures(folder: Path, sample: Path, numbers: Iterable[int], seed: int) -> None:
    """Write pictures cut from one sample, which is enlarged, moved, mirrored and covered with noise."""
    size = (WIDTH + MARGIN, HEIGHT + MARGIN)
    enlarged = ImageOps.fit(Image.open(sample).convert("RGB"), size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).integers(0, NOISE, (size[1], size[0], 3), np.uint8)
    noise = Image.fromarray(grain)
    for number in numbers:
        rng = random.Random(f"{seed} {number}")  # noqa: S311
        picture = _cut(enlarged, rng)
        if rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        picture = ImageChops.add(picture, _cut(noise, rng), offset=-NOISE // 2)
        picture.save(_path(folder, number), quality=QUALITY)


def _cut(image: Image.Image, rng: random.Random) -> Image.Image:
    """WIDTH x HEIGHT pixels of an image, anywhere in it."""
    left, top = rng.randrange(MARGIN), rng.randrange(MARGIN)
    return image.crop((left, top, left + WIDTH, top + HEIGHT))


def write_sounds(folder: Path, numbers: Iterable[int], seed: int) -> None:
    """Write sounds of a minute: samples one after another, in any order and loudness, and noise."""
    clips = []
    for path in sorted((SAMPLES / "sounds").iterdir()):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        positions = np.arange(0, len(mono), rate / RATE)
        clips.append(np.interp(positions, np.arange(len(mono)), mono).astype(np.float32))
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        with soundfile.SoundFile(_path(folder, number), "w", RATE, 1, format="OGG") as file:
            num_left = RATE * SECONDS
            while num_left:
                clip = clips[rng.integers(len(clips))][:num_left] * rng.uniform(0.3, 0.9)
                file.write(clip + 0.003 * rng.standard_normal(len(clip), np.float32))
                num_left -= len(clip)


def _is_sound(number: int) -> bool:
    return number % SOUND_EVERY == SOUND_EVERY - 1


def _path(folder: Path, number: int) -> Path:
    part = f"{number // PER_FOLDER:03}"
    if _is_sound(number):
        return folder / "sounds" / part / f"REC_{number:06}.ogg"
    return folder / "pictures" / part / f"IMG_{number:06}.jpg"


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    make(args.folder, args.count)


if __name__ == "__main__":
    main()
