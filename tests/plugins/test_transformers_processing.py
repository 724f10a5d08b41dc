"""Tokenizer, image processor and feature extractor of the transformers plug-in, against our processors."""

import numpy as np
import pytest
import torch
import transformers
from support.random_model import MEDIA, save_random_model

import onepeace.plugins.transformers as plugin
from onepeace.hub.folder import read_config
from onepeace.processors import AudioProcessor, ImageProcessor, TextProcessor
from onepeace.processors.tokenizer import read_tokenizer

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
    {"lower": False},
    {"prefix_space": False},
    {"clean": False, "lower": False, "prefix_space": False},
    {"max_tokens": None},
]


def text_processor(folder, settings):
    return TextProcessor.from_config({"max_tokens": 16, **settings}, folder)


@pytest.fixture(scope="module")
def processor(random_folder):
    return plugin.OnePeaceProcessor.from_onepeace(str(random_folder))


@pytest.fixture
def tokenizer_of(random_folder, monkeypatch):
    """The tokenizer of the model with other settings for its texts."""

    def make(settings):
        config = read_config(random_folder)
        config.processors["text"] |= settings
        monkeypatch.setattr("onepeace.plugins.transformers.tokenization.read_config", lambda folder: config)
        return plugin.OnePeaceTokenizer.from_onepeace(str(random_folder))

    return make


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_ids_are_those_of_the_text_processor(settings, tokenizer_of, random_folder, tmp_path):
    own = text_processor(random_folder, settings)
    tokenizer = tokenizer_of(settings)
    tokenizer.save_pretrained(tmp_path)
    want = [own.decode(text) for text in TEXTS]
    assert len(want[-1]) == 17 or settings.get("max_tokens", 16) is None
    for again in (tokenizer, plugin.OnePeaceTokenizer.from_pretrained(tmp_path)):
        assert isinstance(again, transformers.PreTrainedTokenizerFast)
        for text, ids in zip(TEXTS, want, strict=True):
            assert again(text)["input_ids"] == again.encode(text) == ids.tolist()
        batch = again(TEXTS, padding=True, return_tensors="pt")
        assert torch.equal(batch["input_ids"], own.collate(want)["ids"])
        assert batch["attention_mask"].sum(1).tolist() == [len(ids) for ids in want]
        assert (again.bos_token_id, again.pad_token_id, again.eos_token_id, again.unk_token_id) == (0, 1, 2, 3)


def test_a_text_is_not_cut_where_that_is_asked_for(processor):
    whole = processor.tokenizer(TEXTS[-1], truncation=False)["input_ids"]
    assert len(whole) > 17
    assert whole[-1] == 2
    assert processor.tokenizer(TEXTS[-1], max_length=5)["input_ids"] == [*whole[:4], 2]


def test_ids_become_text_again(processor):
    ids = processor.tokenizer("A dog barking")["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == " a dog barking"
    assert processor.tokenizer.decode(ids).endswith("</s>")


def test_the_tokenizer_goes_back_to_a_model_folder(processor, random_folder, tmp_path):
    processor.tokenizer(TEXTS, padding=True)  # sets padding and truncation of what it holds
    processor.tokenizer.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert again.to_str() == read_tokenizer(random_folder / "tokenizer.json").to_str()


def test_pixels_are_those_of_the_image_processor(processor, samples):
    own = ImageProcessor(**MEDIA["image"])
    paths = [samples / "images" / "cat.jpg", str(samples / "images" / "dog.jpg")]
    want = own.collate([own.decode(path) for path in paths])["pixels"]
    got = processor.image_processor(paths, return_tensors="pt")
    assert torch.equal(got["pixel_values"], want)
    picture = own.load(paths[0])
    array = np.asarray(picture)
    alone = own.decode(picture)
    for one in (picture, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert torch.equal(processor.image_processor(images=one, return_tensors="pt")["pixel_values"][0], alone)
    arrays = processor.image_processor(np.stack([array, array]))["pixel_values"]
    assert len(arrays) == 2
    assert (arrays[1] == alone.numpy()).all()
    assert processor.image_processor(picture, return_tensors="np")["pixel_values"].shape == (1, 3, 32, 32)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    np.testing.assert_allclose(processor.image_processor.image_mean, own.mean.flatten().numpy())
    np.testing.assert_allclose(processor.image_processor.image_std, own.std.flatten().numpy())


def test_waveforms_are_those_of_the_audio_processor(processor, samples):
    own = AudioProcessor(**MEDIA["audio"])
    random = np.random.default_rng(0)
    arrays = [random.normal(size=n).astype(np.float32) for n in (22050, 60000, 3000)]
    want = own.collate([own.decode((array, 22050)) for array in arrays])
    got = processor.feature_extractor(arrays, sampling_rate=22050, return_tensors="pt")
    assert got["input_values"].shape == (3, 32000)
    assert torch.equal(got["input_values"], want["waveform"])
    assert torch.equal(got["padding_mask"].sum(1), want["lengths"])
    path = samples / "sounds" / "dog.ogg"
    alone = own.decode(path)
    assert torch.equal(processor.feature_extractor(str(path), return_tensors="pt")["input_values"][0], alone)
    numbers = arrays[0][:9000]
    for one in (numbers, torch.from_numpy(numbers), numbers.tolist()):
        values = processor.feature_extractor(one, return_tensors="np")["input_values"]
        np.testing.assert_allclose(values[0], own.decode((numbers, 16000)), atol=1e-6)


def test_a_processor_is_saved_and_found(processor, tmp_path, samples):
    processor.tokenizer(TEXTS, max_length=5, padding="max_length")  # is not to be saved
    processor.save_pretrained(tmp_path)
    plugin.OnePeaceConfig.from_onepeace("tiny").save_pretrained(tmp_path)
    again = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is plugin.OnePeaceProcessor
    parts = {
        transformers.AutoTokenizer: plugin.OnePeaceTokenizer,
        transformers.AutoImageProcessor: plugin.OnePeaceImageProcessor,
        transformers.AutoFeatureExtractor: plugin.OnePeaceFeatureExtractor,
    }
    for auto, kind in parts.items():
        assert type(auto.from_pretrained(tmp_path)) is kind
    given = {"images": [samples / "images" / "cat.jpg"], "audio": [str(samples / "sounds" / "dog.ogg")]}
    got = again(text=TEXTS, return_tensors="pt", **given)
    want = processor(text=TEXTS, return_tensors="pt", **given)
    assert got["input_ids"].shape == (len(TEXTS), 17)
    assert set(got) == {"input_ids", "attention_mask", "pixel_values", "input_values", "padding_mask"} == set(want)
    assert all(torch.equal(got[name], want[name]) for name in got)


@pytest.mark.parametrize("key", ["image", "audio"])
def test_a_model_of_two_modalities_has_a_processor_of_two(key, tmp_path):
    folder = str(save_random_model(tmp_path / "model", ("text", key)))
    kind = {"image": plugin.OnePeaceImageTextProcessor, "audio": plugin.OnePeaceAudioTextProcessor}[key]
    processor = plugin.OnePeaceProcessor.from_onepeace(folder)
    assert type(processor) is kind
    processor.save_pretrained(tmp_path / "saved")
    plugin.OnePeaceConfig.from_onepeace(folder).save_pretrained(tmp_path / "saved")
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(again) is kind
    assert again(text=["a dog"], return_tensors="pt")["input_ids"].shape[0] == 1
