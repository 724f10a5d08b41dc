"""Teachers of other libraries: their own vectors, of each item alone, from their own preprocessing."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support import outside_models
from support.random_model import save_random_model
from support.small_shards import write_tar
from support.training import MODEL, make_recipe
from torch.nn import functional

import onepeace
from onepeace.data.source import read_source
from onepeace.errors import UserError
from onepeace.processors import AudioProcessor
from onepeace.processors.sounds import Resample
from onepeace.train import trainer
from onepeace.train.teachers import SAMPLE_RATE, TEACHERS, TeacherOptions, teacher_table

TEXTS = ["a red square", "the low tone of a dog", "an", "a dog barks far away and the low tone"]
LONG = "the deep tone of a dog " * 20


@pytest.fixture(autouse=True, scope="module")
def _single_precision():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onepeace.train.teachers.bfloat16_is_fast", lambda device: False)
        yield


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coloured = []
    for size in [(40, 30), (32, 32), (20, 50)]:
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        coloured.append(Image.fromarray(pixels).resize(size))
    first, second, _ = coloured
    return [*coloured, first.convert("L"), second.convert("P")]


@pytest.fixture(scope="module")
def sounds():
    """Tones of 0.2 to 0.9 seconds, and one twice as long as CLAP reads."""
    generator = torch.Generator().manual_seed(0)
    waveforms = []
    for number, length in enumerate([3200, 14400, 8000, 3200, 32000]):
        tone = torch.sin(torch.arange(length) / (2.0 + number))
        noise = torch.randn(length, generator=generator)
        waveforms.append(0.3 * tone + 0.05 * noise)
    return waveforms


# Its own vectors


def make_teacher(folder, modality):
    """The teacher that a model folder of transformers makes."""
    return TEACHERS["transformers"](str(folder), modality, "features")


def assert_near(vectors, expected, tolerance=1e-4):
    torch.testing.assert_close(vectors, expected, rtol=tolerance, atol=tolerance)


def assert_stored(table, names, expected):
    """The rows of these names are the expected vectors, rounded to float16."""
    rows = [table.row[name] for name in names]
    assert_near(table.features[rows].float(), expected, tolerance=2e-3)


def assert_encodes_alone_and_together(folder, modality, items, encode):
    """The teacher's vectors are those of ``encode`` of each item alone, (1, F)."""
    teacher = make_teacher(folder, modality)

    together = teacher(items)

    assert together.dtype == torch.float32
    assert (together[0] - together[1]).abs().max() > 1e-2
    for item, vector in zip(items, together, strict=True):
        expected = encode(item)
        assert_near(vector[None], expected)
        assert_near(teacher([item]), expected)
    backwards = teacher(items[::-1])
    assert_near(backwards.flip(0), together)


def tokens(text, length, **options):
    options = {"truncation": True, "max_length": length, "return_tensors": "pt", **options}
    return outside_models.tokenizer()([text], **options)


@torch.no_grad()
def test_pictures_of_clip(tmp_path, pictures):
    model = outside_models.clip(tmp_path)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)

    def encode(picture):
        inputs = processor(picture.convert("RGB"), return_tensors="pt")
        return model.get_image_features(**inputs).pooler_output

    assert_encodes_alone_and_together(tmp_path, "image", pictures, encode)


@torch.no_grad()
def test_texts_of_siglip_have_its_padding(tmp_path):
    model = outside_models.siglip(tmp_path)

    def encode(text):
        padded = tokens(text, 12, padding="max_length", return_attention_mask=False)
        return model.get_text_features(**padded).pooler_output

    assert_encodes_alone_and_together(tmp_path, "text", TEXTS, encode)


