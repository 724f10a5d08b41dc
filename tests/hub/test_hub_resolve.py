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
from onepeace.hub import download, weights
from onepeace.hub import resolve as resolve_module
from onepeace.hub.download import RELEASED
from onepeace.hub.resolve import fetch_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of our own, and no network: whoever tries fails the test."""
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))

    def refuse(*args, **options):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(download, "is_hub_reachable", lambda: True)
    monkeypatch.setattr(resolve_module, "fetch", refuse)
    return tmp_path / "cache"


def write_folder(path):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("format: 1\nmodel: {adapters: {text: {}}}\n")
    return path


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "here" / "model")


@pytest.mark.parametrize("form", [str, Path, os.path.relpath])
def test_local_folder_never_touches_the_network(folder, form):
    assert fetch_model(form(folder)).folder.resolve() == folder


@pytest.mark.parametrize("name", ["one-peace", "owner/name"])
def test_local_folder_wins_over_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / name)
    assert fetch_model(name).folder.resolve() == folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", r"config\.yaml.*x\.pt"),
        ("x.pt", r"onepeace convert x\.pt"),
        ("./absent", "no such model folder"),
        ("/absent", "no such model folder"),
        ("one-peace-cocco", "did you mean .*one-peace-coco"),
        ("ONE-PEACE_VGG", "did you mean .*one-peace-vggsound"),
        ("zzzzzz", "bundled: tiny, tiny-fast, tiny-captions"),
    ],
)
def test_name_of_no_model_is_one_line(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(UserError, match=words) as error:
        fetch_model(name)
    assert "\n" not in str(error.value)


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """A pretended network; the addresses and repositories that were asked for."""
    requests = []

    def fetch(url, path, copies=1):
        requests.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = state("audio") if url.endswith("finetune_vggsound.pt") else released()
        torch.save(wrapper(tensors, cfg()), path)
        return path

    def snapshot_download(repository, **_):
        requests.append(repository)
        folder = tmp_path / "vocabulary"
        return folder if folder.is_dir() else small_vocabulary(folder)

    monkeypatch.setattr(resolve_module, "fetch", fetch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requests


def test_released_model_is_downloaded_and_converted_once(cache, requests):
    folder = fetch_model("one-peace").folder

    assert folder == cache / "one-peace"
    assert list(weights.load(folder).config.adapters) == ["text", "image", "audio"]
    assert requests[0] == "facebook/bart-base"  # the small file first: it may fail
    assert RELEASED["one-peace"].url in requests
    assert not (cache / "downloads" / "one-peace.pt").exists()
    requests.clear()
    assert fetch_model("one-peace").folder == folder
    assert requests == []


def test_model_without_text_needs_no_vocabulary(cache, requests):
    assert fetch_model("one-peace-vggsound").folder == cache / "one-peace-vggsound"
    assert requests == [RELEASED["one-peace-vggsound"].url]


@pytest.mark.parametrize(("suffix", "revision"), [("", None), ("@v1.0", "v1.0"), ("@refs/pr/3", "refs/pr/3")])
def test_hub_repository_is_fetched(folder, tmp_path, monkeypatch, suffix, revision):
    calls = []

    def snapshot_download(repository, *, revision, allow_patterns, cache_dir, local_files_only):
        calls.append((repository, revision, allow_patterns, cache_dir))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    assert fetch_model(f"owner/my-model.v2{suffix}", tmp_path / "elsewhere").folder == folder
    ((repository, asked_revision, patterns, cache_folder),) = calls
    assert repository == "owner/my-model.v2"
    assert asked_revision == revision
    assert cache_folder == tmp_path / "elsewhere"
    assert not [pattern for pattern in patterns if "pt" in pattern or "pkl" in pattern or pattern == "*"]


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def offline(*args, **options):
        raise OSError("cannot reach\nhuggingface.co")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"^owner/name: .*network") as error:
        fetch_model("owner/name")
    assert "\n" not in str(error.value)


def test_hub_that_does_not_answer_is_not_asked_for_files(folder, monkeypatch):
    asked = []

    def snapshot_download(repository, *, local_files_only, **options):
        asked.append(local_files_only)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(download, "is_hub_reachable", lambda: False)

    assert fetch_model("owner/name").folder == folder
    assert asked == [True]


def test_page_of_models_lists_every_released_name():
    path = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
    page = path.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page, re.MULTILINE)
    assert rows == [(name, released.about) for name, released in RELEASED.items()]
