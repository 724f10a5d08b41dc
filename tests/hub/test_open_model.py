"""A model is opened once: what is opened stands for its name, and each of its files is read once."""

from collections import Counter

import pytest
from support.embedding import TEXTS, assert_same

import onepeace
from onepeace.hub import architectures, folder, tensors, weights
from onepeace.hub.resolve import fetch_model, fingerprint, open_model
from onepeace.plugins import open_clip
from onepeace.processors import text

FILES = {"read_yaml": folder, "open_weights": weights, "read_tokenizer": text}
"""What reads a file of a model folder, and the module that calls it."""


@pytest.fixture
def counted(monkeypatch):
    """How often files have been read and networks built."""
    count = Counter()

    def count_calls(module, name):
        function = getattr(module, name)

        def counting(*arguments, **options):
            count[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counting)

    for name, module in FILES.items():
        count_calls(module, name)
    for module in (architectures, tensors, weights):  # each has imported it
        count_calls(module, "build_module")
    return count


def test_loading_reads_each_file_once_and_builds_one_network(counted, random_folder):
    onepeace.load(random_folder, device="cpu")
    assert counted == {"read_yaml": 1, "open_weights": 1, "read_tokenizer": 1, "build_module": 1}


def test_loading_of_some_modalities_builds_the_whole_network_too(counted, random_folder):
    """Its tensors and its size are those of the files."""
    onepeace.load(random_folder, device="cpu", modalities=["image"])
    assert counted == {"read_yaml": 1, "open_weights": 1, "build_module": 2}


def test_open_model_stands_for_its_name(counted, random_folder, model, tmp_path):
    opened = fetch_model(random_folder)
    assert fetch_model(opened) is open_model(opened) is opened
    assert opened.identity == model.identity == (str(random_folder), fingerprint(random_folder), True)

    assert_same(onepeace.load(opened, device="cpu").encode_text(TEXTS), model.encode_text(TEXTS))
    assert weights.describe(opened).config is opened.config
    weights.convert(opened, tmp_path / "copy", modalities=["text"])
    open_clip.get_tokenizer(opened)
    assert counted["read_yaml"] == 1
