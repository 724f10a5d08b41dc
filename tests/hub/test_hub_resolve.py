"""From a name to a model folder; a local folder never touches the network."""

import os
import re
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from support.hub_layouts import cfg, released, small_vocabulary, state, wrapper

from onepeace.errors import UserError
from onepeace.hub import resolve as resolve_module
from onepeace.hub import weights
from onepeace.hub.registry import RELEASED, find
from onepeace.hub.resolve import resolve


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of our own, and no network: whoever tries fails the test."""
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))

    def refused(*args, **options):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    monkeypatch.setattr(resolve_module, "fetch", refused)
    return tmp_path / "cache"


def model_folder(path):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("format: 1\nmodel: {adapters: {text: {}}}\n")
    return path


@pytest.mark.parametrize("kind", [str, lambda path: path, lambda path: os.path.relpath(path)])
def test_local_folder_never_touches_the_network(tmp_path, kind):
    folder = model_folder(tmp_path / "here" / "model")

    assert resolve(kind(folder)).resolve() == folder


def test_folder_whose_replacement_was_cut_off_comes_back(tmp_path):
    folder = model_folder(tmp_path / "here" / "model")
    folder.rename(tmp_path / "here" / ".model.4711.old")

    assert resolve(folder) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_local_folder_wins_over_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one-peace", "owner/name"):
        folder = model_folder(tmp_path / name)
        assert resolve(name).resolve() == folder


NEAREST = {
    "one-peace-cocco": "one-peace-coco", "tinny": "tiny", "one-piece": "one-peace",
    "ONE-PEACE-VGG": "one-peace-vggsound",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", r"no config\.yaml, so this is no model folder \(it has x\.pt\)"),
        ("x.pt", r"is a file; make a model folder of it with: onepeace convert .*x\.pt -o OUT"),
        *((name, "no such folder") for name in ("./absent", "~/absent-model", "a/b/c", "/absent")),
        *((name, rf"no model '{name}'; did you mean .*{near}") for name, near in NEAREST.items()),
        ("zzzzzz", "bundled: tiny, tiny-fast, tiny-captions; onepeace info --help"),
        ("", "no model ''"),
    ],
)
def test_a_name_of_no_model_is_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(UserError, match=message) as error:
        resolve(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ONE-PEACE_RefCOCOg", "one-peace-refcocog"),
        ("One_Peace_COCO", "one-peace-coco"),
        ("finetune_refcoco+", "one-peace-refcoco+"),
        ("finetune_aqa.pt", "one-peace-avqa"),
        ("ofa_large.pt", "ofa-large"),
        ("tiny", None),
    ],
)
def test_released_names_of_any_spelling(name, key):
    assert find(name) == key


def test_registry_is_consistent():
    assert len([entry for entry in RELEASED.values() if not entry.generates]) == 16
    assert len([entry for entry in RELEASED.values() if entry.generates]) == 22
    assert len({entry.url for entry in RELEASED.values()}) == 38
    for name, entry in RELEASED.items():
        assert re.fullmatch(r"https://[\w.-]+/[\w./%-]+", entry.url)
        assert name == name.lower()
        assert find(entry.file) == name


@pytest.fixture
def network(monkeypatch, tmp_path):
    """A pretended network: which files it has, and what was asked of it."""
    asked = []

    def fetched(url, path, copies=1):
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        audio = url.endswith("finetune_vggsound.pt")
        torch.save(wrapper(state("audio") if audio else released(), cfg()), path)
        return path

    def vocabulary(repository, **_):
        asked.append(repository)
        folder = tmp_path / "vocabulary"
        return folder if folder.is_dir() else small_vocabulary(folder)

    monkeypatch.setattr(resolve_module, "fetch", fetched)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", vocabulary)
    return asked


def test_released_model_is_downloaded_and_converted_once(cache, network):
    folder = resolve("ONE-PEACE")

    assert folder == cache / "one-peace"
    assert list(weights.load(folder).config.adapters) == ["text", "image", "audio"]
    assert network[0] == "facebook/bart-base"  # the small file first: it may fail
    assert RELEASED["one-peace"].url in network
    assert not (cache / "downloads" / "one-peace.pt").exists()
    network.clear()
    assert resolve("one-peace") == folder
    assert network == []


def test_model_without_text_needs_no_vocabulary(cache, network):
    assert resolve("one-peace-vggsound") == cache / "one-peace-vggsound"
    assert network == [RELEASED["one-peace-vggsound"].url]


def test_hub_repository_is_fetched(tmp_path, monkeypatch):
    asked, caches = [], []

    def snapshot(repository, allow_patterns, cache_dir):
        asked.append((repository, allow_patterns))
        caches.append(cache_dir)
        return str(model_folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)

    assert resolve("owner/my-model.v2", tmp_path / "elsewhere") == tmp_path / "snapshot"
    ((repository, patterns),) = asked
    assert caches == [tmp_path / "elsewhere"]
    assert repository == "owner/my-model.v2"
    assert not [pattern for pattern in patterns if "pt" in pattern or "pkl" in pattern or pattern == "*"]


def test_no_hub_is_one_line(monkeypatch):
    def offline(*args, **options):
        raise OSError("cannot reach\nhuggingface.co")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError) as error:
        resolve("owner/name")

    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("owner/name: no such folder here, and the model (owner/name of the Hugging Face Hub)")
    assert "check the name and the network" in text


def test_page_of_models_lists_every_released_name():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page, re.MULTILINE)
    assert rows == [(name, released.about) for name, released in RELEASED.items()]
