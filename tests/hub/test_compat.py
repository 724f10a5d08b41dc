"""The names of the original code, over its own numbers."""

from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file
from support.golden_cases import case, weights
from support.hub_layouts import cfg, golden_vocabulary, released, small_vocabulary, state, wrapper
from support.pixels import assert_original_pixels
from torch.testing import assert_close

import onepeace
from onepeace.compat import from_pretrained
from onepeace.errors import UserError
from onepeace.processors.tokenizer import from_released

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compat")


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    """A file in the layout of one-peace.pt, with the golden weights; sounds end after 1 second."""
    torch.save(wrapper(released(), cfg(task={"max_duration": 1})), folder / "one-peace.pt")
    small_vocabulary(folder / "bpe")
    return folder / "one-peace.pt"


@pytest.fixture(scope="module")
def model(folder, checkpoint):
    return from_pretrained(checkpoint, device="cpu", download_root=folder / "made", bpe=folder / "bpe")


@pytest.fixture(scope="module")
def embed():
    return case("embed")


def test_features_match_golden(model, embed):
    text = model.extract_text_features(embed.inputs["text"])
    image = model.extract_image_features(embed.inputs["image"].float())
    audio = model.extract_audio_features(embed.inputs["audio_equal"], embed.inputs["audio_equal_mask"])
    for modality, features in {"text": text, "image": image, "audio": audio}.items():
        assert_close(features, embed.outputs[f"{modality}_embed"], atol=1e-5, rtol=0)


def test_load_reads_texts_as_the_original_api_does(model, folder):
    texts = ["  A  dog", ", a dog", "a dog"]
    (made,) = (folder / "made").iterdir()
    vectors = onepeace.load(made, device="cpu").encode_text(texts)
    assert_close(vectors, model.extract_text_features(model.process_text(texts)), atol=1e-5, rtol=0)
    assert (vectors[2] - vectors[:2]).abs().amax(dim=1).min() > 1e-3


def test_padded_sounds_give_what_each_gives_alone(model, embed):
    features = model.extract_audio_features(embed.inputs["audio_padded"], embed.inputs["audio_padded_mask"])
    alone = torch.cat([embed.outputs[f"audio_alone_{index}_embed"] for index in range(3)])
    assert_close(features, alone, atol=1e-5, rtol=0)


def test_second_load_uses_the_converted_folder(model, folder, checkpoint):
    made = list((folder / "made").iterdir())
    again = from_pretrained(checkpoint, download_root=folder / "made")  # no vocabulary needed any more
    assert list((folder / "made").iterdir()) == made
    ids = torch.tensor([[9, 2]])
    assert torch.equal(again.extract_text_features(ids), model.extract_text_features(ids))


def test_process_image_matches_golden(model, tmp_path):
    stored = load_file(GOLDEN / "media_preprocess.safetensors")
    paths = []
    for size in ("130x90", "45x61"):
        Image.fromarray(stored[f"rgb_{size}_uint8"].numpy()).save(tmp_path / f"{size}.png")
        paths.append(str(tmp_path / f"{size}.png"))
    pixels, widths, heights = model.process_image(paths, return_image_sizes=True)
    for got, name in zip(pixels, ("rgb_130x90", "rgb_45x61"), strict=True):
        assert_original_pixels(got, stored[f"{name}_hub"], name == "rgb_130x90", name)
    assert (widths.tolist(), heights.tolist()) == ([90, 61], [130, 45])
    (images, *sizes), tokens = model.process_image_text_pairs([(paths[0], "a"), (paths[1], "bc")], True)
    assert torch.equal(images, pixels)
    assert len(sizes) == 2
    assert torch.equal(tokens, model.process_text(["a", "bc"]))


def test_process_audio_matches_golden(model, tmp_path):
    stored = load_file(GOLDEN / "media_preprocess.safetensors")
    for name in ("long", "short"):
        samples = stored[f"audio_{name}_in"].numpy()
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
    waves, mask = model.process_audio([str(tmp_path / "long.wav"), str(tmp_path / "short.wav")])
    short = stored["audio_short_out"].repeat(4)[:16000]
    assert_close(waves, torch.stack([stored["audio_long_out_max1s"], short]), atol=1e-5, rtol=0)
    frames = (16000 - 60) // 40 + 1
    assert mask.shape == (2, frames + 1)
    assert not mask.any()


