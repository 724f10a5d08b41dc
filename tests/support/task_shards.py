"""Shards of small tasks with targets, which a small model soon learns: answers, boxes, choices, tags."""

import numpy as np
from support.small_shards import COLOURS, RATE, TONES, png, sine, square, wav, write_shard

FEW = ("red", "green", "blue", "white")
PITCHES = {name: TONES[name] for name in ("low", "middle", "piercing")}


def boxed(colour, rng):
    """A grey picture with a coloured box somewhere, and the box: [x0, y0, x1, y1] of its sides."""
    pixels = np.full((24, 24, 3), 120, np.uint8)
    x, y = rng.integers(0, 13, 2)
    width, height = rng.integers(8, 12, 2)
    pixels[y : y + height, x : x + width] = colour
    sides = np.array([x, y, x + width, y + height]) / 24
    return png(pixels), sides.tolist()


def sample(media, caption, **targets):
    return media, {"captions": [caption], "targets": targets}


class TaskSamples:
    """Samples of each shard, by key."""

    def __init__(self, each):
        self.rng = np.random.default_rng(3)
        self.answers = {}
        self.boxes = {}
        self.choices = {}
        self.tags = {}
        for number in range(each):
            for colour in FEW:
                self.add_pictures(f"{colour}{number}", colour)
            for pitch in PITCHES:
                self.add_sounds(f"{pitch}{number}", pitch)

    def add_pictures(self, key, colour):
        picture = square(COLOURS[colour], self.rng)
        answers = {colour: 1.0, "rare": 0.3}
        self.answers[key] = sample(picture, "what colour is it?", answers=answers)

        picture, box = boxed(COLOURS[colour], self.rng)
        self.boxes[key] = sample(picture, "the box", box=box)

    def add_sounds(self, key, pitch):
        wave = sine(PITCHES[pitch], RATE // 2)
        candidates = self.rng.permutation(sorted(PITCHES)).tolist()
        self.choices[key] = sample(
            wav(wave), "which tone is it?", candidates=candidates, choice=candidates.index(pitch)
        )

        second = str(self.rng.choice(sorted(PITCHES)))
        both = wave + sine(PITCHES[second], RATE // 2)
        self.tags[key] = sample(wav(both), "tones", labels=sorted({pitch, second}))


def write_task_shards(folder, each=16):
    """answers.tar, boxes.tar, choices.tar and tags.tar in ``folder``, which is returned."""
    samples = TaskSamples(each)
    write_shard(folder / "answers.tar", samples.answers)
    write_shard(folder / "boxes.tar", samples.boxes)
    write_shard(folder / "choices.tar", samples.choices, "wav")
    write_shard(folder / "tags.tar", samples.tags, "wav")
    return folder
