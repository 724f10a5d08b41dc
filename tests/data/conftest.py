import pytest
from support.batches import SIZE, pictures, sounds
from support.small_shards import write_tar

from onepeace.data import shard
from onepeace.processors import PROCESSORS, TextProcessor
from onepeace.processors.tokenizer import train_bpe


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(shard, "READ_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(shard, "FETCH_PAUSES", (0.0, 0.0))
    shard.forget_open_files()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_tar(folder / "pictures-0.tar", pictures(5))
    write_tar(folder / "pictures-1.tar.gz", pictures(3, first=5))
    write_tar(folder / "more.tar", pictures(4, first=100, label="gull"))
    write_tar(folder / "sounds.tar", sounds(6))
    return folder


@pytest.fixture(scope="module")
def processors():
    tokenizer = train_bpe([f"picture number {i} a photo of thing sound gull and class" for i in range(9)], 300)
    return {
        "image": PROCESSORS["image"](size=SIZE),
        "audio": PROCESSORS["audio"](max_seconds=2.0),
        "text": TextProcessor(tokenizer, max_tokens=12),
    }
