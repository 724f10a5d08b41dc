"""Draws heat maps of explanations, boxes of phrases, and all samples with their captions (`make readme`)."""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from support.readme import ROOT, like_checkout

PICTURES = ROOT / "docs" / "pictures"
SAMPLES = ROOT / "data" / "samples"
HEIGHT = 300

PHRASES = [
    ("bird", "the small bird on the branch", (0.075, 0.22, 0.95, 0.95)),
    ("bus", "the green and white bus", (0.23, 0.33, 0.59, 0.66)),
    ("car", "the blue car with its boot open", (0.0, 0.23, 0.45, 0.86)),
    ("car", "the woman beside the car", (0.425, 0.30, 0.65, 0.9)),
    ("clock", "the round clock", (0.325, 0.11, 0.69, 0.83)),
    ("coffee", "the cup of coffee", (0.25, 0.04, 0.70, 0.67)),
    ("dog", "the dog under the tree", (0.145, 0.0, 0.75, 0.69)),
    ("eagle", "the young eagle", (0.165, 0.165, 0.78, 0.89)),
    ("gull", "the gull in the air", (0.355, 0.035, 1.0, 0.515)),
    ("horses", "the white horse in front", (0.0, 0.375, 0.405, 0.775)),
    ("horses", "the grey horse on the right", (0.57, 0.42, 0.77, 0.67)),
    ("motorcycle", "the man on the motorcycle", (0.395, 0.29, 0.715, 0.84)),
    ("owl", "the owl", (0.31, 0.025, 0.6, 0.96)),
    ("parrot", "the red and blue parrot", (0.2, 0.11, 0.91, 0.925)),
    ("rain", "the yellow taxi", (0.19, 0.575, 0.42, 0.85)),
    ("sea", "the riders on the beach", (0.355, 0.265, 0.74, 0.75)),
    ("sunflower", "the big sunflower", (0.125, 0.06, 0.835, 1.0)),
]
"""A picture of the samples, words, and the box they mean, relative to the picture."""

RECIPE = """
model:
  from: tiny
  modalities: [text, image]
  projections: []
  logit_scale: false
  heads: {classifier: {kind: classifier, "on": image, pool: attention, hidden_ratio: 2}}
freeze: [adapters.image.stem.network.*]
data:
  root: .
  train: [{shards: "phrases.tar", pair: [image, text], targets: [box]}]
  stem_views: {image: 1}
objective: [{term: box}]
optim: {lr: 5.0e-4, betas: [0.9, 0.98], weight_decay: 0.05, grad_clip: 3.0}
schedule: {steps: 300, warmup_steps: 20}
run: {batch_size: 17, workers: 0, log_every: 100, save_every: 0, keep: 1, out: grounding}
"""


def run(*command: str) -> str:
    """What a command of the project prints."""
    return subprocess.run(
        [sys.executable, "-m", "onepeace", *command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def side_by_side(pictures: list[Path], name: str) -> None:
    """Pictures of one height in a row, as a PNG of 256 colours."""
    found = [Image.open(path).convert("RGB") for path in pictures]
    scaled = [one.resize((one.width * HEIGHT // one.height, HEIGHT), Image.Resampling.LANCZOS) for one in found]
    row = Image.new("RGB", (sum(one.width for one in scaled) + 8 * (len(scaled) - 1), HEIGHT), "white")
    left = 0
    for one in scaled:
        row.paste(one, (left, 0))
        left += one.width + 8
    row.quantize(256).save(PICTURES / name, optimize=True)


def explained(folder: Path) -> None:
    """A phrase over a picture, and over the time line of a sound."""
    dog, bells = folder / "dog.png", folder / "bells.png"
    run("explain", str(SAMPLES / "images/dog.jpg"), "--text", "a dog", "-o", str(dog))
    run("explain", str(SAMPLES / "sounds/church_bells.ogg"), "--text", "church bells ringing", "-o", str(bells))
    side_by_side([dog, bells], "explain.png")


def grounded(folder: Path) -> None:
    """Boxes of a model that was overfitted on them: this shows that the way works, not that the model is good."""
    with tarfile.open(folder / "phrases.tar", "w") as shard:
        for i, (picture, words, box) in enumerate(PHRASES):
            about = {"captions": [words], "targets": {"box": box}}
            picture_bytes = (SAMPLES / "images" / f"{picture}.jpg").read_bytes()
            for suffix, content in (("jpg", picture_bytes), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"phrase{i}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    (folder / "grounding.yaml").write_text(RECIPE)
    run("train", "grounding.yaml")
    drawn = []
    for picture, words in (("car", PHRASES[2][1]), ("rain", PHRASES[14][1]), ("horses", PHRASES[9][1])):
        file = SAMPLES / "images" / f"{picture}.jpg"
        options = ["--model", "grounding/model", "--text", words, "--draw", str(folder / "drawn")]
        print(run("classify", str(file), *options))
        drawn.append(folder / "drawn" / f"{file.name}.png")
    side_by_side(drawn, "grounded.png")


def captioned(_: Path) -> None:
    """What the bundled captioner writes of every sample, good and bad: nothing is picked."""
    found = [json.loads(line) for line in run("caption", str(SAMPLES), "--json").splitlines()]
    pictures = [one for one in found if not one["path"].endswith(".ogg")]
    sounds = [one for one in found if one["path"].endswith(".ogg")]
    columns, width, height, line = 6, 200, 150, 17
    tile = height + 3 * line + 8
    rows, text_rows = -(-len(pictures) // columns), -(-len(sounds) // 3)
    page = Image.new("RGB", (columns * (width + 8), rows * tile + text_rows * (line + 4) + 12), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, one in enumerate(pictures):
        left, top = i % columns * (width + 8), i // columns * tile
        picture = Image.open(one["path"]).convert("RGB")
        picture.thumbnail((width, height), Image.Resampling.LANCZOS)
        page.paste(picture, (left, top))
        draw.text((left, top + height + 2), textwrap.fill(one["caption"], 30), "black", font)
    for i, one in enumerate(sounds):
        place = (i // text_rows * page.width // 3, rows * tile + 8 + i % text_rows * (line + 4))
        draw.text(place, f"{Path(one['path']).name}: {one['caption']}", "black", font)
    page.quantize(256).save(PICTURES / "captions.png", optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, like_checkout(Path(temporary)) as folder:
        explained(folder)
        grounded(folder)
        captioned(folder)


if __name__ == "__main__":
    main()
