"""Models of other libraries as towers of one space: small ones with random weights, saved as their libraries do."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support import outside_models

import onepeace
from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.export.folder import export_model
from onepeace.hub import weights
from onepeace.hub.architectures import build_encoder
from onepeace.hub.folder import read_config
from onepeace.hub.identity import identify
from onepeace.hub.resolve import resolve
from onepeace.index import Index, Query, build
from onepeace.serve.service import Service

TEXTS = ["a dog barks", "the deep low tone of the far away red square and the green", "blue"]
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The folder of a small model of each kind."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("outside")
    for kind in ("open_clip", "clip", "siglip", "clap", "bert"):
        getattr(outside_models, kind)(root / kind)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def pictures(samples) -> list[Path]:
    """Photographs that are wider than high, and higher than wide."""
    return [samples / "images" / name for name in ("dog.jpg", "cat.jpg", "sea.jpg")]


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, count).astype(np.float32) for count in (3000, 8000, 5000)]


@pytest.fixture(scope="module")
def sounds(waves) -> list[tuple[np.ndarray, int]]:
    return [(wave, outside_models.SOUND_RATE) for wave in waves]


@pytest.fixture(scope="module")
def names(folders) -> dict[str, str]:
    """Their names for `onepeace.load`."""
    names = {kind: f"transformers:{folder}" for kind, folder in folders.items()}
    names["open_clip"] = f"open_clip:local-dir:{folders['open_clip']}"
    names["both"] = f"{names['open_clip']} + clap:{folders['clap']}"
    return names


@pytest.fixture(scope="module")
def seeing(names) -> onepeace.Embedder:
    return onepeace.load(names["open_clip"], device="cpu")


@pytest.fixture(scope="module")
def hearing(names) -> onepeace.Embedder:
    return onepeace.load(names["clap"], device="cpu")


@pytest.fixture(scope="module")
def both(names) -> onepeace.Embedder:
    return onepeace.load(names["both"], device="cpu")


def same_in_any_company(model: onepeace.Embedder, items: list, wanted: torch.Tensor) -> None:
    """The vectors of items are these unit vectors, in one batch, one by one, and in another order."""
    wanted = F.normalize(wanted.detach(), dim=1)
    torch.testing.assert_close(model.encode(items), wanted, **CLOSE)
    torch.testing.assert_close(model.encode(items[::-1], batch_size=1).flip(0), wanted, **CLOSE)


def test_vectors_of_open_clip(folders, seeing, pictures):
    name = f"local-dir:{folders['open_clip']}"
    library, _, preprocess = open_clip.create_model_and_transforms(name)
    library.eval()
    pixels = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in pictures])
    assert seeing.modalities == ("text", "image")
    same_in_any_company(seeing, pictures, library.encode_image(pixels))
    same_in_any_company(seeing, TEXTS, library.encode_text(open_clip.get_tokenizer(name)(TEXTS)))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vectors_of_transformers(folders, names, pictures, kind):
    library = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders[kind])
    padding = {"padding": "max_length", "max_length": 12} if kind == "siglip" else {"padding": True}
    tokens = processor.tokenizer(TEXTS, truncation=True, return_tensors="pt", **padding)
    pixels = processor.image_processor([Image.open(path).convert("RGB") for path in pictures], return_tensors="pt")
    model = onepeace.load(names[kind], device="cpu")
    same_in_any_company(model, TEXTS, library.get_text_features(**tokens).pooler_output)
    same_in_any_company(model, pictures, library.get_image_features(**pixels).pooler_output)


def test_vectors_of_clap(folders, hearing, waves, sounds):
    library = transformers.ClapModel.from_pretrained(folders["clap"]).eval()
    processor = transformers.ClapProcessor.from_pretrained(folders["clap"])
    tokens = processor.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    features = processor.feature_extractor(waves, sampling_rate=outside_models.SOUND_RATE, return_tensors="pt")
    assert hearing.modalities == ("text", "audio")
    same_in_any_company(hearing, sounds, library.get_audio_features(**features).pooler_output)
    same_in_any_company(hearing, TEXTS, library.get_text_features(**tokens).pooler_output)


def test_sum_has_a_block_for_each_tower(seeing, hearing, both, pictures, sounds):
    assert both.modalities == ("text", "image", "audio")
    nothing = torch.zeros(3, 8)
    torch.testing.assert_close(both.encode(pictures), torch.cat([seeing.encode(pictures), nothing], dim=1), **CLOSE)
    torch.testing.assert_close(both.encode(sounds), torch.cat([nothing, hearing.encode(sounds)], dim=1), **CLOSE)
    blocks = torch.cat([seeing.encode(TEXTS), hearing.encode(TEXTS)], dim=1)
    torch.testing.assert_close(both.encode(TEXTS), blocks / 2**0.5, **CLOSE)
    for alone, items in ((seeing, pictures), (hearing, sounds)):
        torch.testing.assert_close(both.classify(items, TEXTS), alone.classify(items, TEXTS), atol=1e-4, rtol=0)


def test_modalities_that_are_left_out_keep_the_space(names, both, sounds):
    part = onepeace.load(names["both"], device="cpu", modalities=["audio"])
    assert part.modalities == ("audio",)
    assert sum(p.numel() for p in part.module.parameters()) < 100_000  # open_clip's vocabulary is not in memory
    torch.testing.assert_close(part.encode(sounds), both.encode(sounds), **CLOSE)


def test_a_silent_sound_is_said_to_be_silent(hearing):
    (result,) = hearing.stream([(np.zeros(4000, np.float32), 8000)])
    assert result.is_silent


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_changed_weights_are_refused_and_have_another_identity(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    name = f"transformers:{tmp_path / 'clip'}"
    before = onepeace.load(name, device="cpu").identity
    assert before == identify(name)
    edit_weights(tmp_path / "clip", lambda tensors: tensors["logit_scale"].add_(0.1))
    with pytest.raises(UserError, match=r"have changed .* delete (\S+),") as error:
        onepeace.load(name, device="cpu")
    shutil.rmtree(re.search(r"delete (\S+),", str(error.value))[1])
    assert onepeace.load(name, device="cpu").identity.hash != before.hash


def test_weights_that_are_missing_are_not_random(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    edit_weights(tmp_path / "clip", lambda tensors: tensors.pop("visual_projection.weight"))
    with pytest.raises(UserError, match=r"lack 1 of its weights, such as visual_projection\.weight"):
        onepeace.load(f"transformers:{tmp_path / 'clip'}", device="cpu")


def test_names_hold_from_any_working_folder(folders, names, monkeypatch):
    monkeypatch.chdir(folders["clip"].parent)
    assert identify("transformers:clip") == identify(names["clip"])
    assert identify("open_clip:local-dir:open_clip  +  clap:clap") == identify(names["both"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:ViT-B-32", "ViT-B-32/WEIGHTS; there are openai, "),
        ("open_clip:ViT-B-32/mine", "ViT-B-32/WEIGHTS; there are openai, "),
        ("open_clip:ViT-X/openai", "no weights of ViT-X"),
        ("open_clip:local-dir:nowhere", "not found: nowhere"),
        ("clap:laion/nothing", "the Hugging Face Hub cannot be reached"),
        ("tiny + clap:laion/clap", "tiny: models that can be combined are open_clip:"),
        ("transformers:{bert}", "does not compare texts with pictures or sounds"),
        ("transformers:{clip} + transformers:{siglip}", "both read image; leave one of them out"),
    ],
)
def test_names_of_nothing_are_one_line(folders, name, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    with pytest.raises(UserError, match=words) as error:
        onepeace.load(name.format_map(folders), device="cpu")
    assert "\n" not in str(error.value)


def test_what_needs_more_than_vectors_is_refused(names, both, pictures, tmp_path):
    for call in (
        lambda: both.explain(pictures[0], "red"),
        lambda: both.features({"text": "red"}),
        lambda: both.predict(pictures),
        lambda: export_model(names["both"], tmp_path / "export"),
        lambda: weights.load(resolve(names["both"])),
        lambda: build_encoder(read_config(resolve(names["both"]))),
    ):
        with pytest.raises(UserError, match="vectors only"):
            call()


@pytest.fixture(scope="module")
def mixed(both, pictures, samples, tmp_path_factory) -> Path:
    """An index of pictures, sounds and a text, made with two models."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "red.txt").write_text("a red square")
    sounds = [samples / "sounds" / name for name in ("dog.ogg", "cat.ogg", "rain.ogg")]
    build(root / "index", [*pictures, *sounds, root / "red.txt"], both)
    return root / "index"


