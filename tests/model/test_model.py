"""The whole model: against the plain one, what a pass costs, what a file of it holds, how it starts."""

import math
from unittest.mock import Mock

import pytest
import torch
from support.hub_layouts import to_original
from support.reference import Reference
from support.small_models import ALL, VARIANTS, WAVE, batch_of, every_other, item, small_model, training_batch
from support.training import terms

from onepeace.config import Config, MaskedDecoderConfig, ModelConfig
from onepeace.errors import UserError
from onepeace.hub.architectures import keep_modalities
from onepeace.model import OnePeace, encoder
from onepeace.train.objective import Objective, Passes

RAW = {"text": "ids", "image": "pixels", "audio": "waveform"}
SIZES = {
    "one table": {"dim": 24, "num_heads": 3, "depth": 2, "ffn_dim": 40, "embed_dim": 10},
    "table per block": {"dim": 32, "num_heads": 2, "depth": 3, "ffn_dim": 16, "embed_dim": 32, "bias_per_block": True},
    "no layer scale": {"dim": 16, "num_heads": 4, "depth": 1, "ffn_dim": 20, "embed_dim": 5, "layer_scale": None},
}


def plain(model):
    """The reference with the same weights; sizes no shape tells are those of small_models."""
    weights = {to_original(name): tensor for name, tensor in model.state_dict().items() if name != "logit_scale"}
    heads = model.config.num_heads, model.config.decoder.num_heads
    return Reference(weights, *heads, strides=[stride for _, _, stride in WAVE["convs"]], groups=4)


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_equals_the_reference(name):
    """Vectors, joint features, hidden tokens and predictions of items in a padded batch, in float64."""
    decoder = MaskedDecoderConfig(12, 2, 2, 18, {"image": {"grid": 3}})
    model = small_model(*ALL, decoder=decoder, **SIZES[name]).double()
    batch = batch_of(model, range(3))
    batch["image"]["pixels"] = batch["image"]["pixels"].double()
    batch["audio"]["waveform"] = batch["audio"]["waveform"].double()
    keep = every_other(model, batch)
    vectors = model(batch)
    joint = model.features(batch)
    joint_masked = model.features(batch, keep)
    reconstructed = model.reconstruct(model.stems(batch), keep)
    reference = plain(model)
    for i in (0, 2):
        stems = {}
        for key in ALL:
            raw = item(key, i)[RAW[key]][0]
            stems[key] = reference.stem(key, raw if key == "text" else raw.double())
            alone = reference.encode([reference.place(key, stems[key])])[key]
            assert torch.allclose(vectors[key][i], reference.embed(key, alone), atol=1e-10, rtol=0)
        whole = reference.encode([reference.place(key, stem) for key, stem in stems.items()])
        visible = {key: ids[i][ids[i] >= 0].tolist() for key, ids in keep.items()}
        visible_items = [reference.place(key, stem, visible[key]) for key, stem in stems.items()]
        encoded = reference.encode(visible_items)
        lengths = {key: len(stem) + 1 for key, stem in stems.items()}
        decoded = reference.decode(visible_items, encoded, lengths, lengths)
        for key in ALL:
            for ours, expected in ((joint, whole), (joint_masked, encoded), (reconstructed, decoded)):
                assert torch.allclose(ours[key][i, : len(expected[key])], expected[key], atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("pools", [("mean",), ("max",)], ids=" and ".join)
def test_mean_and_maximum_of_the_tokens_that_are_left_in_are_added_to_cls(hide, pools):
    model = small_model(*ALL)
    batch = batch_of(model, range(3))
    keep = every_other(model, batch) if hide else {}
    for key, adapter in model.adapters.items():
        stem = model.stems(batch)[key]
        without = adapter(stem, keep.get(key))
        adapter.mean_cls = "mean" in pools
        adapter.max_cls = "max" in pools
        tokens = adapter(stem, keep.get(key)).tokens
        assert torch.equal(tokens[:, 1:], without.tokens[:, 1:])
        real = ~without.dense_mask()
        for i in range(3):
            real_tokens = without.tokens[i, 1:][real[i, 1:]]
            pooled = real_tokens.mean(0) if "mean" in pools else real_tokens.amax(0)
            assert torch.allclose(tokens[i, 0], without.tokens[i, 0] + pooled, atol=1e-6, rtol=0)


TERMS = terms(
    {
        "contrastive": {},
        "denoising/text": {},
        "denoising/image": {},
        "denoising/audio": {},
        "denoising/text+image+audio": {},
    }
)


@torch.no_grad()
@pytest.mark.parametrize("keys", [["audio"], ["image", "text"]])
def test_any_subset_of_modalities_in_any_order(keys):
    """Each gets its own features back, those of a model that was built without the others."""
    model = small_model(*ALL)
    part = small_model(*[key for key in ALL if key in keys])
    part.load_state_dict({name: model.state_dict()[name] for name in part.state_dict()})
    batch = batch_of(part, range(2))
    reordered = {key: batch[key] for key in keys}
    vectors = model(reordered)
    features = model.features(reordered)
    expected = part.features(batch)
    assert set(vectors) == set(features) == set(keys)
    for key in keys:
        assert torch.allclose(vectors[key].norm(dim=1), torch.ones(2))
        assert torch.equal(features[key], expected[key])
        if len(keys) > 1:  # attention is shared: what the others are changes the features
            alone = model.features({key: batch[key]})
            assert (alone[key] - features[key])[:, 0].abs().max() > 1e-3


def test_every_parameter_gets_a_gradient():
    for changes in ({}, {"bias_per_block": True}):
        model = small_model(*ALL, **changes).train()
        losses = Objective(model, TERMS, {})(training_batch(model, batch_of(model, range(3))))
        losses["loss"].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} is used by nothing"
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert bool(parameter.grad.any()), f"the gradient of {name} is zero"


