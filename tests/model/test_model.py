"""The whole model: what a pass costs, what a file of it holds, how it starts."""

import math
from unittest.mock import Mock

import pytest
import torch
from support.golden_cases import assert_near
from support.small_models import (
    ALL,
    VARIANTS,
    assert_gradients_everywhere,
    batch_of,
    every_other,
    item,
    small_model,
    training_batch,
)
from support.training import terms
from torch.nn import functional as F

import onepeace.config
from onepeace.config import MaskedDecoderConfig, ModelConfig, build
from onepeace.model import OnePeace, StemOutput, encoder
from onepeace.model.sequence import padding
from onepeace.train.objective import Objective, Passes


@torch.no_grad()
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_tokens_are_added_to_cls(pool, hide):
    """Tokens that are left out and padding do not count."""
    key = "audio"
    model = small_model(*ALL)
    batch = batch_of(model, range(3))
    keep = every_other(model, batch)[key] if hide else None
    adapter = model.adapters[key]
    stem = model.stems(batch)[key]
    without = adapter(stem, keep)
    setattr(adapter, f"{pool}_cls", True)
    tokens = adapter(stem, keep).tokens

    assert torch.equal(tokens[:, 1:], without.tokens[:, 1:])
    is_real = ~without.dense_mask()
    for row in range(3):
        visible = without.tokens[row, 1:][is_real[row, 1:]]
        pooled = visible.mean(0) if pool == "mean" else visible.amax(0)
        assert_near(tokens[row, 0], without.tokens[row, 0] + pooled, 1e-6, what=f"CLS of item {row}")


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
def test_subset_of_modalities_in_any_order(keys):
    """The features are those of a model that was built without the other modalities."""
    model = small_model(*ALL)
    part = small_model(*[key for key in ALL if key in keys])
    state = model.state_dict()
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    batch = batch_of(part, range(2))
    reordered = {key: batch[key] for key in keys}
    vectors = model(reordered)
    features = model.features(reordered)
    expected = part.features(batch)
    assert set(vectors) == set(features) == set(keys)
    for key in keys:
        norms = vectors[key].norm(dim=1)
        assert norms.tolist() == pytest.approx([1.0, 1.0])
        assert torch.equal(features[key], expected[key])


@pytest.fixture
def training_model():
    return small_model(*ALL).train()


@pytest.fixture
def step_batch(training_model):
    return training_batch(training_model, batch_of(training_model, range(3)))


@pytest.mark.parametrize("bias_per_block", [False, True])
def test_every_parameter_gets_a_gradient(step_batch, bias_per_block):
    model = small_model(*ALL, bias_per_block=bias_per_block).train()
    Objective(model, TERMS, {})(step_batch)["loss"].backward()
    assert_gradients_everywhere(model)


@pytest.fixture(params=["attention", "mean", "cls"])
def classifier_of_sounds(request):
    head = {"kind": "classifier", "on": "audio", "num_classes": 5, "pool": request.param, "pooler": True}
    return small_model(
        "audio",
        projections=(),
        logit_scale=False,
        decoder=None,
        heads={"classifier": head},
    )


@torch.no_grad()
def test_classifier_is_independent_of_the_batch(classifier_of_sounds):
    logits = classifier_of_sounds.predict(batch_of(classifier_of_sounds, range(6)))
    alone = classifier_of_sounds.predict({"audio": item("audio", 2)})
    assert_near(logits[2:3], alone, 1e-5)


def test_state_dict_holds_parameters_only():
    model = small_model(*ALL)
    model(batch_of(model, range(3)))
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


def test_padded_sounds_share_a_bias_on_a_gpu():
    """64 sounds of up to 15 seconds at base width; a bias for each of them was 1.6 GiB."""
    lengths = torch.full((64,), 749)
    lengths[0] = 400
    with torch.device("meta"):
        model = OnePeace(build(ModelConfig, {**onepeace.config.SIZES["base"], "depth": 1}, "base"))
        stem = StemOutput(torch.zeros(64, 749, 768), padding(lengths.to("meta"), 749), grid=(749,))
    attend = Mock(wraps=F.scaled_dot_product_attention)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", attend)
        model.encode({"audio": stem})
    bias = attend.call_args.kwargs["attn_mask"]
    assert bias.untyped_storage().nbytes() == 4 * 12 * 750 * 750  # 0.025 GiB