def test_process_audio_masks_padding(model, tmp_path):
    model._processors["audio"].min_seconds, least = 0.01, model._processors["audio"].min_seconds
    for name, length in {"a": 1600, "b": 800}.items():
        soundfile.write(tmp_path / f"{name}.wav", torch.randn(length).numpy() / 9, 16000, subtype="FLOAT")
    waves, mask = model.process_audio([tmp_path / "a.wav", tmp_path / "b.wav"])
    model._processors["audio"].min_seconds = least
    assert waves.shape == (2, 1600)
    assert (waves[1, 800:] == 0).all()
    assert mask.sum(dim=1).tolist() == [0, (1600 - 60) // 40 - (800 - 60) // 40]
    alone = model.extract_audio_features(waves[1:, :800], mask[1:, : (800 - 60) // 40 + 2])
    assert_close(model.extract_audio_features(waves, mask)[1:], alone, atol=1e-5, rtol=0)


def test_process_text_gives_the_ids_of_the_original(model, tmp_path, monkeypatch):
    files, golden = golden_vocabulary(tmp_path)
    monkeypatch.setattr(model._processors["text"], "tokenizer", from_released(files))
    tokens = model.process_text([case["text"] for case in golden["cases"]])
    assert tokens.dtype == torch.int64
    for row, stored in zip(tokens.tolist(), golden["cases"], strict=True):
        length = len(stored["api"])
        assert row[:length] == stored["api"], stored["text"]
        assert set(row[length:]) <= {model.pad}
    assert model.eos == 2


@pytest.mark.parametrize("dtype", ["bf16", "float32"])
def test_ids_stay_long_in_every_dtype(model, folder, checkpoint, dtype):
    other = from_pretrained(checkpoint, dtype=dtype, device="cpu", download_root=folder / "made")
    tokens = other.process_text(["cow", "a longer text"])
    assert other.cast_data_dtype(tokens).dtype == torch.int64
    assert_close(other.extract_text_features(tokens), model.extract_text_features(tokens), atol=0.03, rtol=0)


def test_every_extract_of_a_classifier_returns_logits(tmp_path):
    head = case("classify_audio").weights
    tensors = {**state("audio", tables=3), **{name: t for name, t in head.items() if name not in weights()}}
    torch.save(wrapper(tensors, cfg(head_type="audio")), tmp_path / "vgg.pt")
    model = from_pretrained(tmp_path / "vgg.pt", "one_peace_classify", device="cpu", download_root=tmp_path)
    inputs = case("classify_audio").inputs
    logits = model.extract_audio_features(inputs["src_audios"], inputs["audio_padding_masks"])
    assert_close(logits, case("classify_audio").outputs["logits"], atol=2e-5, rtol=0)
    with pytest.raises(UserError, match="no text; it has audio"):
        model.process_text(["a"])
    with pytest.raises(UserError, match="no text; it has audio"):
        model.extract_text_features(torch.tensor([[9, 2]]))
    with pytest.raises(UserError, match="use model_type='one_peace_classify'"):
        from_pretrained(tmp_path / "vgg.pt", device="cpu", download_root=tmp_path)


def test_wrong_names_are_errors_that_list_the_known(model, folder, checkpoint):
    load = {"download_root": folder / "made", "device": "cpu"}
    with pytest.raises(UserError, match="'float61' is not known; known: auto, float32"):
        from_pretrained(checkpoint, dtype="float61", **load)
    with pytest.raises(UserError, match="float16 is not computed on a CPU"):
        from_pretrained(checkpoint, dtype="fp16", **load)
    with pytest.raises(UserError, match="known: one_peace_retrieval, one_peace_classify"):
        from_pretrained(checkpoint, "one_peace", **load)
    with pytest.raises(UserError, match="no classifier"):
        from_pretrained(checkpoint, "one_peace_classify", **load)
    with pytest.raises(UserError, match="one_peace_classify"):
        model.extract_vl_features(torch.zeros(1, 3, 64, 64), torch.tensor([[9, 2]]))