@pytest.mark.parametrize("pool", ["attention", "mean", "cls"])
def test_every_parameter_of_a_classifier_gets_a_gradient(pool):
    head = {"kind": "classifier", "on": "audio", "num_classes": 5, "pool": pool, "pooler": True}
    model = small_model("audio", projections=(), logit_scale=False, decoder=None, heads={"classifier": head})
    batch = batch_of(model, range(6))
    logits = model.predict(batch)
    alone = model.predict({"audio": item("audio", 2)})
    assert torch.allclose(logits[2:3], alone, atol=1e-5)
    logits.square().sum().backward()
    # Pooling leaves out CLS: only its last norm and FFN rows can lack a gradient, and those are shared with tokens.
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_state_dict_holds_parameters_only():
    for variant in VARIANTS:
        model = small_model(variant)
        batch = batch_of(model, range(3))
        model(batch)
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
        assert not list(model.buffers())


@torch.no_grad()
@pytest.mark.parametrize(("per_block", "calls"), [(False, 1), (True, 2)])
def test_bias_built_once_per_pass(monkeypatch, per_block, calls):
    model = small_model(*ALL, bias_per_block=per_block)
    batch = batch_of(model, range(3))
    attention_bias = Mock(wraps=encoder.attention_bias)
    monkeypatch.setattr(encoder, "attention_bias", attention_bias)
    model.features(batch)
    assert attention_bias.call_count == calls
    attention_bias.reset_mock()
    model({key: batch[key] for key in ("text", "image")})
    assert attention_bias.call_count == 2 * calls


def test_stems_and_passes_are_made_once_per_step(monkeypatch):
    model = small_model(*ALL).train()
    stems, passes = [], []
    for key, adapter in model.adapters.items():
        run = adapter.stem_tokens
        monkeypatch.setattr(adapter, "stem_tokens", lambda x, key=key, run=run: stems.append(key) or run(x))
    encode, reconstruct = model.encode, model.reconstruct
    monkeypatch.setattr(model, "encode", lambda s, k=None: passes.append(("encode", *s, bool(k))) or encode(s, k))
    monkeypatch.setattr(model, "reconstruct", lambda s, k: passes.append(("decode", *s)) or reconstruct(s, k))
    batch = training_batch(model, batch_of(model, range(3)))
    Objective(model, TERMS, {}, max_padding=1.0)(batch)
    assert sorted(stems) == sorted(ALL)
    assert len(passes) == len(set(passes)) == 3 + 1 + 2 * (3 + 1)
    stems.clear(), passes.clear()
    Objective(model, terms({"contrastive": {}}), {}, max_padding=1.0)(batch)
    assert sorted(stems) == sorted(ALL)
    assert sorted(passes) == [("encode", key, False) for key in sorted(ALL)]


def test_stem_takes_each_item_once_in_groups_of_similar_length(monkeypatch):
    model = small_model(*ALL).train()
    seen = {key: [] for key in ALL}
    for key, adapter in model.adapters.items():
        run = adapter.stem_tokens
        monkeypatch.setattr(
            adapter, "stem_tokens", lambda x, key=key, run=run: seen[key].append(len(next(iter(x.values())))) or run(x)
        )
    batch = training_batch(model, batch_of(model, range(3)))
    padding = Objective(model, TERMS, {}, max_padding=0.1)(batch)["padding"]
    count = len(batch.inputs["image"]["pixels"])
    assert {key: sum(counts) for key, counts in seen.items()} == dict.fromkeys(ALL, count)
    assert len(seen["image"]) == 1
    assert len(seen["audio"]) > 1
    assert padding < 0.1 < Objective(model, TERMS, {}, max_padding=1.0)(batch)["padding"]


