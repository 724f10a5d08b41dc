"""Add a modality to the bundled model: readings of a motion sensor, found by words. The package knows nothing of it.

    python examples/add_a_modality.py FOLDER

An adapter turns readings into tokens, a processor turns files into readings, and one entry of each registers it for
training, `encode`, the index and every command. As in the second stage of ONE-PEACE, the text branch and the shared
attention are frozen, and only the new branch is trained: here on made-up readings of five kinds, in 15 seconds.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import onepeace
from onepeace.errors import UserError
from onepeace.files import source
from onepeace.layers.position import SequencePositions, sequence_buckets, sequence_table_rows
from onepeace.model import ADAPTERS, Adapter, AdapterOptions, StemOutput, TokenSequence
from onepeace.model.sequence import padding
from onepeace.processors import PROCESSORS, Processor
from onepeace.train.recipe import read_recipe
from onepeace.train.trainer import train


class MotionAdapter(Adapter):
    """Readings (B, T, 6), of which ``steps`` (B,) are real, as T tokens after CLS."""

    def __init__(self, options: AdapterOptions, *, num_buckets: int = 16):
        super().__init__(options, sequence_table_rows(num_buckets))
        self.num_buckets = num_buckets
        self.proj = nn.Linear(6, options.dim)
        self.pos_embed = SequencePositions(options.dim, num_positions=64)

    def stem_tokens(self, batch: dict[str, Tensor]) -> StemOutput:
        tokens = self.proj(batch["readings"].to(self.proj.weight.dtype))
        return StemOutput(tokens, padding(batch["steps"], tokens.shape[1]), (tokens.shape[1],))

    def forward(self, stem: StemOutput, keep: Tensor | None = None) -> TokenSequence:
        tokens, mask = self.with_cls(stem)
        tokens = tokens + self.pos_embed(stem.grid)
        buckets = sequence_buckets(tokens.shape[1], self.num_buckets, tokens.device)
        return self.assemble(tokens, mask, stem, buckets, self.bias_tables(), keep)

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["steps"]


class MotionProcessor(Processor):
    """Files .imu, rows of six float32 (acceleration and rotation about three axes), as (T, 6), T at most 60."""

    key = "motion"
    suffixes = frozenset({".imu"})

    def decode(self, item: object) -> Tensor:
        data = source.read_bytes(item)
        if not data or len(data) % 24:
            raise UserError(f"{source.describe(item)}: {len(data)} bytes, which should be a multiple of 24 above 0")
        return torch.from_numpy(np.frombuffer(data, "<f4").reshape(-1, 6)[:60].copy())

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        steps = torch.tensor([len(sample) for sample in samples])
        return {"readings": nn.utils.rnn.pad_sequence(samples, batch_first=True), "steps": steps}

    def example(self, share: float, generator: torch.Generator) -> Tensor:
        return torch.randn(max(1, round(60 * share)), 6, generator=generator)


ADAPTERS["motion"] = MotionAdapter
PROCESSORS["motion"] = MotionProcessor
PROCESSORS["text"] = PROCESSORS.pop("text")  # it accepts any string, so it comes last

KINDS = {  # mean and amplitude of the six channels
    "lying still": ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    "falling down": ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    "spinning round": ([0, 0, 1, 0, 0, 2], [0, 0, 0, 0, 0, 0]),
    "shaken hard": ([0, 0, 1, 0, 0, 0], [2, 2, 0, 0, 0, 0]),
    "nodding": ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 2, 0]),
}
RECIPE = """
model:
  from: tiny
  modalities: [text, motion]
  projections: [text, motion]
  adapters: {motion: {num_buckets: 16, mean_cls: true}}
  copy: {motion: text} # the new FFNs start from those of words
data: {train: [{shards: "motion.tar", pair: [motion, text]}]}
freeze: {except: [adapters.motion.*, norms.motion.*, blocks.*.ffn.motion.*, heads.motion.*]}
objective: [{term: contrastive, multi_positive: true}]
optim: {lr: 2.0e-3}
schedule: {steps: 12, warmup_steps: 3}
run: {batch_size: 25, workers: 0, log_every: 4, precision: float32}
"""


def readings(kind: str, rng: np.random.Generator) -> bytes:
    """A made-up file of one kind."""
    mean, swing = (np.array(values) for values in KINDS[kind])
    phase = np.arange(rng.integers(8, 40))[:, None] * rng.uniform(0.8, 1.2) + rng.uniform(0, 6, 6)
    return (mean + swing * np.sin(phase) + rng.normal(0, 0.1, phase.shape)).astype("<f4").tobytes()


def write_shard(path: Path, rng: np.random.Generator) -> None:
    """Twenty files of each kind with their captions, as one shard."""
    with tarfile.open(path, "w") as tar:
        for number in range(20):
            for kind in KINDS:
                key = f"{kind}-{number}".replace(" ", "_")
                about = json.dumps({"captions": [kind]}).encode()
                for name, data in ((f"{key}.imu", readings(kind, rng)), (f"{key}.json", about)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the shard, the run and the new model; made if it is not there")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_shard(folder / "motion.tar", rng)
    (folder / "recipe.yaml").write_text(RECIPE)
    trained = train(read_recipe(folder / "recipe.yaml", [f"data.root={folder}", f"run.out={folder / 'run'}"]))

    model = onepeace.load(trained)
    right = 0
    for number, kind in enumerate(list(KINDS) * 4):  # files that are not in the training data
        path = folder / f"new{number}.imu"
        path.write_bytes(readings(kind, rng))
        chances = model.classify([path], list(KINDS))[0]
        right += list(KINDS)[int(chances.argmax())] == kind
    print(f"{right} of {4 * len(KINDS)} new files are called what they are; the model: {trained}")


if __name__ == "__main__":
    main()
