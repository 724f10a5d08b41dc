"""Models of other libraries as towers of one space: small ones with random weights, saved as their libraries do."""

import re
import shutil

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support import outside_models
from support.embedding import assert_same
from torch.nn.functional import normalize

import onepeace
from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.export.folder import export_model
from onepeace.hub import weights
from onepeace.hub.architectures import build_encoder
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import fetch_model
from onepeace.hub.towers.config import public_name
from onepeace.hub.towers.libraries import open_tower
from onepeace.index import Index, Query, build

TEXTS = ["a dog barks", "the deep low tone of the far away red square and the green", "blue"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a small model of each library."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("outside")
    for save in (
        outside_models.open_clip,
        outside_models.clip,
        outside_models.siglip,
        outside_models.clap,
        outside_models.bert,
    ):
        save(root / save.__name__)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def pictures(samples):
    """Photographs that are wider than high, and higher than wide."""
    return [samples / "images" / name for name in ("dog.jpg", "cat.jpg", "sea.jpg")]


@pytest.fixture(scope="module")
def waves():
    generator = np.random.default_rng(0)
    lengths = (3000, 8000, 5000)
    return [generator.normal(0, 0.1, length).astype(np.float32) for length in lengths]


@pytest.fixture(scope="module")
def sounds(waves):
    return [(wave, outside_models.SOUND_RATE) for wave in waves]


@pytest.fixture(scope="module")
def names(folders):
    """Their names for `onepeace.load`."""
    names = {key: f"transformers:{folder}" for key, folder in folders.items()}
    names["open_clip"] = f"open_clip:local-dir:{folders['open_clip']}"
    names["both"] = f"{names['open_clip']} + clap:{folders['clap']}"
    return names


@pytest.fixture(scope="module")
def seeing(names):
    return onepeace.load(names["open_clip"], device="cpu")


@pytest.fixture(scope="module")
def hearing(names):
    return onepeace.load(names["clap"], device="cpu")


@pytest.fixture(scope="module")
def both(names):
    return onepeace.load(names["both"], device="cpu")


def check_vectors(model, items, library_vectors):
    """The vectors of items are these, of unit length, in one batch, and one by one in another order."""
    expected = normalize(library_vectors, dim=1)
    assert_same(model.encode(items), expected)
    one_by_one = model.encode(items[::-1], batch_size=1)
    assert_same(one_by_one.flip(0), expected)


def open_pictures(paths):
    return [Image.open(path).convert("RGB") for path in paths]


def test_vectors_of_open_clip(folders, seeing, pictures):
    name = f"local-dir:{folders['open_clip']}"
    library, _, preprocess = open_clip.create_model_and_transforms(name)
    library.eval()
    pixels = torch.stack([preprocess(picture) for picture in open_pictures(pictures)])
    ids = open_clip.get_tokenizer(name)(TEXTS)

    assert seeing.modalities == ("text", "image")
    check_vectors(seeing, pictures, library.encode_image(pixels))
    check_vectors(seeing, TEXTS, library.encode_text(ids))


@pytest.mark.parametrize(
    ("key", "padding"),
    [
        ("clip", {"padding": True}),
        ("siglip", {"padding": "max_length", "max_length": 12}),
    ],
)
def test_vectors_of_transformers(folders, names, pictures, key, padding):
    library = transformers.AutoModel.from_pretrained(folders[key]).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders[key])
    tokens = processor.tokenizer(TEXTS, truncation=True, return_tensors="pt", **padding)
    pixels = processor.image_processor(open_pictures(pictures), return_tensors="pt")

    model = onepeace.load(names[key], device="cpu")

    check_vectors(model, TEXTS, library.get_text_features(**tokens).pooler_output)
    check_vectors(model, pictures, library.get_image_features(**pixels).pooler_output)


def test_vectors_of_clap(folders, hearing, waves, sounds):
    library = transformers.ClapModel.from_pretrained(folders["clap"]).eval()
    processor = transformers.ClapProcessor.from_pretrained(folders["clap"])
    tokens = processor.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    features = processor.feature_extractor(waves, sampling_rate=outside_models.SOUND_RATE, return_tensors="pt")

    assert hearing.modalities == ("text", "audio")
    check_vectors(hearing, sounds, library.get_audio_features(**features).pooler_output)
    check_vectors(hearing, TEXTS, library.get_text_features(**tokens).pooler_output)


def test_sum_has_a_block_for_each_tower(seeing, hearing, both, pictures, sounds):
    zeros = torch.zeros(3, 8)
    assert both.modalities == ("text", "image", "audio")
    assert_same(both.encode(pictures), torch.hstack([seeing.encode(pictures), zeros]))
    assert_same(both.encode(sounds), torch.hstack([zeros, hearing.encode(sounds)]))
    text_blocks = torch.hstack([seeing.encode(TEXTS), hearing.encode(TEXTS)])
    assert_same(both.encode(TEXTS), text_blocks / 2**0.5)


def test_classes_of_a_sum_are_those_of_its_towers(seeing, hearing, both, pictures, sounds):
    assert_same(both.classify(pictures, TEXTS), seeing.classify(pictures, TEXTS), atol=1e-4)
    assert_same(both.classify(sounds, TEXTS), hearing.classify(sounds, TEXTS), atol=1e-4)