def test_mixed_list_is_ranked_by_the_generic_words(mixed, both, monkeypatch, tmp_path):
    with Index.open(mixed, model=both) as index:
        hits = index.search("a dog barks").hits
        assert {hit.item.modality for hit in hits} == {"image", "audio", "text"}
        assert all(0 <= hit.match <= 1 for hit in hits)
        assert {hit.modality for hit in hits if hit.match is not None} == {"image", "audio", "text"}
    monkeypatch.setattr(both, "encode_text", None)  # the words are kept, and not encoded again
    build(tmp_path / "index", mixed.parent / "red.txt", both)


def test_query_finds_only_what_shares_a_space_with_it(mixed, both, pictures):
    with Index.open(mixed, model=both) as index:
        hits = index.search(Query(image=pictures[0])).hits
        assert {hit.item.modality for hit in hits} == {"image", "text"}
        assert index.search(Query(image=pictures[0], text="a dog barks")).compared == 6
        with pytest.raises(UserError, match=r"no space in common with audio .* search by words"):
            index.search(Query(image=pictures[0]), only="audio")
        assert not index.search(Query(image=pictures[0]), only="audio", where="size > 1e9").hits


def test_info_names_the_towers(names, both, folders, capsys):
    assert main(["info", names["both"]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"one space for +text, image, audio\n", out)
    assert f"clap:{folders['clap']}" in out


def test_a_server_takes_as_many_labels_as_with_other_models(mixed, both):
    with Index.open(mixed, model=both) as index:
        service = Service(index)
        labels = [f"a label of some words, {number}" for number in range(service.limits.labels)]
        assert sum(map(len, labels)) > service.limits.label_tokens  # characters are not tokens
        assert len(service.classify([{"text": "red"}], labels)[0]) == len(labels)


def test_command_line_takes_several_names(names, pictures, capsys):
    assert main(["search", str(pictures[0]), "a dog barks", "--no-index", "--model", names["both"], "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["path"] == str(pictures[0])
