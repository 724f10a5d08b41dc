"""Shards of small tasks with targets, which a small model soon learns: answers, boxes, choices, tags, events."""

import io

import numpy as np
import soundfile
from PIL import Image
from support.small_shards import COLOURS, TONES, square, write_shard

FEW = ("red", "green", "blue", "white")
RATE = 16000


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(wave):
    file = io.BytesIO()
    soundfile.write(file, 0.3 * wave, RATE, format="WAV")
    return file.getvalue()


def boxed(colour, rng):
    """A grey picture with a coloured box somewhere, and where: [x0, y0, x1, y1] of its sides."""
    pixels = np.full((24, 24, 3), 120, np.uint8)
    x, y = rng.integers(0, 13, 2)
    width, height = rng.integers(8, 12, 2)
    pixels[y : y + height, x : x + width] = colour
    return png(pixels), [float(side / 24) for side in (x, y, x + width, y + height)]


def burst(frequency, rng):
    """A second of quiet noise in which a tone sounds for a while, and when."""
    onset, length = rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.5)
    time = np.arange(RATE) / RATE
    sounds = (time >= onset) & (time < onset + length)
    return wav(np.sin(2 * np.pi * frequency * time) * sounds + rng.normal(0, 0.01, RATE)), onset, onset + length


def write_task_shards(folder, each=16):
    """answers.tar, boxes.tar, choices.tar, tags.tar and events.tar in ``folder``, which is returned."""
    rng = np.random.default_rng(3)
    answers, boxes, choices, tags, events = {}, {}, {}, {}, {}
    tones = {name: TONES[name] for name in ("low", "middle", "piercing")}
    for i in range(each):
        for name in FEW:
            scores = {name: 1.0, "rare": 0.3}
            question = {"captions": ["what colour is it?"], "targets": {"answers": scores}}
            answers[f"{name}{i}"] = (square(COLOURS[name], rng), question)
            picture, box = boxed(COLOURS[name], rng)
            boxes[f"{name}{i}"] = (picture, {"captions": ["the box"], "targets": {"box": box}})
        time = np.arange(RATE // 2) / RATE
        for name, frequency in tones.items():
            wave = np.sin(2 * np.pi * frequency * time)
            candidates = [str(one) for one in rng.permutation(sorted(tones))]
            targets = {"candidates": candidates, "choice": candidates.index(name)}
            choices[f"{name}{i}"] = (wav(wave), {"captions": ["which tone is it?"], "targets": targets})
            other = str(rng.choice(sorted(tones)))
            both = wav(wave + np.sin(2 * np.pi * tones[other] * time))
            tags[f"{name}{i}"] = (both, {"captions": ["tones"], "targets": {"labels": sorted({name, other})}})
            sound, onset, offset = burst(frequency, rng)
            events[f"{name}{i}"] = (sound, {"captions": ["a tone"], "targets": {"events": [[onset, offset, name]]}})
    for name, samples, suffix in (("answers", answers, "png"), ("boxes", boxes, "png"), ("choices", choices, "wav"),
                                  ("tags", tags, "wav"), ("events", events, "wav")):  # fmt: skip
        write_shard(folder / f"{name}.tar", samples, suffix)
    return folder
