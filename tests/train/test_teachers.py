"""Teachers of other libraries: their own vectors, of each item alone, from their own preprocessing."""

import json
import math
import tarfile
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from support import outside_models
from support.training import MODEL, recipe, source

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.processors import AudioProcessor
from onepeace.processors.resample import Resample
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.teachers import (
    SAMPLE_RATE,
    TeacherOptions,
    TeacherTable,
    cached_features,
    item_reader,
    make_teacher,
)
from onepeace.train.teachers.transformers import max_tokens
from onepeace.train.terms.distillation import Distillation, DistillationOptions
from onepeace.train.training_data import TrainingData

TEXTS = ["a red square", "the low tone of a dog", "an", "a dog barks far away and the low tone"]
LONG = "the deep tone of a dog " * 20


def outside(folder):
    """The teacher in a folder of transformers."""
    return TeacherOptions(str(folder), "transformers")


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch):
    monkeypatch.setattr("onepeace.train.teachers.items.bfloat16_is_fast", lambda device: False)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(40, 30), (32, 32), (20, 50)]
    blocks = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size) for size in sizes]
    return [*blocks, blocks[0].convert("L"), blocks[1].convert("P")]


@pytest.fixture(scope="module")
def sounds():
    """Of 0.2 to 0.9 seconds, one of them twice as long as CLAP reads."""
    generator = torch.Generator().manual_seed(0)
    return [
        0.3 * torch.sin(torch.arange(n) / (2.0 + i)) + 0.05 * torch.randn(n, generator=generator)
        for i, n in enumerate([3200, 14400, 8000, 3200, 32000])
    ]


