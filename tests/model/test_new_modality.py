"""A fourth modality is one adapter class, one decoder class and two entries, all of them in this file.

With these the model, its decoder and the objective take it, the loop trains it from shards, `encode` gives its vectors,
and `onepeace search` and `onepeace embed` find its files. Nothing in the package knows of it.
"""

import functools
import json
import os

import numpy as np
import pytest
import torch
from support.small_models import VARIANTS, batch_of, item, randomise, small_model
from support.small_shards import write_shard
from support.training import terms
from torch import nn

import onepeace
from onepeace.config import MaskedDecoderConfig, ModelConfig
from onepeace.data.batch import Batch, Mask
from onepeace.errors import UserError
from onepeace.files import source
from onepeace.hub.folder import read_config
from onepeace.layers.position import SequencePositions, sequence_buckets, sequence_table_rows, trunc_normal
from onepeace.model import ADAPTERS, Adapter, OnePeace, Stem
from onepeace.model.sequence import padding
from onepeace.processors import PROCESSORS, Processor, guess
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.objective import Objective
from onepeace.train.recipe import read_recipe

MAGIC = b"IMU1"


class MotionAdapter(Adapter):
    """Readings of an inertial sensor: (B, T, 6) with ``steps`` (B,) of them real."""

    def __init__(self, key, dim, num_heads, num_tables, *, num_buckets=4, num_positions=30):
        super().__init__(key, dim, num_heads, num_tables, sequence_table_rows(num_buckets))
        self.num_buckets = num_buckets
        self.proj = nn.Linear(6, dim)
        self.gravity = nn.Parameter(torch.empty(dim))
        self.pos_embed = SequencePositions(dim, num_positions)

    def reset_parameters(self):
        super().reset_parameters()
        trunc_normal(self.gravity)

    def stem_tokens(self, batch):
        steps, readings = batch["steps"], batch["readings"]
        # Readings come as float32 whatever the model computes in.
        tokens = self.proj(readings.to(self.proj.weight.dtype)) + self.gravity
        return Stem(tokens, padding(steps, readings.shape[1]), (tokens.shape[1],))

    def forward(self, stem, keep=None):
        tokens, mask = self.with_cls(stem)
        tokens = tokens + self.pos_embed(stem.grid)
        buckets = sequence_buckets(tokens.shape[1], self.num_buckets, tokens.device)
        return self.assemble(tokens, mask, stem, buckets, self.bias_tables(), keep)

    def token_lengths(self, batch):
        return batch["steps"]

    @staticmethod
    def decoder_positions(dim, *, num_positions=30):
        return SequencePositions(dim, num_positions)


class MotionProcessor(Processor):
    """Paths and bytes of .imu files, which are MAGIC and then rows of six little-endian float32, to (T, 6) float32.

    max_steps: readings kept, from the beginning.
    """

    key = "motion"
    suffixes = frozenset({".imu"})

    def __init__(self, *, max_steps=24):
        self.max_steps = max_steps

    @classmethod
    def matches(cls, item):
        if isinstance(item, (str, os.PathLike)):
            return source.suffix(item) in cls.suffixes
        return isinstance(item, (bytes, bytearray, memoryview)) and bytes(item[: len(MAGIC)]) == MAGIC

    def decode(self, item):
        name, data = source.describe(item), source.read_bytes(item)
        if not data.startswith(MAGIC):
            raise UserError(f"{name}: not readings of a sensor (it begins with {data[:4]!r})")
        size = len(data) - len(MAGIC)
        if size == 0 or size % 24:
            raise UserError(f"{name}: {size} bytes of readings, which should be a multiple of 24 above 0")
        readings = np.frombuffer(data, "<f4", offset=len(MAGIC)).reshape(-1, 6)
        if not np.isfinite(readings).all():
            raise UserError(f"{name}: the readings hold NaN or infinite values")
        return torch.from_numpy(readings[: self.max_steps].astype(np.float32))

    def collate(self, samples):
        readings = nn.utils.rnn.pad_sequence(samples, batch_first=True)
        return {"readings": readings, "steps": torch.tensor([len(sample) for sample in samples])}

    def size(self, sample):
        return len(sample)


def register(patch):
    """Make both entries; undoing `patch` takes them out again and leaves the order as it was."""
    patch.setitem(ADAPTERS, "motion", MotionAdapter)
    text = PROCESSORS["text"]
    patch.delitem(PROCESSORS, "text")  # it takes every string that is left, so it has to be asked last
    patch.setitem(PROCESSORS, "motion", MotionProcessor)
    patch.setitem(PROCESSORS, "text", text)


