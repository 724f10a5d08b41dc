"""Derived files: whole and of the same key, or none."""

import math

import numpy as np
import pytest

from onepeace.files.derived import read_derived, write_derived

KEY = ["model", 3]
ABOUT = [["a.jpg", 0, [2, 2], None]]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "values": rng.standard_normal((5, 3)).astype(np.float16),
        "rows": np.arange(7, dtype=np.int64)[::2],
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.fixture
def path(tmp_path, arrays):
    write_derived(tmp_path / "part-0", KEY, arrays, ABOUT)
    return tmp_path / "part-0"


@pytest.mark.parametrize("most_checked", [math.inf, 0])
def test_content_is_what_was_written(path, arrays, most_checked):
    content = read_derived(path, KEY, most_checked=most_checked)

    assert content.about == ABOUT
    assert content.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(content.arrays[name], array)
        assert content.arrays[name].dtype == array.dtype
        assert not content.arrays[name].flags.writeable


def test_there_need_be_no_arrays(tmp_path):
    write_derived(tmp_path / "none", KEY, {}, ABOUT)
    assert read_derived(tmp_path / "none", KEY) == ({}, ABOUT)


def test_file_of_another_key_or_none_is_not_used(path):
    assert read_derived(path, ["model", 4]) is None
    assert read_derived(path.with_name("none"), KEY) is None


def test_damage_anywhere_is_noticed(path):
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert read_derived(path, KEY) is None, position
    for length in range(0, len(whole), 20):
        path.write_bytes(whole[:length])
        assert read_derived(path, KEY) is None, length
        path.write_bytes(whole[:length].ljust(len(whole), b"\xff"))
        assert read_derived(path, KEY) is None, length


def test_damage_of_the_description_is_noticed_in_files_of_any_size(path):
    whole = path.read_bytes()
    for position in range(130, whole.index(b"\n", 130)):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        assert read_derived(path, KEY, most_checked=0) is None
