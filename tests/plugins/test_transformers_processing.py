"""Tokenizer, image processor and feature extractor of the transformers plug-in, against our processors."""

import numpy as np
import pytest
import torch
import transformers
from support.embedding import assert_same
from support.random_model import MEDIA, save_random_model

import onepeace.plugins.transformers as plugin
from onepeace.hub.resolve import open_model
from onepeace.processors import AudioProcessor, ImageProcessor, TextProcessor

TEXTS = [
    "A Dog barking",
    "",
    " , !two  cats\non a\tsofa  ",
    "the letters <pad> and </s> and <s> are letters",
    "ΑΣ İstanbul naïve 🐕 \ud800",
    "a very long sentence that goes on and on until it is cut, and then some more words follow behind it",
]
SETTINGS = [
    {},
    {"clean": False, "lower": False, "prefix_space": False},
    {"max_tokens": None},
]


@pytest.fixture(params=SETTINGS, ids=str)
def text_settings(request):
    return {"max_tokens": 16, **request.param}


@pytest.fixture
def tokenizer(random_folder, text_settings):
    """The tokenizer of the model with other settings for its texts."""
    opened = open_model(random_folder)
    opened.config.processors["text"] |= text_settings
    return plugin.OnePeaceTokenizer.from_onepeace(opened)


@pytest.mark.parametrize("is_saved", [False, True])
def test_ids_are_those_of_the_text_processor(tokenizer, text_settings, random_folder, tmp_path, is_saved):
    text_processor = TextProcessor.from_config(text_settings, random_folder)
    if is_saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = plugin.OnePeaceTokenizer.from_pretrained(tmp_path)

    rows = [text_processor.decode(text) for text in TEXTS]
    for text, ids in zip(TEXTS, rows, strict=True):
        assert tokenizer(text)["input_ids"] == ids.tolist()
        assert tokenizer.encode(text) == ids.tolist()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], text_processor.collate(rows)["ids"])
    lengths = [len(ids) for ids in rows]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    special_ids = (
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    )
    assert special_ids == (0, 1, 2, 3)


def test_truncation_and_its_absence(processor):
    whole = processor.tokenizer(TEXTS[-1], truncation=False)["input_ids"]

    assert len(whole) > 17
    assert whole[-1] == 2
    assert len(processor.tokenizer(TEXTS[-1])["input_ids"]) == 17
    short = processor.tokenizer(TEXTS[-1], max_length=5)["input_ids"]
    assert short == [*whole[:4], 2]


@pytest.fixture
def image_processor():
    return ImageProcessor(**MEDIA["image"])


def test_pixels_of_pictures_arrays_and_tensors(processor, image_processor, pictures):
    picture = pictures[0]
    array = np.array(picture)
    expected = image_processor.decode(picture)

    for image in (picture, array, torch.from_numpy(array).movedim(2, 0)):
        (pixels,) = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, expected)
    rows = processor.image_processor(np.stack([array, array]))["pixel_values"]
    assert isinstance(rows, list)
    for row in rows:
        assert_same(row, expected, atol=0)


@pytest.fixture
def audio_processor():
    return AudioProcessor(**MEDIA["audio"])


def test_waveforms_of_arrays(processor, audio_processor):
    generator = np.random.default_rng(0)
    lengths = (22050, 60000, 3000)
    arrays = [generator.normal(size=length).astype(np.float32) for length in lengths]

    values = processor.feature_extractor(arrays, sampling_rate=22050, return_tensors="pt")

    expected = audio_processor.collate([audio_processor.decode((array, 22050)) for array in arrays])
    assert values["input_values"].shape == (3, 32000)
    assert torch.equal(values["input_values"], expected["waveform"])
    assert torch.equal(values["padding_mask"].sum(1), expected["lengths"])


def test_saved_processor_gives_the_same(processor, samples, tmp_path):
    processor.tokenizer(TEXTS, max_length=5, padding="max_length")  # is not to be saved
    processor.save_pretrained(tmp_path)
    plugin.OnePeaceConfig.from_onepeace("tiny").save_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    media = {
        "images": [samples / "images" / "cat.jpg"],
        "audio": [str(samples / "sounds" / "dog.ogg")],
    }

    values = loaded(text=TEXTS, return_tensors="pt", **media)

    assert type(loaded) is plugin.OnePeaceProcessor

    assert values["input_ids"].shape == (len(TEXTS), 17)
    for name, expected in processor(text=TEXTS, return_tensors="pt", **media).items():
        assert torch.equal(values[name], expected)


@pytest.mark.parametrize(
    ("modality", "cls"),
    [("image", plugin.OnePeaceImageTextProcessor), ("audio", plugin.OnePeaceAudioTextProcessor)],
)
def test_processor_of_two_modalities(modality, cls, tmp_path):
    folder = str(save_random_model(tmp_path / "model", ("text", modality)))
    processor = plugin.OnePeaceProcessor.from_onepeace(folder)
    processor.save_pretrained(tmp_path / "saved")
    plugin.OnePeaceConfig.from_onepeace(folder).save_pretrained(tmp_path / "saved")

    loaded = transformers.AutoProcessor.from_pretrained(tmp_path / "saved")

    assert type(processor) is cls
    assert type(loaded) is cls
    assert loaded(text=TEXTS)["input_ids"] == processor(text=TEXTS)["input_ids"]