@pytest.fixture
def motion(monkeypatch):
    register(monkeypatch)


@pytest.fixture
def config(motion):
    adapters = {"text": VARIANTS["text"][1], "motion": {"num_positions": 25}}
    decoder = MaskedDecoderConfig(16, 2, 2, 24, {"motion": {"num_positions": 25}})
    return ModelConfig(32, 24, 2, 4, 48, adapters=adapters, projections=tuple(adapters), decoder=decoder)


def motions(steps):
    generator = torch.Generator().manual_seed(1)
    return {"readings": torch.randn(len(steps), max(steps), 6, generator=generator), "steps": torch.tensor(steps)}


@torch.no_grad()
def test_forward_and_features_take_it(config):
    model = randomise(OnePeace(config)).eval()
    text, motion = batch_of(small_model("text"), range(3))["text"], motions([20, 4, 9])
    vectors = model({"motion": motion, "text": text})
    assert vectors["motion"].shape == (3, 24)
    tokens = model.features({"motion": motion, "text": text})
    assert tokens["motion"].shape == (3, 21, 32)
    for i, steps in enumerate([20, 4, 9]):
        alone = {"readings": motion["readings"][i : i + 1, :steps], "steps": motion["steps"][i : i + 1]}
        assert torch.allclose(model({"motion": alone})["motion"], vectors["motion"][i : i + 1], atol=2e-6)
        joint = model.features({"motion": alone, "text": item("text", i)})["motion"]
        assert torch.allclose(joint[0], tokens["motion"][i, : steps + 1], atol=1e-5)


def test_a_foreign_adapter_is_initialised(config):
    model = OnePeace(config)
    adapter = model.adapters["motion"]
    assert 0 < adapter.gravity.abs().max() <= 0.02
    assert 0 < adapter.cls_token.abs().max() <= 0.02
    assert not adapter.bias_tables[0].any()


def test_the_objective_trains_it(config):
    """Contrast, denoising alone and joint: every parameter learns, and the loss falls in a few steps."""
    model = OnePeace(config).train()
    text, motion = batch_of(small_model("text"), range(3))["text"], motions([20, 4, 9])
    masks = {}
    for key, lengths in {"text": model.adapters["text"].token_lengths(text), "motion": motion["steps"]}.items():
        masked = torch.zeros(3, int(lengths.max()) + 1, dtype=torch.bool)
        masked[:, 1::2] = True
        masked &= torch.arange(masked.shape[1]) <= lengths[:, None]
        places = torch.arange(masked.shape[1]).expand(3, -1)
        keep = places.masked_fill(masked | (places > lengths[:, None]), 999).sort(1).values
        masks[key] = {name: Mask(keep.masked_fill(keep == 999, -1), masked) for name in ("unimodal", "joint")}
    batch = Batch({"text": text, "motion": motion}, masks=masks)
    objective = Objective(model, terms({"contrastive": {}, "denoising/motion": {}, "denoising/text+motion": {}}), {})
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        found = objective(batch)
        assert set(found) == {
            "loss",
            "padding",
            "contrastive/text+motion",
            "denoising/motion",
            "denoising/text+motion:text",
            "denoising/text+motion:motion",
        }
        losses.append(found["loss"].item())
        optimizer.zero_grad()
        found["loss"].backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


# Files


def imu(readings):
    return MAGIC + np.asarray(readings, "<f4").tobytes()


BROKEN = {
    "empty": (b"", "begins with b''"),
    "other kind": (b"RIFF" + bytes(24), "begins with b'RIFF'"),
    "no reading": (MAGIC, "0 bytes of readings"),
    "cut": (imu(np.ones((3, 6)))[:-1], "71 bytes of readings"),
    "not finite": (imu(np.full((3, 6), np.nan)), "NaN"),
}


def test_files_are_told_from_texts(motion, tmp_path):
    known = dict.fromkeys(PROCESSORS)
    for given in (tmp_path / "walk.imu", "walk.IMU", imu(np.zeros((1, 6)))):
        assert guess(given, known) == "motion"
    assert guess("a walk", known) == "text"
    assert guess("walk.wav", known) == "audio"


# Training, encoding, searching