def test_modalities_that_are_left_out_keep_the_space(names, both, sounds):
    model = onepeace.load(names["both"], device="cpu", modalities=["audio"])

    assert model.modalities == ("audio",)
    num_numbers = sum(parameter.numel() for parameter in model.module.parameters())
    assert num_numbers < 100_000  # open_clip's vocabulary is not in memory
    assert_same(model.encode(sounds), both.encode(sounds))


def test_silent_sound_is_called_silent(hearing):
    silence = np.zeros(4000, np.float32)
    (result,) = hearing.stream([(silence, 8000)])
    assert result.is_silent


@pytest.fixture
def clip_copy(folders, tmp_path):
    """A folder whose weights may be changed."""
    return shutil.copytree(folders["clip"], tmp_path / "clip")


def edit_weights(folder, edit):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_changed_weights_are_refused_and_have_another_identity(clip_copy):
    name = f"transformers:{clip_copy}"
    identity = onepeace.load(name, device="cpu").identity
    assert identity == fetch_model(name).identity
    edit_weights(clip_copy, lambda tensors: tensors["logit_scale"].add_(0.1))

    with pytest.raises(UserError, match=r"delete (\S+),") as error:
        onepeace.load(name, device="cpu")

    shutil.rmtree(re.search(r"delete (\S+),", str(error.value))[1])
    assert onepeace.load(name, device="cpu").identity.hash != identity.hash


def test_missing_weights_are_not_random(clip_copy):
    edit_weights(clip_copy, lambda tensors: tensors.pop("visual_projection.weight"))
    with pytest.raises(UserError, match=r"visual_projection\.weight"):
        onepeace.load(f"transformers:{clip_copy}", device="cpu")


def test_names_hold_from_any_working_folder(folders, names, monkeypatch):
    monkeypatch.chdir(folders["clip"].parent)
    assert fetch_model("transformers:clip").identity == fetch_model(names["clip"]).identity
    assert fetch_model("open_clip:local-dir:open_clip  +  clap:clap").identity == fetch_model(names["both"]).identity


@pytest.mark.parametrize(("name", "expected"), [("owner/a", ("owner/a", None)), ("owner/a@v1", ("owner/a", "v1"))])
def test_name_may_have_a_revision(monkeypatch, name, expected):
    asked = []

    def from_pretrained(repository, *, revision, **_):
        asked.append((repository, revision))
        raise UserError("asked")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="asked"):
        open_tower(f"transformers:{name}")
    assert asked == [expected]


def test_public_name_has_no_folders(names):
    assert public_name(names["both"]) == "open_clip:local-dir:open_clip + clap:clap"
    assert public_name("tiny") == "tiny"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:ViT-B-32", "ViT-B-32/WEIGHTS.* openai, "),
        ("open_clip:ViT-X/openai", "no weights of ViT-X"),
        ("clap:laion/nothing", "cannot be reached"),
        ("tiny + clap:laion/clap", "tiny: .*open_clip:"),
        ("transformers:{bert}", "does not compare texts"),
        ("transformers:{clip} + transformers:{siglip}", "both read image"),
    ],
)
def test_name_of_no_model_is_one_line(folders, name, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers there

    with pytest.raises(UserError, match=words) as error:
        onepeace.load(name.format_map(folders), device="cpu")

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda name, model, tmp_path: model.explain(Image.new("RGB", (9, 9)), "red"),
        lambda name, model, tmp_path: export_model(name, tmp_path / "export"),
        lambda name, model, tmp_path: weights.load(fetch_model(name).folder),
        lambda name, model, tmp_path: build_encoder(read_config(fetch_model(name).folder)),
    ],
)
def test_use_of_more_than_vectors_is_refused(names, both, tmp_path, use):
    with pytest.raises(UserError, match="vectors only"):
        use(names["both"], both, tmp_path)


@pytest.fixture(scope="module")
def mixed(both, pictures, samples, tmp_path_factory):
    """An index of pictures, sounds and a text, made with two models."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "red.txt").write_text("a red square")
    sounds = [samples / "sounds" / name for name in ("dog.ogg", "cat.ogg", "rain.ogg")]
    build(root / "index", [*pictures, *sounds, root / "red.txt"], both)
    return root / "index"


def test_query_finds_only_what_shares_a_space_with_it(mixed, both, pictures):
    with Index.open(mixed, model=both) as index:
        hits = index.search(Query(image=pictures[0])).hits
        assert {hit.item.kind for hit in hits} == {"image", "text"}
        assert index.search(Query(image=pictures[0], text="a dog barks")).compared == 6


def test_query_that_shares_no_space_is_refused(mixed, both, pictures):
    query = Query(image=pictures[0])
    with Index.open(mixed, model=both) as index:
        with pytest.raises(UserError, match="space in common with audio"):
            index.search(query, only="audio")
        assert not index.search(query, only="audio", where="size > 1e9").hits


def test_info_names_the_towers(names, folders, capsys):
    assert main(["info", names["both"]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"one space for +text, image, audio\n", out)
    assert f"clap:{folders['clap']}" in out
