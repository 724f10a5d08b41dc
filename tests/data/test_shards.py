"""Reading shards: what they give, and what is said about those that are broken."""

import pytest
from support.batches import picture, pictures
from support.small_shards import write_tar

from onepeace.data.shards import expand, read_source
from onepeace.errors import UserError

PAIR = ("image", "text")


def read(folder, members, **options):
    """What is read of a shard with these members."""
    return read_source(write_tar(folder / "a.tar", members).name, PAIR, folder, **options)


def test_source_reads_tar_and_tar_gz_in_order(root):
    source = read_source("pictures-*", PAIR, root)
    assert [sample.key for sample in source.samples] == [f"p{i}" for i in range(8)]
    assert source.samples[6].inputs["image"] == picture(6)
    assert source.samples[6].captions == ["picture number 6", "a photo of thing 6"]
    assert source.samples[6].source.endswith("pictures-1.tar.gz")
    assert source.broken == []
    assert read_source("more.tar", ("image",), root).samples[0].label == "gull"


def test_a_part_of_a_source_is_chosen_by_keys(root, tmp_path):
    source = read_source("pictures-*", PAIR, root, keys="*[1-3]")
    assert [sample.key for sample in source.samples] == ["p1", "p2", "p3"]
    with pytest.raises(UserError, match=r"pictures-\*: no key of its 8 samples fits the pattern 'q\*'"):
        read_source("pictures-*", PAIR, root, keys="q*")
    members = {**pictures(2), "q0.png": b"broken", "q0.json": b"{"}
    assert read(tmp_path, members, keys="p*").broken == []  # what is passed over is not looked at


def test_caption_is_the_text_file_when_the_json_has_none(tmp_path):
    members = {"x.PNG": picture(0), "x.json": b'{"label": null}', "x.txt": b" a gull \n"}
    (sample,) = read(tmp_path, members).samples
    assert (sample.captions, sample.label) == (["a gull"], None)


def test_missing_shards_are_named(root, monkeypatch):
    with pytest.raises(UserError, match=r"no shard matches .*nothing-\*"):
        expand("nothing-*", root)
    assert expand("{sounds,more,more}.tar", root) == [str(root / "more.tar"), str(root / "sounds.tar")]
    with pytest.raises(UserError, match=r"no shard matches .*less\.tar"):
        expand("{more,less}.tar", root)
    monkeypatch.setenv("HERE", str(root))
    assert len(expand("pictures-*", "${HERE}")) == 2
    with pytest.raises(UserError, match=r"data\.root is \$\{NOWHERE\}.*data\.root=FOLDER"):
        expand("pictures-*", "${NOWHERE}")


def test_incomplete_samples_name_file_and_key(tmp_path, caplog):
    members = pictures(4)
    del members["p1.png"], members["p2.json"]
    source = read(tmp_path, members)
    assert [sample.key for sample in source.samples] == ["p0", "p3"]
    assert len(source.broken) == 2
    assert "a.tar: p1 has no image file" in caplog.text
    assert "a.tar: p2 has no caption" in caplog.text
    with pytest.raises(UserError, match=r"a\.tar: x has no caption"):
        read(tmp_path, {"x.png": picture(0)})


def test_unreadable_json_is_named_and_the_text_file_used(tmp_path):
    source = read(tmp_path, {"x.png": picture(0), "x.json": b"{", "x.txt": b"a gull"})
    assert source.samples[0].captions == ["a gull"]
    assert "x.json cannot be read" in source.broken[0]


def test_source_in_memory_of_which_too_much_is_broken_stops_as_a_stream_does(tmp_path):
    members = pictures(96)
    for i in range(76):
        del members[f"p{i}.json"]
    with pytest.raises(
        UserError, match=r"^a\.tar: 76 broken to 20 usable samples, .*p75 has no caption.*broken_limit$"
    ):
        read(tmp_path, members)
    assert len(read(tmp_path, members, broken_limit=0.8).samples) == 20
    few = {name: data for name, data in members.items() if int(name[1:-4].rstrip(".")) > 65}
    assert len(read(tmp_path, few, broken_limit=0).broken) == 10  # a few are free


def test_source_in_memory_is_a_command_s_output_where_that_is_allowed(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(2))
    with pytest.raises(UserError, match=r"data\.allow_pipe=true"):
        read_source(f"pipe:cat {path}", PAIR)
    assert len(read_source(f"pipe:cat {path}", PAIR, allow_pipe=True).samples) == 2


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_truncated_shard_gives_what_it_still_holds(tmp_path, name):
    path = write_tar(tmp_path / name, pictures(6))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_tar(tmp_path / "b.tar", pictures(2, first=10))
    source = read_source("*", PAIR, tmp_path)
    keys = [sample.key for sample in source.samples]
    assert 0 < len(keys) - 2 < 6
    assert keys[-2:] == ["p10", "p11"]
    assert any(name in line for line in source.broken)


def test_member_that_comes_twice_is_named_and_the_rest_is_read(tmp_path):
    source = read(tmp_path, [("x.png", picture(0)), ("x.png", picture(1)), *pictures(2).items()])
    assert [sample.key for sample in source.samples] == ["p0", "p1"]
    assert "a.tar: x.png: duplicate file name" in source.broken[0]


def test_file_that_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all")
    with pytest.raises(UserError, match=r"no usable sample; .*a\.tar"):
        read_source("a.tar", PAIR, tmp_path)


def test_shard_name_is_never_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "pipe:touch ran;.tar", pictures(1))
    read_source("pipe*", PAIR)
    assert not (tmp_path / "ran").exists()
