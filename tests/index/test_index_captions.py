"""`onepeace index caption`: captions a model wrote, kept with the pictures of an index, and found by them."""

import json
from contextlib import closing

import pytest
from support.generative import save_small_ofa

import onepeace
from onepeace.cli import main
from onepeace.index.captions import BY
from onepeace.index.store import Store
from onepeace.index.verify import verify
from onepeace.index.write import build, update


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return save_small_ofa(tmp_path_factory.mktemp("ofa") / "model")


@pytest.fixture
def built(tmp_path, random_folder, samples):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("cat.jpg", "bus.jpg", "sea.jpg"):
        (pictures / name).write_bytes((samples / "images" / name).read_bytes())
    table = tmp_path / "given.csv"
    table.write_text(f"path,caption\n{pictures}/sea.jpg,the sea as it was\n", encoding="utf-8")
    build(tmp_path / "index", [table, pictures], str(random_folder), device="cpu")
    return tmp_path / "index"


def captions(folder):
    with closing(Store(folder)) as store:
        return {item.path.rpartition("/")[2]: (item.caption, item.metadata.get(BY)) for item in store.items()}


def caption(index, writer, *options):
    return main(["index", "caption", "--index", str(index), "--model", str(writer), "--device", "cpu", *options])


def test_pictures_without_a_caption_get_one(built, writer, samples, capsys, random_folder):
    assert caption(built, writer) == 0
    assert "2 captions written, 1 were there" in capsys.readouterr().err
    found = captions(built)
    expected = onepeace.load_generator(writer, device="cpu").caption([samples / "images" / "cat.jpg"])[0].text
    assert found["cat.jpg"] == (expected, str(writer))
    assert found["sea.jpg"] == ("the sea as it was", None)
    assert not verify(built).lines()
    # What finds them:
    word = expected.split()[0]
    where = ["--where", f"caption ~ '{word}'", "--json", "--device", "cpu"]
    code = main(["search", str(built), "--text", "a cat", *where])
    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    assert any(path.endswith("cat.jpg") for path in paths)
    assert not any(path.endswith("sea.jpg") for path in paths)
    # They stay when the index is brought up to date.
    update(built, str(random_folder), device="cpu")
    assert captions(built) == found


def test_what_a_model_wrote_is_written_again_only_if_asked(built, writer, capsys):
    caption(built, writer)
    capsys.readouterr()
    assert caption(built, writer) == 0
    assert "0 captions written, 3 were there" in capsys.readouterr().err
    assert caption(built, writer, "--again") == 0
    assert "2 captions written, 1 were there" in capsys.readouterr().err


def test_picture_that_is_gone_is_left_out(built, writer, capsys):
    (built.parent / "pictures" / "bus.jpg").unlink()
    assert caption(built, writer) == 0
    assert "1 file left out" in capsys.readouterr().err
    assert captions(built)["bus.jpg"] == (None, None)


def test_no_index_is_said(tmp_path, writer, capsys):
    assert caption(tmp_path / "none", writer) == 1
    assert "no index there" in capsys.readouterr().err