def assert_alone_and_together(teacher, items, expected):
    """``expected``: of each item alone, (1, F)."""
    together = teacher(items)
    assert together.dtype == torch.float32
    assert (together[0] - together[1]).abs().max() > 1e-2
    for i, item in enumerate(items):
        torch.testing.assert_close(together[i : i + 1], expected[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(teacher([item]), expected[i], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher(items[::-1]).flip(0), together, rtol=1e-4, atol=1e-4)


def tokens(*texts, length, **options):
    return outside_models.tokenizer()(list(texts), truncation=True, max_length=length, return_tensors="pt", **options)


@torch.no_grad()
def test_pictures_of_clip(tmp_path, pictures):
    model = outside_models.clip(tmp_path)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    expected = [
        model.get_image_features(**processor(images=one.convert("RGB"), return_tensors="pt")).pooler_output
        for one in pictures
    ]
    assert_alone_and_together(make_teacher(outside(tmp_path), "image"), pictures, expected)
    assert expected[0].shape == (1, 8)


@torch.no_grad()
def test_texts_of_clip(tmp_path):
    model = outside_models.clip(tmp_path)
    texts = [*TEXTS, LONG]
    expected = [model.get_text_features(**tokens(text, length=12)).pooler_output for text in texts]
    assert_alone_and_together(make_teacher(outside(tmp_path), "text"), texts, expected)


@torch.no_grad()
def test_features_may_be_a_tensor_as_before_transformers_5(tmp_path, pictures, monkeypatch):
    outside_models.clip(tmp_path)
    expected = make_teacher(outside(tmp_path), "image")(pictures)
    method = transformers.CLIPModel.get_image_features
    older = lambda self, **inputs: method(self, **inputs).pooler_output  # noqa: E731
    monkeypatch.setattr(transformers.CLIPModel, "get_image_features", older)
    torch.testing.assert_close(make_teacher(outside(tmp_path), "image")(pictures), expected)


@torch.no_grad()
def test_texts_of_siglip_are_padded_as_it_was_trained(tmp_path):
    model = outside_models.siglip(tmp_path)
    padded = {"padding": "max_length", "return_attention_mask": False}
    expected = [model.get_text_features(**tokens(text, length=12, **padded)).pooler_output for text in TEXTS]
    assert_alone_and_together(make_teacher(outside(tmp_path), "text"), TEXTS, expected)


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
    assert_alone_and_together(make_teacher(outside(tmp_path), "audio"), sounds, expected)


@torch.no_grad()
def test_texts_of_clap(tmp_path):
    model = outside_models.clap(tmp_path)
    texts = [*TEXTS, LONG]
    expected = [model.get_text_features(**tokens(text, length=12)).pooler_output for text in texts]
    assert_alone_and_together(make_teacher(outside(tmp_path), "text"), texts, expected)


@pytest.mark.parametrize("pooler", [True, False])
@torch.no_grad()
def test_texts_of_bert_are_the_mean_of_their_tokens(tmp_path, pooler):
    model = outside_models.bert(tmp_path, pooler)
    texts = [*TEXTS, LONG]
    expected = [model(**tokens(text, length=20)).last_hidden_state.mean(1) for text in texts]
    assert_alone_and_together(make_teacher(outside(tmp_path), "text"), texts, expected)


@pytest.mark.parametrize("pooler", [True, False])
@torch.no_grad()
def test_pictures_of_vit_are_its_pooled_output_if_that_was_trained(tmp_path, pictures, pooler):
    model = outside_models.vit(tmp_path, pooler)
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    found = [model(**processor(images=one.convert("RGB"), return_tensors="pt")) for one in pictures]
    expected = [one.pooler_output if pooler else one.last_hidden_state.mean(1) for one in found]
    assert_alone_and_together(make_teacher(outside(tmp_path), "image"), pictures, expected)


@torch.no_grad()
def test_pictures_of_a_resnet_are_its_pooled_map(tmp_path, pictures):
    model = outside_models.resnet(tmp_path)
    processor = transformers.ConvNextImageProcessor.from_pretrained(tmp_path)
    found = [model(**processor(images=one.convert("RGB"), return_tensors="pt")) for one in pictures]
    expected = [one.last_hidden_state.mean((2, 3)) for one in found]
    assert_alone_and_together(make_teacher(outside(tmp_path), "image"), pictures, expected)


@torch.no_grad()
def test_sounds_of_wav2vec2_are_padded_for_nobody(tmp_path, sounds):
    """Its group norms see a whole sound, and it takes no mask."""
    model = outside_models.wav2vec2(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    inputs = [extractor(one.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt") for one in sounds]
    expected = [model(one["input_values"]).last_hidden_state.mean(1) for one in inputs]
    assert_alone_and_together(make_teacher(outside(tmp_path), "audio"), sounds, expected)


@torch.no_grad()
def test_sounds_of_whisper_are_the_mean_of_the_frames_that_are_no_padding(tmp_path, sounds):
    model = outside_models.whisper(tmp_path)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path)
    rate = outside_models.SOUND_RATE
    expected = []
    for samples in sounds:
        heard = Resample(SAMPLE_RATE // rate, 1)(samples)
        frames = model.get_encoder()(**extractor(heard.numpy(), sampling_rate=rate, return_tensors="pt"))
        real = min(math.ceil(50 * len(heard) / rate), 50)
        expected.append(frames.last_hidden_state[:, :real].mean(1))
    assert_alone_and_together(make_teacher(outside(tmp_path), "audio"), sounds, expected)


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        ("clip", "image"), ("clip", "text"), ("clap", "audio"), ("clap", "text"), ("bert", "text"), ("vit", "image"),
        ("resnet", "image"), ("wav2vec2", "audio"), ("whisper", "audio"), ("open_clip_model", "image"),
        ("open_clip_model", "text"),
    ],
)  # fmt: skip
def test_bfloat16_where_it_is_fast_says_nearly_the_same(tmp_path, pictures, sounds, monkeypatch, kind, modality):
    getattr(outside_models, kind)(tmp_path)
    is_clip = kind == "open_clip_model"
    name = TeacherOptions(f"local-dir:{tmp_path}", "open_clip") if is_clip else outside(tmp_path)
    items = {"image": pictures, "audio": sounds, "text": TEXTS}[modality]
    expected = make_teacher(name, modality)(items)
    monkeypatch.setattr("onepeace.train.teachers.items.bfloat16_is_fast", lambda device: True)
    found = make_teacher(name, modality)(items)
    assert not torch.equal(found, expected)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99


def test_the_longest_text_is_what_both_tokenizer_and_model_read(tmp_path):
    model = outside_models.bert(tmp_path)
    assert max_tokens(outside_models.tokenizer(), model) == 20
    assert max_tokens(outside_models.tokenizer(model_max_length=9), model) == 9


@torch.no_grad()
def test_pictures_and_texts_of_open_clip(tmp_path, pictures):
    name = f"local-dir:{tmp_path}"
    model = outside_models.open_clip_model(tmp_path)
    _, _, transform = open_clip.create_model_and_transforms(name)
    expected = [model.encode_image(transform(one.convert("RGB"))[None]) for one in pictures]
    assert_alone_and_together(make_teacher(TeacherOptions(name, "open_clip"), "image"), pictures, expected)
    texts = [*TEXTS, LONG]
    expected = [model.encode_text(open_clip.get_tokenizer(name)([text])) for text in texts]
    assert_alone_and_together(make_teacher(TeacherOptions(name, "open_clip"), "text"), texts, expected)


@torch.no_grad()
def test_open_clip_takes_a_name_and_a_file_of_weights(tmp_path, pictures, monkeypatch):
    model = outside_models.open_clip_model(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "little", config)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    _, _, transform = open_clip.create_model_and_transforms("little")
    expected = model.encode_image(transform(pictures[0].convert("RGB"))[None])
    found = make_teacher(TeacherOptions("little", "open_clip", f"{tmp_path}/weights.pt"), "image")(pictures[:1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("teacher", "modality", "message"),
    [
        ("transformers:{}/no/folder", "image", "the teacher cannot be had .* or give a folder with its files"),
        ("transformers:{}/empty", "text", "the teacher cannot be had"),
        ("transformers:{}/clip", "audio", "clip reads text, image, not audio"),
        ("transformers:{}/bert", "image", "no preprocessing of image"),
        ("transformers:{}/bert", "audio", "no preprocessing of audio"),
        ("open_clip:ViT-B-32", "image", "names no weights"),
        ("open_clip:ViT-B-32/nobody", "image", "the teacher cannot be had .*'nobody'.* or give local-dir:FOLDER"),
        ("open_clip:nobody/openai", "image", "the teacher cannot be had .*'nobody'"),
        ("open_clip:local-dir:{}/no", "text", "the teacher cannot be had .*no"),
        ("open_clip:local-dir:{}/random", "text", "the teacher cannot be had .*eights"),
    ],
)
def test_a_teacher_that_cannot_be_had_is_one_line(tmp_path, teacher, modality, message):
    (tmp_path / "empty").mkdir()
    outside_models.clip(tmp_path / "clip")
    outside_models.bert(tmp_path / "bert")
    outside_models.open_clip_model(tmp_path / "random")
    (tmp_path / "random" / "open_clip_model.safetensors").unlink()
    library, _, name = teacher.format(tmp_path).partition(":")
    with pytest.raises(UserError, match=message) as caught:
        make_teacher(TeacherOptions(name, library), modality)
    assert "\n" not in str(caught.value)
    assert f"{library}:{name}" in str(caught.value)


# In a run


def test_a_sound_is_read_at_the_teachers_rate_and_as_long_as_the_model_reads_it():
    sound = (torch.linspace(-1, 1, SAMPLE_RATE), SAMPLE_RATE)
    read = item_reader("audio", AudioProcessor(sample_rate=8000, min_seconds=0.1, max_seconds=0.25))
    assert torch.equal(read(sound), sound[0][: SAMPLE_RATE // 4])
    assert torch.equal(item_reader("audio", AudioProcessor(max_seconds=None))(sound), sound[0])


def test_pictures_learn_from_open_clip_and_sounds_from_clap(root, tmp_path):
    clap, clip = tmp_path / "clap", tmp_path / "clip"
    outside_models.clap(clap)
    outside_models.open_clip_model(clip)
    train = [{"shards": "squares.tar", "pair": ["image"]}, {"shards": "tones.tar", "pair": ["audio"]}]
    objective = {
        f"distillation/{key}": {"teacher": {**teacher, "cache": str(tmp_path / f"{key}.safetensors")}}
        for key, teacher in {
            "image": {"library": "open_clip", "name": f"local-dir:{clip}"},
            "audio": {"library": "transformers", "name": str(clap)},
        }.items()
    }
    run = {"out": str(tmp_path / "run"), "batch_size": 6, "workers": 0, "log_every": 1, "precision": "float32"}
    model = {**MODEL, "modalities": ["image", "audio"]}
    data = {"root": str(root), "train": train}
    loop.train(recipe(root, tmp_path / "run", steps=2, model=model, data=data, objective=objective, run=run))
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line[term]) and line[term] > 0 for line in lines for term in objective)

    with tarfile.open(root / "tones.tar") as tar:
        files = {name[:-4]: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".wav")}
    read = AudioProcessor().load
    table = cached_features(outside(clap), list(files), pytest.fail, tmp_path / "audio.safetensors", "audio")
    expected = make_teacher(outside(clap), "audio")([read(file) for file in files.values()])
    rows = [table.row[key] for key in files]
    torch.testing.assert_close(table.features[rows].float(), expected, rtol=2e-3, atol=2e-3)
    assert load_file(tmp_path / "image.safetensors")["features"].shape[1] == 8


def test_features_of_another_modality_are_refused(tmp_path):
    outside_models.clap(tmp_path / "clap")
    teacher, path = outside(tmp_path / "clap"), tmp_path / "cache.safetensors"
    cached_features(teacher, ["low"], lambda name: name, path, "text")
    with pytest.raises(UserError, match="features of text, the recipe asks for audio; name another cache"):
        cached_features(teacher, ["low"], pytest.fail, path, "audio")
    with pytest.raises(UserError, match="no item of the data has audio"):
        cached_features(teacher, [], pytest.fail, path, "audio")


def test_what_cannot_be_decoded_has_no_features_and_stops_nothing(tmp_path, caplog):
    outside_models.clap(tmp_path / "clap")
    teacher, path = outside(tmp_path / "clap"), tmp_path / "cache.safetensors"

    def read(name):
        if name.startswith("broken"):
            raise UserError(f"{name} is cut off")
        return name

    names = ["low", "broken 1", "high", "broken 2"]
    table = cached_features(teacher, names, read, path, "text", batch=1)
    assert "broken 2 cannot be decoded" in caplog.text
    assert list(table.row) == ["low", "high"]
    rows = [table.row["high"], table.row["low"]]
    expected = make_teacher(teacher, "text")(["high", "low"])
    torch.testing.assert_close(table.features[rows].float(), expected, rtol=2e-3, atol=2e-3)
    again = cached_features(teacher, names[1:], pytest.fail, path, "text")
    assert again.row == table.row
    with pytest.raises(UserError, match="no item of text can be decoded for the teacher"):
        cached_features(teacher, ["broken 1"], read, tmp_path / "other.safetensors", "text")


def test_what_cannot_be_decoded_changes_no_features_of_the_others():
    known = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).half()
    broken = torch.cat([known[:2], torch.full((1, 8), torch.nan).half(), known[2:]])
    rows = {"a": 0, "b": 1, "d": 3, "e": 4, "f": 5}
    options = DistillationOptions(term="distillation", on=("image",), teacher=TeacherOptions("any"))
    term = Distillation(options, SimpleNamespace(config=SimpleNamespace(dim=4)), TeacherTable(rows, broken))
    expected = (known.float() - known.float().mean(0)) / known.float().std(0)
    torch.testing.assert_close(term.features[list(term.row.values())], expected)


def test_different_items_of_one_key_are_refused(root, tmp_path):
    inputs = {place: {"image": place.encode(), "text": [place]} for place in ("a", "b")}
    made = recipe(root, tmp_path / "run", data={"train": [source(), source()]})
    sources = [
        SimpleNamespace(config=made.data.train[0], samples=[Sample("0", f"{place}/pairs-00000.tar", own, {})])
        for place, own in inputs.items()
    ]
    expected = (
        r"a/pairs-00000\.tar and b/pairs-00000\.tar have different items of one name, 0, and a teacher's features"
    )
    with pytest.raises(UserError, match=expected):
        TrainingData(made, sources, {}).features(TeacherOptions("nobody"), "image")