# Of acceleration along three axes and turning about them: the mean, and how far it swings.
KINDS = {
    "lying still": ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    "falling down": ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    "spinning round": ([0, 0, 1, 0, 0, 2], [0, 0, 0, 0, 0, 0]),
    "shaken hard": ([0, 0, 1, 0, 0, 0], [2, 2, 0, 0, 0, 0]),
    "nodding": ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 2, 0]),
}
CAPTION = "a sensor that is {}"

RECIPE = """
model:
  size: tiny
  dim: 32
  embed_dim: 32
  depth: 2
  num_heads: 2
  ffn_dim: 64
  init_std: 0.1
  modalities: [text, motion]
  projections: [text, motion]
  adapters:
    text: {vocab_size: 400, num_positions: 32, num_buckets: 8}
    motion: {num_positions: 30, num_buckets: 8}
  decoder: {dim: 16, depth: 1, num_heads: 2, ffn_dim: 32, options: {motion: {num_positions: 30}}}
processors:
  text: {max_tokens: 16}
  motion: {max_steps: 20}
tokenizer: {vocab_size: 300}
data:
  train:
    - {shards: "motion-*.tar", pair: [motion, text]}
objective:
  - {term: contrastive, multi_positive: true}
  - {term: denoising, on: [motion], weight: 0.5}
mask:
  motion: {unit: span, unimodal: 0.5}
optim: {lr: 3.0e-3}
schedule: {steps: 40, warmup_steps: 10}
run: {batch_size: 16, workers: 0, log_every: 4, save_every: 0, precision: float32}
"""


def example(kind, rng):
    """An .imu file of one kind, of 8 to 26 readings."""
    mean, swing = map(np.array, KINDS[kind])
    steps = rng.integers(8, 27)
    phase = np.arange(steps)[:, None] * rng.uniform(0.8, 1.2) + rng.uniform(0, 6, 6)
    return imu(mean + swing * np.sin(phase) + rng.normal(0, 0.1, (steps, 6)))


def write_shards(folder, shards=2, each=6):
    """A few examples of every kind in each shard, and one broken file in the first."""
    rng = np.random.default_rng(1)
    for number in range(shards):
        samples = [(f"{kind}{i}".replace(" ", "_"), kind, example(kind, rng)) for i in range(each) for kind in KINDS]
        if number == 0:
            samples.append(("broken", "nodding", BROKEN["cut"][0]))
        about = {key: (readings, {"captions": [CAPTION.format(kind)]}) for key, kind, readings in samples}
        write_shard(folder / f"motion-{number}.tar", about, "imu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model folder of a run over such shards."""
    root = tmp_path_factory.mktemp("motion")
    write_shards(root)
    (root / "recipe.yaml").write_text(RECIPE)
    recipe = read_recipe(root / "recipe.yaml", [f"data.root={root}", f"run.out={root / 'run'}"])
    with pytest.MonkeyPatch.context() as patch:  # no longer than the run: this fixture outlives the test
        register(patch)
        return loop.train(recipe)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files that were not trained on, three of each kind, and which file is of which kind."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(2)
    type_ids = {}
    for kind in KINDS:
        for _ in range(3):
            path = folder / f"{len(type_ids):02}.imu"
            path.write_bytes(example(kind, rng))
            type_ids[path] = kind
    return folder, type_ids


def test_the_loop_trains_it_from_shards(trained):
    lines = read_log(trained.parent / "log.jsonl")
    for name in ("contrastive/text+motion", "denoising/motion"):
        assert lines[-1][name] < lines[0][name] - 0.5
    assert sum(line["replaced"] for line in lines) > 0  # the broken one, whose place another took
    assert read_config(trained).processors["motion"] == {"max_steps": 20}


def test_a_vector_has_unit_length_and_does_not_depend_on_company(motion, trained, files):
    model = onepeace.load(trained, device="cpu")
    assert model.modalities == ("text", "motion")
    paths = list(files[1])
    vectors = model.encode([{"motion": path} for path in paths])
    assert vectors.shape == (len(paths), 32)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(paths)), atol=1e-5)
    alone = torch.cat([model.encode([{"motion": path}]) for path in paths])
    assert torch.allclose(alone, vectors, atol=1e-5)
    # Without saying what they are, among texts, as bytes, and one of them broken.
    data = paths[4].read_bytes()
    mixed, failures = model.encode(["nodding", paths[3], data, str(paths[5]), data[:-1]], on_error="skip")
    assert torch.allclose(mixed[1:], vectors[3:6], atol=1e-5)
    assert [(failure.index, failure.name) for failure in failures] == [(4, f"bytes ({len(data) - 1})")]
    half = onepeace.load(trained, device="cpu", dtype="bfloat16").encode(paths)
    assert (half * vectors).sum(1).min() > 0.99


