import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from support.images import encoded_image

from onepeace.data.augment import AudioAugment, ImageAugment, Picture, make_augments
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
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def vary(augment, picture, text="a gull", seed=0):
    varied, _ = augment.vary(picture, text, IMAGE, rng(seed), never)
    return varied


def vary_sound(augment, samples, seed=0):
    varied, _ = augment.vary(samples, "a sound", AUDIO, rng(seed), never)
    return varied


def tone(hertz, amplitude=0.5, seconds=0.5):
    time = torch.arange(int(16000 * seconds)) / 16000
    return amplitude * torch.sin(2 * torch.pi * hertz * time)


def strength(waveform, hertz):
    """Amplitude of one tone in a clip of 0.5 s."""
    spectrum = torch.fft.rfft(waveform).abs()
    return spectrum[round(hertz / 2)].item()


@pytest.mark.parametrize(("share", "factor"), [(0.04, 1), (0.2, 4), (0.9, 8)])
def test_jpeg_is_decoded_as_detailed_as_its_crop_needs(monkeypatch, share, factor):
    """A JPEG is decoded smaller by a power of two, as long as the crop has twice the model's size."""
    sizes = []
    varied = ImageAugment._varied

    def note_and_vary(self, picture, *arguments):
        sizes.append(picture.size)
        return varied(self, picture, *arguments)

    monkeypatch.setattr(ImageAugment, "_varied", note_and_vary)
    augment = ImageAugment(crop_scale=(share, share))
    processor = PROCESSORS["image"](size=24)
    picture = ramp(480, 480)
    sample, _ = augment.vary(encoded_image(picture, "JPEG"), "", processor, rng(), never)
    assert sizes == [(480 // factor, 480 // factor)]
    whole, _ = augment.vary(picture, "", processor, rng(), never)
    assert np.abs(sample.pixels.astype(int) - whole.pixels).max() < 12  # the same crop


def test_crops_keep_the_share_of_the_area_that_is_asked_for():
    augment = ImageAugment(crop_scale=(0.2, 0.5))
    shares = []
    for seed in range(200):
        # The ramp tells how far the crop reaches: 255 grey levels are the whole side.
        pixels = vary(augment, ramp(), seed=seed).pixels / 255
        width = np.ptp(pixels[..., 0])
        height = np.ptp(pixels[..., 1])
        shares.append(width * height)
    assert 0.12 < min(shares) < 0.25
    assert 0.4 < max(shares) < 0.55


def is_mirrored(augment, text, seed):
    first_row = vary(augment, ramp(), text, seed).pixels[0]
    return first_row[-1, 0] < first_row[0, 0]


def test_flip_mirrors_half_of_the_pictures():
    mirrored = 0
    for seed in range(200):
        mirrored += is_mirrored(ImageAugment(flip=True), "a gull", seed)
        assert not is_mirrored(ImageAugment(flip=False), "a gull", seed)
    assert 70 < mirrored < 130


@pytest.mark.parametrize("text", ["a man left of a dog", "The RIGHT hand", "arrow: clockwise"])
def test_no_flip_with_spatial_text(text):
    for seed in range(40):
        assert not is_mirrored(ImageAugment(flip=True), text, seed)


@pytest.mark.parametrize("factors", [(1.3, 1.0, 1.0), (0.8, 1.2, 0.6)])
def test_color_equals_pil(factors):
    """Pillow rounds and clips after each of the three steps, we once."""
    brightness, contrast, saturation = factors
    noise = rng().integers(90, 160, (16, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    expected = ImageEnhance.Color(picture).enhance(saturation)
    # Pillow's contrast turns around the mean grey rounded to a whole level.
    expected = ImageEnhance.Contrast(expected).enhance(contrast)
    expected = ImageEnhance.Brightness(expected).enhance(brightness)
    sample = Picture(pixels=noise, factors=np.array(factors))
    (pixels,) = ImageAugment(color=0.3).collate([sample], IMAGE)["pixels"]
    ours = (pixels * IMAGE.std + IMAGE.mean) * 255
    difference = ours.permute(1, 2, 0).numpy() - np.asarray(expected)
    assert np.abs(difference).max() < 2.5


def test_shift_turns_the_clip_around():
    clip = torch.randn(8000)
    plain = AUDIO.finish(clip)
    varied = vary_sound(AudioAugment(shift=True), clip)
    first = (varied - plain[0]).abs().argmin().item()
    assert first > 0
    assert torch.allclose(varied, plain.roll(first), atol=1e-5)


def test_silence_at_the_end_is_cut_off_as_often_as_asked():
    sound = tone(440)
    hiss = 1e-4 * torch.randn(8000)
    clip = torch.cat([sound, hiss, torch.zeros(4000)])
    augment = AudioAugment(trim=0.5)
    lengths = [len(vary_sound(augment, clip, seed)) for seed in range(60)]
    trimmed = [length for length in lengths if length != 16000]  # of 20,000: one second
    assert 15 < len(trimmed) < 45
    assert all(abs(length - len(sound)) < 20 for length in trimmed)
    silence = torch.zeros(9000)
    varied = vary_sound(AudioAugment(trim=1.0), silence)
    assert len(varied) == len(AUDIO.finish(silence))


def test_noise_lies_below_the_clip():
    shares_of_noise = []
    for seed in range(60):
        varied = vary_sound(AudioAugment(noise=0.5), tone(440), seed)
        power = torch.fft.rfft(varied).abs().square()
        share_of_tone = power[220] / power.sum()
        shares_of_noise.append(1 - share_of_tone.item())
    noisy = [share for share in shares_of_noise if share > 1e-5]
    assert 15 < len(noisy) < 45
    assert 0.04 < max(noisy) < 0.12  # 10 dB


def test_mixed_clips_are_both_heard_and_both_named():
    levels = []
    quiet = 0.01 * tone(2000, seconds=0.2)
    augment = AudioAugment(mix=1.0)
    for seed in range(40):
        varied, text = augment.vary(tone(440), "a low tone.", AUDIO, rng(seed), lambda: (quiet, "a high tone."))
        assert text == "a low tone and a high tone"
        assert len(varied) == 8000
        levels.append(strength(varied, 2000) / strength(varied, 440))
    # As loud as each other to 5 dB, however quiet the second file is.
    assert 0.5 < min(levels) < 0.8
    assert 1.25 < max(levels) < 1.85


def test_wrong_options_are_errors():
    with pytest.raises(UserError, match="no 'smell'; there are image, audio"):
        make_augments({"smell": {}})
    with pytest.raises(UserError, match="crop_scale"):
        make_augments({"image": {"crop_scale": [1.0, 0.5]}})
