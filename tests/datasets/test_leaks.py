"""`onepeace shards --check-leaks`: what training and validation shards must not share."""

import types

import pytest

from onepeace.cli import main
from onepeace.data.shard_writer import ShardWriter
from onepeace.datasets.leaks import check_leaks, read_shard
from onepeace.errors import UserError


@pytest.fixture
def clean(tmp_path, capsys):
    """A folder without leaks, a function that writes one shard more, and the command."""

    def put(where, key, media, captions=("a dog",), **about):
        with ShardWriter(tmp_path / where, f"set_{key}", compress=True) as shards:
            shards.write(key, {"png": media}, captions, about={"source": "made up", "license": "CC0", **about})

    def check(*options):
        code = main(["shards", "--check-leaks", str(tmp_path), *options])
        return types.SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    put("train/image_text", "tin_a", b"1")
    put("train/image_text", "f30k_1", b"2")
    put("val/tiny_imagenet", "tin_b", b"3")
    put("val/flickr30k", "f30k_2", b"4")
    return types.SimpleNamespace(root=tmp_path, put=put, check=check)


def test_check_passes_a_clean_folder(clean):
    done = clean.check()
    assert (done.code, done.err) == (0, "")
    assert "val/flickr30k/set_f30k_2: 1 samples" in done.out
    assert done.out.endswith("0 errors\n")


@pytest.mark.parametrize(
    ("what", "key", "media", "about"),
    [
        ("media", "tin_c", b"1", {}),
        ("key", "tin_a", b"5", {}),
        ("group", "f8k_1_ab", b"5", {}),
    ],
)
def test_check_finds_a_leak(clean, what, key, media, about):
    clean.put("val/more", key, media, **about)
    done = clean.check()
    assert done.code == 1
    assert f"{key} has the same {what} as train/image_text/" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("esc50_4-1-A-0", {"freesound_id": "1"}), ("esc50_5-1-B-0", {"freesound_id": "1"})),
        (("f8k_3_cd", {}), ("f30k_3", {})),
        (("vgg_x_0", {"youtube_id": "x"}), ("acaps_x_1", {"youtube_id": "x"})),
    ],
)
def test_groups_of_the_layouts(clean, first, second):
    for where, (key, about), media in (("train/t", first, b"6"), ("val/v", second, b"7")):
        clean.put(where, key, media, **{"captions": ["pear"], **about})
    assert f"{second[0]} has the same group as train/t/" in clean.check().err


def test_check_knows_the_recordings_that_esc50_itself_splits(clean):
    for fold, where in ((4, "train/audio_text"), (5, "val/esc50_fold5")):
        clean.put(where, f"esc50_{fold}-209698", bytes(fold), freesound_id="209698")
    assert clean.check().code == 0


def test_check_finds_what_a_sample_lacks(clean):
    clean.put("train/more", "x", b"7", license="")
    assert [error.partition(": ")[2] for error in check_leaks(clean.root)[1]] == ["x has no license and source"]


def test_check_looks_at_each_of_several_pictures_and_needs_a_caption_or_a_target(clean):
    about = {"source": "made up", "license": "CC0"}
    with ShardWriter(clean.root / "val/more", "set_more", compress=True) as shards:
        shards.write("a", {"png": b"5", "2.png": b"1"}, [], targets={"box": [0, 0, 1, 1]}, about=about)
        shards.write("b", {"png": b"6", "mask.png": b"2"}, [], about=about)  # a map is no picture that is trained on
        shards.write("c", {"png": b"7"}, [], about=about)
        shards.write("d", {"mp4": b"8"}, [], targets={"label": "surfing"}, about=about)
    same, lacks = clean.check().err.splitlines()
    assert "a has the same media as train/image_text/" in same
    assert lacks.endswith("c has no caption and no target")


def test_check_names_a_shard_that_is_cut_off(clean):
    path = clean.root / "val/flickr30k/set_f30k_2-00000.tar.gz"
    path.write_bytes(path.read_bytes()[:40])
    done = clean.check()
    assert done.code == 1
    assert str(path) in done.err


def test_check_needs_shards_of_both(tmp_path, capsys):
    assert main(["shards", "--check-leaks", str(tmp_path)]) == 1
    assert f"{tmp_path / 'train'}: no shards (*.tar.gz)" in capsys.readouterr().err


def test_bad_shard_is_a_user_error(tmp_path):
    (tmp_path / "x.tar.gz").write_text("nothing")
    with pytest.raises(UserError, match=r"x\.tar\.gz"):
        list(read_shard(tmp_path / "x.tar.gz"))