@torch.no_grad()
def test_sounds_of_clap(tmp_path, sounds):
    """CLAP hears the first second of a sound, at its own sample rate."""
    model = outside_models.clap(tmp_path)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(tmp_path)
    rate = outside_models.SOUND_RATE

    def encode(waveform):
        samples = Resample(SAMPLE_RATE // rate, 1)(waveform)[:rate].numpy()
        inputs = extractor([samples], sampling_rate=rate, return_tensors="pt")
        return model.get_audio_features(**inputs).pooler_output

    assert_encodes_alone_and_together(tmp_path, "audio", sounds, encode)


@torch.no_grad()
def test_texts_of_bert_are_mean_of_tokens(tmp_path):
    model = outside_models.bert(tmp_path)

    def encode(text):
        states = model(**tokens(text, 20)).last_hidden_state
        return functional.normalize(states.mean(1), dim=-1)

    assert_encodes_alone_and_together(tmp_path, "text", [*TEXTS, LONG], encode)


@torch.no_grad()
def test_pictures_of_resnet_are_mean_of_map(tmp_path, pictures):
    model = outside_models.resnet(tmp_path)
    processor = transformers.ConvNextImageProcessor.from_pretrained(tmp_path)

    def encode(picture):
        inputs = processor(picture.convert("RGB"), return_tensors="pt")
        return model(**inputs).last_hidden_state.mean((2, 3))

    assert_encodes_alone_and_together(tmp_path, "image", pictures, encode)


@pytest.mark.parametrize(
    ("library", "name", "modality", "message"),
    [
        ("transformers", "{}/no/folder", "image", "no teacher of image .* all its files"),
        ("transformers", "{}/clip", "audio", "it reads text, image"),
        ("transformers", "{}/bert", "image", "no teacher of image"),
        ("timm", "{}", "text", "reads image, not text"),
    ],
)
def test_teacher_that_cannot_be_had_is_one_line(tmp_path, library, name, modality, message):
    outside_models.clip(tmp_path / "clip")
    outside_models.bert(tmp_path / "bert")
    name = name.format(tmp_path)

    with pytest.raises(UserError, match=message) as caught:
        TEACHERS[library](name, modality, "features")

    assert "\n" not in str(caught.value)
    assert f"{library}:{name}" in str(caught.value)


# In a run


def test_run_stores_outputs_of_its_teacher(root, tmp_path):
    outside_models.clap(tmp_path / "clap")
    teacher = TeacherOptions("transformers", str(tmp_path / "clap"))
    recipe = make_recipe(
        root,
        tmp_path / "run",
        steps=1,
        model={**MODEL, "modalities": ["audio"]},
        data={
            "train": [{"shards": "tones.tar", "pair": ["audio"]}],
            "frozen_folder": str(tmp_path / "frozen"),
        },
        objective={"distillation/audio": {"teacher": vars(teacher)}},
    )
    trainer.train(recipe)
    samples = {sample.key: sample for sample in read_source("tones.tar", ("audio",), root)}

    table = teacher_table(teacher, samples, pytest.fail, tmp_path / "frozen", "audio")

    load = AudioProcessor().load
    sounds = [load(sample.read("audio")) for sample in samples.values()]
    assert_stored(table, samples, make_teacher(tmp_path / "clap", "audio")(sounds))


def test_text_branch_learns_the_vectors_of_the_first_caption_in_an_extended_vocabulary(tmp_path):
    save_random_model(tmp_path / "start", ("text",))
    texts = {"dog": ["a dog on the beach", "ein hund am strand"], "cat": ["two cats", "zwei katzen"]}
    members = {f"{key}.json": json.dumps({"captions": captions}).encode() for key, captions in texts.items()}
    write_tar(tmp_path / "texts.tar", members)
    teacher = {"library": "onepeace", "name": str(tmp_path / "start"), "reads": "first"}
    start = onepeace.load(tmp_path / "start", device="cpu")
    size = start.processor("text").vocab_size + 8
    recipe = make_recipe(
        tmp_path,
        tmp_path / "run",
        steps=30,
        pair="text",
        model={"from": str(tmp_path / "start"), "adapters": {"text": {"vocab_size": size}}},
        tokenizer={"vocab_size": size, "extend": True},
        data={"train": [{"shards": "texts.tar", "pair": ["text"], "weight": 12}], "frozen_folder": str(tmp_path)},
        objective={"distillation/text": {"teacher": teacher, "vectors": True, "scale": 20.0}},
    )
    trainer.train(recipe)

    trained = onepeace.load(tmp_path / "run" / "model", device="cpu")
    english, german = (start.encode_text([texts[key][i] for key in texts]) for i in (0, 1))
    learned = trained.encode_text([texts[key][1] for key in texts])
    assert trained.processor("text").vocab_size > start.processor("text").vocab_size
    assert (learned * english).sum(1).min() > (german * english).sum(1).max()


@pytest.fixture
def text_table(tmp_path):
    """Makes tables of texts, of which some are broken; the list gets those that are read."""
    texts_read = []

    def read(name):
        texts_read.append(name)
        if name.startswith("broken"):
            raise UserError(f"{name} is cut off")
        return name

    def make(*names, model=outside_models.clap):
        folder = tmp_path / model.__name__
        model(folder)
        return teacher_table(TeacherOptions("transformers", str(folder)), dict.fromkeys(names), read, tmp_path, "text")

    return make, texts_read


def test_item_that_cannot_be_decoded_has_no_features(text_table, tmp_path, caplog):
    make, _ = text_table
    table = make("low", "broken 1", "high", "broken 2")

    assert len(table.features) == 2
    expected = make_teacher(tmp_path / "clap", "text")(["low", "high"])
    assert_stored(table, ["low", "high"], expected)
    assert "broken 2 cannot be decoded" in caplog.text


def test_teacher_is_asked_once_per_item(text_table):
    make, texts_read = text_table
    for model in (outside_models.clap, outside_models.clap, outside_models.bert):
        make("low", "high", model=model)

    assert texts_read == 2 * ["low", "high"]
