"""Teachers of other libraries: their own vectors, of each item alone, from their own preprocessing."""

import math
import tarfile

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support import outside_models
from support.training import MODEL, recipe
from torch.nn import functional

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.processors import AudioProcessor
from onepeace.processors.resample import Resample
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.teachers import TEACHERS, TeacherOptions, teacher_table
from onepeace.train.teachers.networks import SAMPLE_RATE

TEXTS = ["a red square", "the low tone of a dog", "an", "a dog barks far away and the low tone"]
LONG = "the deep tone of a dog " * 20


def outside(folder):
    """The teacher in a folder of transformers."""
    return TeacherOptions("transformers", str(folder))


@pytest.fixture(autouse=True, scope="module")
def _single_precision():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onepeace.train.teachers.networks.bfloat16_is_fast", lambda device: False)
        yield


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coloured = []
    for size in [(40, 30), (32, 32), (20, 50)]:
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        coloured.append(Image.fromarray(pixels).resize(size))
    return [*coloured, coloured[0].convert("L"), coloured[1].convert("P")]


@pytest.fixture(scope="module")
def sounds():
    """Of 0.2 to 0.9 seconds, one of them twice as long as CLAP reads."""
    generator = torch.Generator().manual_seed(0)
    waveforms = []
    for number, length in enumerate([3200, 14400, 8000, 3200, 32000]):
        tone = torch.sin(torch.arange(length) / (2.0 + number))
        noise = torch.randn(length, generator=generator)
        waveforms.append(0.3 * tone + 0.05 * noise)
    return waveforms


def made(teacher, modality):
    """The teacher that these options name."""
    return TEACHERS[teacher.library](teacher.name, modality, "features")