def test_joint_teachers_cost_no_graph():
    model = small_model(*ALL).train()
    passes = Passes(model, training_batch(model, batch_of(model, range(3))))
    assert not any(features.tokens.requires_grad for features in passes.joint.values())


def test_initialisation_is_the_released_one():
    config = ModelConfig(
        dim=32,
        embed_dim=24,
        depth=2,
        num_heads=4,
        ffn_dim=48,
        layer_scale=1e-2,
        adapters=dict(VARIANTS[key] for key in ALL),
        projections=ALL,
        decoder=MaskedDecoderConfig(16, 1, 2, 24),
    )
    model = OnePeace(config)
    for name, parameter in model.named_parameters():
        x = parameter.detach()
        if name == "logit_scale":
            assert x == pytest.approx(math.log(1 / 0.07))
        elif "bias_tables" in name or (name.endswith("bias") and "pos_conv" not in name):
            assert not x.any(), name
        elif name.endswith("gain"):
            assert bool((x == 0.01).all()), name
        elif "norm" in name:
            assert bool((x == 1).all()), name
        elif "conv" not in name:
            assert x.abs().max() <= 0.02, name
            assert 0.005 < x[x != 0].std() < 0.015, name
        else:
            assert x.std() > 0.02, name
    assert not model.adapters["text"].token_embed.weight[1].any()


def test_spread_of_the_initial_weights_is_an_option():
    fields = {"adapters": {"text": VARIANTS["text"][1]}, "projections": ("text",)}
    weight = OnePeace(ModelConfig(32, 24, 2, 4, 48, init_std=0.08, **fields)).blocks[0].ffn["text"].up.weight
    assert 0.06 < weight.abs().max() <= 0.08


@torch.no_grad()
def test_drop_path_drops_whole_samples_in_training_only():
    model = small_model("image", drop_path=0.6, depth=2)
    batch = batch_of(model, [0] * 64)
    assert torch.equal(model(batch)["image"], small_model("image", depth=2)(batch)["image"])
    model.train()
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.6])
    branch = torch.ones(4000, 2, 3)
    dropped = model.blocks[1].drop_path(branch)
    assert dropped.unique().tolist() == pytest.approx([0.0, 2.5])
    assert bool((dropped.amax((1, 2)) == dropped.amin((1, 2))).all())
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.1)
    # Equal items, 2 x 2 outcomes of the last block: no more than four different vectors.
    assert 2 <= len(model(batch)["image"].mul(1e4).round().unique(dim=0)) <= 4


@torch.no_grad()
def test_second_of_two_pictures_differs_by_its_kind():
    adapters = {"image": {**VARIANTS["image"][1], "num_types": 2}}
    model = small_model("image", adapters=adapters)
    pixels = torch.cat([item("image", 0)["pixels"]] * 2)
    type_ids = torch.tensor([0, 1])
    tokens = model.features({"image": {"pixels": pixels, "type_ids": type_ids}})["image"]
    first = model.features({"image": {"pixels": pixels}})["image"]
    assert torch.equal(tokens[0], first[0])
    assert (tokens[1] - first[1]).abs().max() > 1e-3
    model.adapters["image"].type_embed[1] = 0.0
    tokens = model.features({"image": {"pixels": pixels, "type_ids": type_ids}})["image"]
    assert torch.allclose(tokens[1], first[1], atol=1e-6)


@torch.no_grad()
def test_final_norm_of_some_modalities():
    with_all = small_model("text", "image")
    with_text = small_model("text", "image", final_norm=("text",))
    assert list(with_text.norms) == ["text"]
    assert with_text.load_state_dict(with_all.state_dict(), strict=False).missing_keys == []
    batch = batch_of(with_all, range(3))
    expected = with_all.features(batch)
    features = with_text.features(batch)
    assert torch.equal(features["text"], expected["text"])
    assert torch.equal(with_all.norms["image"](features["image"]), expected["image"])
    image_alone = keep_modalities(Config(with_text.config), ["image"], "test").model
    assert OnePeace(image_alone).norms is None
    with pytest.raises(UserError, match="final_norm"):
        ModelConfig(adapters={"text": {}}, final_norm=("audio",))