def test_features_number_its_tokens(motion, trained, files):
    model = onepeace.load(trained, device="cpu")
    (path, *_) = files[1]
    tokens = model.features({"motion": path, "text": "nodding"})["motion"]
    count = len(MotionProcessor(max_steps=20).decode(path))
    assert tokens.features.shape == (count, 32)
    assert tokens.unit == "token"
    assert tokens.positions.tolist() == [[i, i + 1] for i in range(count)]


def test_a_trained_caption_finds_files_of_its_kind_first(motion, trained, files):
    model = onepeace.load(trained, device="cpu")
    paths, type_ids = list(files[1]), list(files[1].values())
    cosines = model.similarity(model.encode_text([CAPTION.format(kind) for kind in KINDS]), model.encode(paths))
    for row, kind in zip(cosines, KINDS, strict=True):
        assert [type_ids[i] for i in row.topk(3).indices.tolist()] == [kind] * 3
    chances = model.classify(paths, list(KINDS), template=CAPTION)
    assert [list(KINDS)[i] for i in chances.argmax(1).tolist()] == type_ids


@pytest.fixture
def onepeace_command(motion, trained, command):
    return functools.partial(command, model=trained)


def test_the_command_line_finds_it_by_words(onepeace_command, files):
    folder, type_ids = files
    for kind in KINDS:
        code, out, err = onepeace_command("search", folder, "--text", CAPTION.format(kind), "--top", "3", "--json")
        assert code == 0, err
        hits = [json.loads(line) for line in out.splitlines()]
        assert {hit["modality"] for hit in hits} == {"motion"}
        of = {str(path): found for path, found in type_ids.items()}
        assert {of[path] for path in (hits[0]["path"], *hits[0]["copies"])} == {kind}


def test_a_broken_file_is_listed_and_the_others_are_found(onepeace_command, files, tmp_path):
    folder, _ = files
    for name, (data, _) in BROKEN.items():
        (tmp_path / f"{name}.imu").write_bytes(data)
    query = ("--text", CAPTION.format("nodding"), "--top", "99")
    whole = onepeace_command("search", folder, *query)
    code, out, err = onepeace_command("search", folder, tmp_path, *query)
    assert (code, out) == (1, whole[1])
    assert {line.split()[2] for line in out.splitlines()} == {"kind", "motion"}
    for name, (_, reason) in BROKEN.items():
        assert any(f"{tmp_path / name}.imu: " in line and reason in line for line in err.splitlines())


def test_the_command_line_writes_its_vectors(onepeace_command, trained, files, tmp_path):
    folder, type_ids = files
    assert onepeace_command("embed", folder, "-o", tmp_path / "vectors.npz")[0] == 0
    written = np.load(tmp_path / "vectors.npz")
    assert written["paths"].tolist() == [str(path) for path in type_ids]
    assert set(written["modalities"].tolist()) == {"motion"}
    expected = onepeace.load(trained, device="cpu").encode(list(type_ids), output="numpy")
    assert np.allclose(written["vectors"], expected, atol=1e-5)


def test_the_command_line_classifies_and_draws_its_files(onepeace_command, trained, files, tmp_path):
    """A kind of file that classify and the page do not know must not be left out, nor break them."""
    folder, type_ids = files
    labels = sorted(set(type_ids.values()))
    code, out, _ = onepeace_command("classify", folder, "--labels", ",".join(labels), "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, [answer["path"] for answer in answers]) == (0, [str(path) for path in type_ids])
    code, _, _ = onepeace_command("search", folder, "--text", labels[0], "--html", tmp_path / "hits.html")
    page = (tmp_path / "hits.html").read_text()
    assert code == 0
    assert "motion" in page


def test_the_entries_are_gone_afterwards():
    assert sorted(ADAPTERS) == ["audio", "image", "text", "video"]
    assert list(PROCESSORS) == ["image", "audio", "video", "text"]
    with pytest.raises(KeyError):
        OnePeace(ModelConfig(32, 24, 1, 4, 48, adapters={"motion": {}}))