def assert_alone_and_together(teacher, items, expected):
    """``expected``: of each item alone, (1, F)."""
    together = teacher(items)
    assert together.dtype == torch.float32
    assert (together[0] - together[1]).abs().max() > 1e-2
    for item, vector, alone in zip(items, together, expected, strict=True):
        torch.testing.assert_close(vector[None], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(teacher([item]), alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher(items[::-1]).flip(0), together, rtol=1e-4, atol=1e-4)


def tokens(*texts, length, **options):
    return outside_models.tokenizer()(list(texts), truncation=True, max_length=length, return_tensors="pt", **options)


@torch.no_grad()
def test_pictures_of_clip(tmp_path, pictures):
    model = outside_models.clip(tmp_path)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    expected = []
    for picture in pictures:
        inputs = processor(images=picture.convert("RGB"), return_tensors="pt")
        expected.append(model.get_image_features(**inputs).pooler_output)
    assert_alone_and_together(made(outside(tmp_path), "image"), pictures, expected)
    assert expected[0].shape == (1, 8)


@torch.no_grad()
def test_texts_of_clip(tmp_path):
    model = outside_models.clip(tmp_path)
    texts = [*TEXTS, LONG]
    expected = [model.get_text_features(**tokens(text, length=12)).pooler_output for text in texts]
    assert_alone_and_together(made(outside(tmp_path), "text"), texts, expected)


@torch.no_grad()
def test_texts_of_siglip_are_padded_as_it_was_trained(tmp_path):
    model = outside_models.siglip(tmp_path)
    padded = {"padding": "max_length", "return_attention_mask": False}
    expected = [model.get_text_features(**tokens(text, length=12, **padded)).pooler_output for text in TEXTS]
    assert_alone_and_together(made(outside(tmp_path), "text"), TEXTS, expected)


@torch.no_grad()
def test_sounds_of_clap(tmp_path, sounds):
    model = outside_models.clap(tmp_path)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(tmp_path)
    rate = outside_models.SOUND_RATE
    expected = []
    for samples in sounds:
        heard = Resample(SAMPLE_RATE // rate, 1)(samples)[:rate].numpy()
        inputs = extractor([heard], sampling_rate=rate, return_tensors="pt")
        expected.append(model.get_audio_features(**inputs).pooler_output)
    assert_alone_and_together(made(outside(tmp_path), "audio"), sounds, expected)


@torch.no_grad()
def test_texts_of_bert_are_the_mean_of_their_tokens(tmp_path):
    model = outside_models.bert(tmp_path)
    texts = [*TEXTS, LONG]
    expected = []
    for text in texts:
        mean = model(**tokens(text, length=20)).last_hidden_state.mean(1)
        expected.append(functional.normalize(mean, dim=-1))
    assert_alone_and_together(made(outside(tmp_path), "text"), texts, expected)


@torch.no_grad()
def test_pictures_of_a_resnet_are_the_mean_of_its_map(tmp_path, pictures):
    model = outside_models.resnet(tmp_path)
    processor = transformers.ConvNextImageProcessor.from_pretrained(tmp_path)
    expected = []
    for picture in pictures:
        inputs = processor(images=picture.convert("RGB"), return_tensors="pt")
        expected.append(model(**inputs).last_hidden_state.mean((2, 3)))
    assert_alone_and_together(made(outside(tmp_path), "image"), pictures, expected)


@pytest.mark.parametrize(
    ("teacher", "modality", "message"),
    [
        ("transformers:{}/no/folder", "image", "no teacher of image .* or give a folder with all its files"),
        ("transformers:{}/clip", "audio", "it reads text, image"),
        ("transformers:{}/bert", "image", "no teacher of image"),
        ("timm:{}", "text", "reads image, not text"),
    ],
)
def test_a_teacher_that_cannot_be_had_is_one_line(tmp_path, teacher, modality, message):
    outside_models.clip(tmp_path / "clip")
    outside_models.bert(tmp_path / "bert")
    library, _, name = teacher.format(tmp_path).partition(":")
    with pytest.raises(UserError, match=message) as caught:
        TEACHERS[library](name, modality, "features")
    assert "\n" not in str(caught.value)
    assert f"{library}:{name}" in str(caught.value)


# In a run


@pytest.fixture(scope="module")
def distilled(root, tmp_path_factory):
    """Folder of a run whose pictures learn from CLIP and whose sounds learn from CLAP."""
    folder = tmp_path_factory.mktemp("distilled")
    outside_models.clip(folder / "clip")
    outside_models.clap(folder / "clap")
    wanted = recipe(
        root,
        folder / "run",
        steps=2,
        model={**MODEL, "modalities": ["image", "audio"]},
        data={
            "train": [{"shards": "squares.tar", "pair": ["image"]}, {"shards": "tones.tar", "pair": ["audio"]}],
            "frozen_folder": str(folder / "frozen"),
        },
        objective={
            "distillation/image": {"teacher": {"library": "transformers", "name": str(folder / "clip")}},
            "distillation/audio": {"teacher": {"library": "transformers", "name": str(folder / "clap")}},
        },
        run={"batch_size": 6, "log_every": 1},
    )
    loop.train(wanted)
    return folder


def test_pictures_learn_from_clip_and_sounds_from_clap(distilled):
    lines = read_log(distilled / "run" / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        for term in ("distillation/image", "distillation/audio"):
            assert 0 < line[term] < math.inf


def test_stored_outputs_are_those_of_the_teacher(root, distilled):
    files = {}
    with tarfile.open(root / "tones.tar") as tar:
        for name in tar.getnames():
            if name.endswith(".wav"):
                files[name.removesuffix(".wav")] = tar.extractfile(name).read()
    clap = outside(distilled / "clap")
    samples = {name: Sample(name, str(root / "tones.tar"), {}, {}) for name in files}
    table = teacher_table(clap, samples, pytest.fail, distilled / "frozen", "audio")
    load = AudioProcessor().load
    expected = made(clap, "audio")([load(file) for file in files.values()])
    rows = [table.row[key] for key in files]
    torch.testing.assert_close(table.features[rows].float(), expected, rtol=2e-3, atol=2e-3)


def test_what_cannot_be_decoded_has_no_features_and_stops_nothing(tmp_path, caplog):
    outside_models.clap(tmp_path / "clap")
    teacher = outside(tmp_path / "clap")

    def read(name):
        if name.startswith("broken"):
            raise UserError(f"{name} is cut off")
        return name

    names = ["low", "broken 1", "high", "broken 2"]
    table = teacher_table(teacher, dict.fromkeys(names), read, tmp_path, "text")
    assert "broken 2 cannot be decoded" in caplog.text
    assert table.row == {"low": 0, "high": 1}
    expected = made(teacher, "text")(["low", "high"])
    torch.testing.assert_close(table.features.float(), expected, rtol=2e-3, atol=2e-3)
    again = teacher_table(teacher, dict.fromkeys(["high", "low"]), pytest.fail, tmp_path, "text")
    assert torch.equal(again.features, table.features.flip(0))
    with pytest.raises(UserError, match="no item of the data has"):
        teacher_table(teacher, {}, read, tmp_path, "text")
    with pytest.raises(UserError, match="no item of text can be decoded"):
        teacher_table(teacher, {"broken 1": None}, read, tmp_path, "text")
