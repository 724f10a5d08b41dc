"""A fourth modality is one adapter class and one entry: the model, its decoder and the objective take it as it is."""

import pytest
import torch
from small_models import VARIANTS, batch_of, item, randomise, small_model
from torch import nn

from onepeace.config import DecoderConfig, ModelConfig
from onepeace.model import ADAPTERS, Adapter, OnePeace, Stem
from onepeace.model.position import SequencePositions, sequence_buckets, sequence_table_rows, trunc_normal
from onepeace.model.sequence import no_padding
from onepeace.train.objective import Objective


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
        mask = torch.arange(batch["readings"].shape[1]) >= batch["steps"][:, None]
        tokens = self.proj(batch["readings"]) + self.gravity
        return Stem(tokens, no_padding(mask), (tokens.shape[1],))

    def place(self, stem, keep=None):
        tokens, mask = self.with_cls(stem)
        tokens = tokens + self.pos_embed(stem.grid)
        buckets = sequence_buckets(tokens.shape[1], self.num_buckets, tokens.device)
        return self.finish(tokens, mask, stem.kinds, buckets, list(self.bias_tables), keep)

    def token_lengths(self, batch):
        return batch["steps"]

    @staticmethod
    def decoder_positions(dim, *, num_positions=30):
        return SequencePositions(dim, num_positions)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "motion", MotionAdapter)
    adapters = {"text": VARIANTS["text"][1], "motion": {"num_positions": 25}}
    decoder = DecoderConfig(16, 2, 2, 24, {"motion": {"num_positions": 25}})
    return ModelConfig(32, 24, 2, 4, 48, adapters=adapters, heads=tuple(adapters), decoder=decoder)


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


@torch.no_grad()
def test_every_token_kept_is_the_identity(config):
    model = randomise(OnePeace(config)).eval()
    motion = motions([20, 4, 9])
    places = torch.arange(21).expand(3, -1)
    keep = places.masked_fill(places > motion["steps"][:, None], -1)
    kept, whole = (model.features({"motion": motion}, given)["motion"] for given in ({"motion": keep}, None))
    assert torch.allclose(kept[keep >= 0], whole[keep >= 0], atol=1e-5)


def test_a_foreign_adapter_is_initialised(config):
    model = OnePeace(config)
    adapter = model.adapters["motion"]
    assert 0 < adapter.gravity.abs().max() <= 0.02
    assert 0 < adapter.cls_token.abs().max() <= 0.02
    assert not adapter.bias_tables[0].any()


def test_the_objective_trains_it(config):
    """Contrast, denoising alone and together: every parameter learns, and the loss falls in a few steps."""
    model = OnePeace(config).train()
    text, motion = batch_of(small_model("text"), range(3))["text"], motions([20, 4, 9])
    masks = {}
    for key, lengths in {"text": model.adapters["text"].token_lengths(text), "motion": motion["steps"]}.items():
        masked = torch.zeros(3, int(lengths.max()) + 1, dtype=torch.bool)
        masked[:, 1::2] = True
        masked &= torch.arange(masked.shape[1]) <= lengths[:, None]
        places = torch.arange(masked.shape[1]).expand(3, -1)
        keep = places.masked_fill(masked | (places > lengths[:, None]), 999).sort(1).values
        masks[key] = {name: (keep.masked_fill(keep == 999, -1), masked) for name in ("alone", "together")}
    batch = {"text": text, "motion": motion, "masks": masks}
    objective = Objective(model, {"contrastive": {}, "denoising/motion": {}, "denoising/text+motion": {}}, {})
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


def test_the_entry_is_gone_afterwards():
    assert sorted(ADAPTERS) == ["audio", "image", "text"]
    with pytest.raises(KeyError):
        OnePeace(ModelConfig(32, 24, 1, 4, 48, adapters={"motion": {}}))