@pytest.fixture
def stem_sizes(training_model, monkeypatch):
    """Numbers of items of the calls of each stem."""
    sizes = {key: [] for key in ALL}

    def record(key, adapter):
        stem_tokens = adapter.stem_tokens

        def recorded(inputs):
            sizes[key].append(len(next(iter(inputs.values()))))
            return stem_tokens(inputs)

        monkeypatch.setattr(adapter, "stem_tokens", recorded)

    for key, adapter in training_model.adapters.items():
        record(key, adapter)
    return sizes


@pytest.fixture
def passes(training_model, monkeypatch):
    """The passes that are made, as ("encode", modality, ..., whether tokens are left out)."""
    made = []
    encode = training_model.encode
    reconstruct = training_model.reconstruct

    def record_encode(stems, keep=None):
        made.append(("encode", *stems, bool(keep)))
        return encode(stems, keep)

    def record_reconstruct(stems, keep):
        made.append(("decode", *stems))
        return reconstruct(stems, keep)

    monkeypatch.setattr(training_model, "encode", record_encode)
    monkeypatch.setattr(training_model, "reconstruct", record_reconstruct)
    return made


def test_stems_and_passes_are_made_once_per_step(training_model, step_batch, stem_sizes, passes):
    Objective(training_model, TERMS, {}, max_padding=1.0)(step_batch)
    assert stem_sizes == {"text": [3], "image": [3], "audio": [3]}
    # Each modality and all together, whole and masked, where a decode encodes first.
    assert len(passes) == 3 + 1 + 2 * (3 + 1)
    assert len(set(passes)) == len(passes)


def test_contrastive_step_encodes_each_modality_alone(training_model, step_batch, stem_sizes, passes):
    Objective(training_model, terms({"contrastive": {}}), {}, max_padding=1.0)(step_batch)
    assert stem_sizes == {"text": [3], "image": [3], "audio": [3]}
    assert sorted(passes) == [("encode", key, False) for key in sorted(ALL)]


def test_stem_takes_each_item_once_in_groups_of_similar_length(training_model, step_batch, stem_sizes):
    padding = Objective(training_model, TERMS, {}, max_padding=0.1)(step_batch)["padding"]
    assert stem_sizes["image"] == [3]
    assert len(stem_sizes["audio"]) > 1
    assert sum(stem_sizes["audio"]) == sum(stem_sizes["text"]) == 3

    padding_of_one_group = Objective(training_model, TERMS, {}, max_padding=1.0)(step_batch)["padding"]
    assert padding < 0.1 < padding_of_one_group


def test_joint_teachers_cost_no_graph(training_model, step_batch):
    joint = Passes(training_model, step_batch).joint
    assert joint
    for features in joint.values():
        assert not features.tokens.requires_grad


@pytest.fixture(scope="module")
def new_parameters():
    """The parameters of a model as a training begins with it."""
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
    torch.manual_seed(0)
    return {name: parameter.detach() for name, parameter in OnePeace(config).named_parameters()}


def is_constant(name):
    if "pos_conv" in name:
        return False
    return name.endswith(("bias", "gain", "logit_scale")) or "bias_tables" in name or "norm" in name


def test_constants_of_a_new_model(new_parameters):
    assert new_parameters["logit_scale"] == pytest.approx(math.log(1 / 0.07))
    for name, tensor in new_parameters.items():
        if name == "logit_scale" or not is_constant(name):
            continue
        expected = 0.0
        if name.endswith("gain"):
            expected = 0.01
        elif "norm" in name and not name.endswith("bias"):
            expected = 1.0
        assert bool((tensor == expected).all()), name


def test_weights_of_a_new_model(new_parameters):
    for name, tensor in new_parameters.items():
        if is_constant(name):
            continue
        if "conv" in name:
            assert tensor.std() > 0.02, name
        else:
            assert tensor.abs().max() <= 0.02, name
            assert 0.005 < tensor[tensor != 0].std() < 0.015, name
    assert not new_parameters["adapters.text.token_embed.weight"][1].any()


@torch.no_grad()
def test_drop_path_drops_whole_samples():
    block = small_model("image", drop_path=0.6).train().blocks[1]
    branch = block.drop_path(torch.ones(4000, 2, 3))
    assert branch.unique().tolist() == pytest.approx([0.0, 2.5])
    assert torch.equal(branch.amax((1, 2)), branch.amin((1, 2)))
    assert branch.mean().item() == pytest.approx(1.0, abs=0.1)


@torch.no_grad()
def test_drop_path_grows_with_depth():
    """Equal items, 2 x 2 outcomes of the last block: no more than four different vectors."""
    model = small_model("image", drop_path=0.6).train()
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.6])
    vectors = model(batch_of(model, [0] * 64))["image"]
    num_different = len(vectors.mul(1e4).round().unique(dim=0))
    assert 2 <= num_different <= 4


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
