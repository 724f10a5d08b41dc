import sys
import types

import pytest
from support.downloads import DOWNLOADS, fill
from support.finetune_downloads import FINETUNE

from onepeace.cli import main
from onepeace.datasets import LAYOUTS
from onepeace.datasets.written import read_shard


@pytest.fixture
def layouts_restored():
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)
    for file in ("mine", "own_layouts"):  # imported anew by the next test
        sys.modules.pop(file, None)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()
    return folder


@pytest.fixture
def prepare(tmp_path, source, capsys):
    """Makes the shards of a layout; gives the samples that were written by key, for train and val, and the messages.

    `files` are written to its made-up download (DOWNLOADS, FINETUNE) in place of those there, None takes one away.
    """
    filled = set()

    def run(name, *options, files=(), code=0, layouts=()):
        makers = {**DOWNLOADS, **FINETUNE}
        download = makers[name]() if name in makers and name not in filled else {}
        filled.add(name)
        fill(source, {key: content for key, content in {**download, **dict(files)}.items() if content is not None})
        for key, content in dict(files).items():
            if content is None:
                (source / key).unlink(missing_ok=True)
        root = tmp_path / "root"
        assert main(["shards", *layouts, "--layout", name, str(source), "-o", str(root), *options]) == code
        result = {
            split: {s.key: s for shard in sorted((root / split).rglob("*.tar")) for s in read_shard(shard)}
            for split in ("train", "val")
        }
        return types.SimpleNamespace(root=root, **result, **capsys.readouterr()._asdict())

    return run
