import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from onepeace.data.augment import AudioAugment, ImageAugment, make_augments
from onepeace.errors import UserError
from onepeace.processors import PROCESSORS

IMAGE = PROCESSORS["image"](size=[16, 24])
AUDIO = PROCESSORS["audio"](max_seconds=1.0, min_seconds=0.1)


def rng(seed=0):
    return np.random.default_rng(seed)


def never():
    raise AssertionError("no second item was to be drawn")


def ramp(width=60, height=40):
    """Red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8))


def vary(augment, picture, text="a gull", seed=0):
    return augment.vary(picture, text, IMAGE, rng(seed), never)[0]


def tone(hertz, amplitude=0.5, seconds=0.5):
    return amplitude * torch.sin(2 * torch.pi * hertz * torch.arange(int(16000 * seconds)) / 16000)


def strength(waveform, hertz):
    """Amplitude of one tone in a clip of 0.5 s."""
    return torch.fft.rfft(waveform)[round(hertz / 2)].abs().item()


def test_nothing_varied_equals_the_decoder():
    file = io.BytesIO()
    ramp().save(file, "PNG")
    augment = ImageAugment(crop_scale=(1.0, 1.0))
    # With the whole area asked for, only the aspect of the crop is left to chance: undo it.
    whole = augment.load(file.getvalue(), IMAGE)
    sample = vary(augment, whole)._replace(pixels=np.asarray(whole.resize((24, 16), Image.Resampling.BICUBIC)))
    pixels = augment.collate([sample], IMAGE)["pixels"]
    assert pixels.shape == (1, 3, 16, 24)
    assert torch.allclose(pixels[0], IMAGE.decode(file.getvalue()), atol=1e-5)


def test_crops_keep_the_share_of_the_area_that_is_asked_for():
    augment = ImageAugment(crop_scale=(0.2, 0.5))
    shares = []
    for seed in range(200):
        # The ramp tells how far the crop reaches: 255 grey levels are the whole side.
        pixels = vary(augment, ramp(), seed=seed).pixels.astype(float)
        shares.append(np.ptp(pixels[..., 0]) / 255 * np.ptp(pixels[..., 1]) / 255)
    assert 0.12 < min(shares) < 0.25
    assert 0.4 < max(shares) < 0.55


def test_flip_mirrors_half_of_the_pictures():
    def mirrored(augment, text):
        pictures = [vary(augment, ramp(), text, seed).pixels.astype(int) for seed in range(200)]
        return sum(picture[0, -1, 0] < picture[0, 0, 0] for picture in pictures)

    assert 70 < mirrored(ImageAugment(flip=True), "a gull") < 130
    assert mirrored(ImageAugment(flip=False), "a gull") == 0


@pytest.mark.parametrize("text", ["a man left of a dog", "The RIGHT hand", "arrow: clockwise"])
def test_no_flip_with_spatial_text(text):
    for seed in range(40):
        picture = vary(ImageAugment(flip=True), ramp(), text, seed).pixels.astype(int)
        assert picture[0, -1, 0] > picture[0, 0, 0]


@pytest.mark.parametrize("factors", [(1.3, 1.0, 1.0), (0.8, 1.2, 0.6)])
def test_color_equals_pil(factors):
    """Pillow rounds and clips after each of the three steps, we once."""
    brightness, contrast, saturation = factors
    picture = Image.fromarray(rng().integers(90, 160, (16, 24, 3), dtype=np.uint8))
    expected = ImageEnhance.Color(picture).enhance(saturation)
    # Pillow's contrast turns around the mean grey rounded to a whole level.
    expected = ImageEnhance.Contrast(expected).enhance(contrast)
    expected = ImageEnhance.Brightness(expected).enhance(brightness)
    sample = vary(ImageAugment(), picture)._replace(pixels=np.asarray(picture), factors=np.array(factors))
    pixels = ImageAugment(color=0.3).collate([sample], IMAGE)["pixels"][0]
    ours = (pixels * IMAGE.std + IMAGE.mean) * 255
    assert (ours - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs().max() < 2.5


def test_shift_turns_the_clip_around():
    clip = torch.randn(8000)
    plain = AUDIO.finish(clip)
    varied, _ = AudioAugment(shift=True).vary(clip, "noise", AUDIO, rng(), never)
    turns = [turn for turn in range(8000) if torch.allclose(varied[:5], plain.roll(turn)[:5], atol=1e-5)]
    assert len(turns) == 1
    assert turns[0] > 0
    assert torch.allclose(varied, plain.roll(turns[0]), atol=1e-5)


def test_silence_at_the_end_is_cut_off_as_often_as_asked():
    sound = tone(440)
    clip = torch.cat([sound, 1e-4 * torch.randn(8000), torch.zeros(4000)])
    augment = AudioAugment(trim=0.5)
    lengths = [len(augment.vary(clip, "", AUDIO, rng(seed), never)[0]) for seed in range(60)]
    kept = 16000  # of 20,000: one second
    assert {abs(length - len(sound)) < 20 or length == kept for length in lengths} == {True}
    assert 15 < sum(length == kept for length in lengths) < 45
    silent, _ = AudioAugment(trim=1.0).vary(torch.zeros(9000), "", AUDIO, rng(), never)
    assert len(silent) == len(AUDIO.finish(torch.zeros(9000)))


def test_noise_lies_below_the_clip():
    share = []
    for seed in range(60):
        varied, _ = AudioAugment(noise=0.5).vary(tone(440), "", AUDIO, rng(seed), never)
        spectrum = torch.fft.rfft(varied).abs().square()
        share.append(1 - (spectrum[220] / spectrum.sum()).item())
    assert 15 < sum(part > 1e-5 for part in share) < 45
    assert 0.04 < max(share) < 0.12  # 10 dB


def test_mixed_clips_are_both_heard_and_both_named():
    levels = []
    for seed in range(40):
        quiet = 0.01 * tone(2000, seconds=0.2)
        varied, text = AudioAugment(mix=1.0).vary(
            tone(440), "a low tone.", AUDIO, rng(seed), lambda quiet=quiet: (quiet, "a high tone.")
        )
        assert text == "a low tone and a high tone"
        assert len(varied) == 8000
        levels.append(strength(varied, 2000) / strength(varied, 440))
    # As loud as each other to 5 dB, however quiet the second file is.
    assert 0.5 < min(levels) < 0.8
    assert 1.25 < max(levels) < 1.85


def test_wrong_options_are_errors():
    with pytest.raises(UserError, match=r"crop_scle is not a field; did you mean crop_scale\?"):
        make_augments({"image": {"crop_scle": [0.5, 1.0]}})
    with pytest.raises(UserError, match="no 'smell'; there are image, audio"):
        make_augments({"smell": {}})
    for wrong in ({"image": {"crop_scale": [1.0, 0.5]}}, {"audio": {"mix": 2.0}}, {"image": {"color": 1.0}}):
        with pytest.raises(UserError):
            make_augments(wrong)
