import pytest
from support.downloads import DOWNLOADS, fill
from support.finetune_downloads import FINETUNE
from support.layouts import Prepared, layout_file

from onepeace.cli import main
from onepeace.datasets.write_shards import read_shard


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()
    return folder


@pytest.fixture
def prepare(tmp_path, source, capsys):
    """Makes the shards of a layout by the command, which must end with that code; returns a `Prepared`.

    `files` are written to its made-up download (DOWNLOADS, FINETUNE) in place of those there, None takes one away.
    """
    filled = set()

    def run(name, *options, files=(), code=0, layout=None):
        make_download = {**DOWNLOADS, **FINETUNE}.get(name, dict)
        if name not in filled:
            fill(source, make_download())
        filled.add(name)
        fill(source, dict(files))
        root = tmp_path / "root"
        file = str(layout or layout_file(name))
        arguments = ["shards", "--layout", file, str(source), "-o", str(root), *options]
        assert main(arguments) == code
        out, err = capsys.readouterr()
        return Prepared(root, train=read_all(root / "train"), val=read_all(root / "val"), out=out, err=err)

    return run


def read_all(folder):
    """What is written in all shards below a folder, by key."""
    records = {}
    for shard in sorted(folder.rglob("*.tar")):
        records |= {record.key: record for record in read_shard(shard)}
    return records
