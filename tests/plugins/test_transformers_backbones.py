"""Towers and backbones of the transformers plug-in, against the features of the module they hold."""

import pytest
import torch
import transformers

import onepeace.plugins.transformers as plugin

WAVE = {
    **{"dim": 32, "embed_dim": 16, "depth": 2, "num_heads": 4, "ffn_dim": 48},
    "adapters": {"audio": {"stem": "wave", "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}},
}
"""With the released stem of sounds."""


def close(got, want):
    assert tuple(got.shape) == tuple(want.shape)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sounds():
    """Two waveforms, the second of them shorter, and the mask that says so."""
    waveform = torch.randn(2, 20000, generator=torch.Generator().manual_seed(1))
    return {"input_values": waveform, "padding_mask": (torch.arange(20000) < torch.tensor([[20000], [9000]])).long()}


def test_a_vision_tower(random_folder, pixels):
    tower = plugin.OnePeaceVisionModel.from_onepeace(str(random_folder))
    module = tower.onepeace
    with torch.no_grad():
        got = tower(pixels, output_hidden_states=True, return_dict=True)
        alone = tower(pixels)
        last = module.features({"image": {"pixels": pixels}})["image"]
        blocks = module.backbone("image", [0, 1], reshape=False, norm=False)({"pixels": pixels})
        normed = module.norms["image"](got.hidden_states[-1])
    assert tower.config.hidden_size == 32
    assert tower.config.image_size == 32
    assert tower.config.patch_size == 16
    assert len(got.hidden_states) == 3
    assert alone.hidden_states is None
    close(got.last_hidden_state, last)
    close(got.last_hidden_state, normed)
    close(got.pooler_output, last[:, 0])
    close(alone[0], last)
    for state, block in zip(got.hidden_states[1:], blocks, strict=True):
        close(state, block)
    first, *_ = module.blocks
    with torch.no_grad():
        sequence = module.adapters["image"](module.stems({"image": {"pixels": pixels}})["image"])
    close(got.hidden_states[0], sequence.tokens)
    tower.config.output_hidden_states = True
    assert len(tower(pixels).hidden_states) == 3
    assert first.ffn.keys() == {"image"}  # nothing else is kept


def test_a_number_of_a_state_gives_the_states(random_folder, pixels):
    tower = plugin.OnePeaceVisionModel.from_onepeace(str(random_folder))
    states = tower(pixels, output_hidden_states=True).hidden_states
    chosen = tower(pixels, output_hidden_states=-2).hidden_states
    close(chosen[-2], states[-2])  # the others are None, or there too in an older transformers
    assert tower(pixels, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("norm", [True, False])
def test_maps_of_pictures(random_folder, pixels, norm):
    backbone = plugin.OnePeaceImageBackbone.from_onepeace(
        str(random_folder), out_features=["stem", "stage2"], apply_layernorm=norm
    )
    assert backbone.stage_names == ["stem", "stage1", "stage2"]
    assert (backbone.out_indices, backbone.out_features) == ([0, 2], ["stem", "stage2"])
    assert backbone.channels == [32, 32]
    with torch.no_grad():
        got = backbone(pixels)
        with_states = backbone(pixels, output_hidden_states=True)
        (want,) = backbone.onepeace.backbone("image", [1], norm=norm)({"pixels": pixels})
    assert [tuple(feature_map.shape) for feature_map in got.feature_maps] == [(2, 32, 3, 2)] * 2
    close(got.feature_maps[1], want)
    assert got.hidden_states is None
    assert len(with_states.hidden_states) == len(backbone.stage_names)
    for one, other in zip(got.feature_maps, with_states.feature_maps, strict=True):
        close(one, other)
    stem = with_states.hidden_states[0]
    stem = backbone.onepeace.norms["image"](stem) if norm else stem
    close(got.feature_maps[0], stem[:, 1:].transpose(1, 2).unflatten(2, (3, 2)))


def test_tokens_in_place_of_maps_and_indices_from_the_end(random_folder, pixels):
    backbone = plugin.OnePeaceImageBackbone.from_onepeace(
        str(random_folder), out_indices=[-2], reshape_hidden_states=False
    )
    assert backbone.out_features == ["stage1"]
    with torch.no_grad():
        (want,) = backbone.onepeace.backbone("image", [0], reshape=False)({"pixels": pixels})
    close(backbone(pixels).feature_maps[0].detach(), want)
    with pytest.raises(ValueError, match="stage7"):
        plugin.OnePeaceImageBackbone.from_onepeace(str(random_folder), out_features=["stage7"])


def test_maps_of_sounds_have_times(random_folder, sounds):
    backbone = plugin.OnePeaceAudioBackbone.from_onepeace(str(random_folder), out_indices=[1, 2])
    lengths = sounds["padding_mask"].sum(1)
    with torch.no_grad():
        got = backbone(**sounds)
        want = backbone.onepeace.backbone("audio", [0, 1])({"waveform": sounds["input_values"], "lengths": lengths})
        alone = backbone(input_values=sounds["input_values"][1:, :9000])
    frames = backbone.onepeace.adapters["audio"].stem.token_lengths(20000)
    for one, other in zip(got.feature_maps, want, strict=True):
        assert one.shape == (2, 32, frames)
        close(one, other)
    assert got.timestamps.shape == (frames, 2)
    assert got.frame_mask.shape == (2, frames)
    valid = int(got.frame_mask[1].sum())
    assert got.frame_mask[0].all()
    assert valid == len(alone.timestamps) < frames
    assert (got.feature_maps[1][1, :, valid:] == 0).all()
    close(got.feature_maps[1][1:, :, :valid], alone.feature_maps[1])
    # A frame of the mel stem is 80 ms, and all of them fill the sound to within a window and a step.
    assert backbone.frame_rate == pytest.approx(12.5)
    close(got.timestamps[1], torch.tensor([0.08, 0.16]))
    assert abs(float(got.timestamps[-1, 1]) - 20000 / 16000) < 0.08 + 0.025


def test_the_released_stem_gives_fifty_frames_a_second():
    config = plugin.OnePeaceAudioConfig(model=WAVE)
    backbone = transformers.AutoBackbone.from_config(config)
    assert type(backbone) is plugin.OnePeaceAudioBackbone
    assert backbone.frame_rate == 50
    accelerate = pytest.importorskip("accelerate")
    model = plugin.OnePeaceAudioModel(config).eval()
    with torch.no_grad():
        want = model(torch.ones(1, 16000))
        accelerate.cpu_offload(model, execution_device="cpu")
        close(model(torch.ones(1, 16000)).pooler_output, want.pooler_output)
    for seconds in (1, 3):
        got = backbone(input_values=torch.randn(1, 16000 * seconds))
        assert got.feature_maps[0].shape == (1, 32, 50 * seconds - 1)  # the last window is 5 ms longer than its step
        close(got.timestamps[-1], torch.tensor([seconds - 0.04, seconds - 0.02]))


def test_the_bundled_stem_has_another_rate(samples):
    backbone = plugin.OnePeaceAudioBackbone.from_onepeace("tiny")
    extractor = plugin.OnePeaceFeatureExtractor.from_onepeace("tiny")
    inputs = extractor([samples / "sounds" / "dog.ogg"], return_tensors="pt")
    got = backbone(**inputs)
    seconds = inputs["input_values"].shape[1] / 16000
    assert backbone.frame_rate == pytest.approx(8 / 3)
    assert len(got.timestamps) == got.feature_maps[0].shape[2] == int(seconds / 0.375)
    close(got.timestamps[1], torch.tensor([0.375, 0.75]))
