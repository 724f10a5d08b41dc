"""Commands that are killed, a full disk, flipped bits: nothing is lost, and nothing is wrong in silence."""

import random
import shutil
from pathlib import Path

import pytest
from support.crash import COMMANDS, answers, finish, flip, in_process, mend, prepare, run, state

from onepeace.errors import UserError
from onepeace.index import check
from onepeace.index.database import DATABASE
from onepeace.index.matrix import derived
from onepeace.index.move import NEXT


def by_name(found):
    return {Path(path).name: said for path, said in found.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_kill_costs_nothing(command, tmp_path):
    index, files = prepare(tmp_path / "whole", command, num_texts=12)
    code, operations = in_process(command, index, files)
    assert code == 0
    expected = by_name(finish(command, index, files))
    for trial in range(3):
        index, files = prepare(tmp_path / str(trial), command, num_texts=12)
        before = state(index) if command in ("update", "remove") else {}
        code, _ = in_process(command, index, files, kill_at=operations * (trial + 1) // 4)
        assert code < 0
        if (index / DATABASE).exists() and command != "repair":
            assert check(index).ok
            kept = state(index)
            gone = before.keys() - kept.keys()
            assert all(command == "remove" or not Path(path).exists() for path in gone)
        assert by_name(finish(command, index, files)) == expected


def test_index_that_is_killed_while_it_moves_is_of_one_model(tmp_path):
    unmoved, files = prepare(tmp_path, "move", num_texts=6)
    whole = shutil.copytree(unmoved, tmp_path / "whole")
    old = answers(unmoved)
    code, operations = in_process("move", whole, files)
    new = answers(whole)
    assert (code, old == new) == (0, False)
    places = [operations * i // 15 for i in range(1, 15)]
    places += [operations - i for i in range(0, 12, 2)]  # the last ones come after the new vectors are there
    shown = []
    for place in places:
        index = shutil.copytree(unmoved, tmp_path / str(place))
        code, _ = in_process("move", index, files, kill_at=place)
        assert code < 0
        shown.append(answers(index))
        assert shown[-1] in (old, new)
        assert check(index).ok
        run("move", index, files)
        assert answers(index) == new
        assert not (index / NEXT).exists()
    assert len(places) == 20
    assert old in shown
    assert new in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_is_an_error_and_costs_nothing(command, tmp_path):
    codes = []
    for limit in (4_000, 20_000, 90_000):
        index, files = prepare(tmp_path / str(limit), command)
        code, _ = in_process(command, index, files, limit=limit)
        codes.append(code)
        if (index / DATABASE).exists() and command != "repair":
            assert check(index).ok
        finish(command, index, files)
        assert check(index).ok
    assert 3 in codes
    assert set(codes) <= {0, 3}


def test_flipped_bits_never_change_an_answer_in_silence(tmp_path):
    index, files = prepare(tmp_path, "update")
    run("update", index, files)
    right = answers(index)
    draw = random.Random(0)  # noqa: S311
    refused = 0
    for trial in range(30):
        copy = tmp_path / f"copy{trial}"
        shutil.copytree(index, copy)
        paths = [copy / DATABASE, *(path for path in derived(copy) if path.stat().st_size)]
        flip(paths[trial % len(paths)], draw)
        try:
            assert answers(copy) == right
        except UserError:
            refused += 1
        mend(copy, files)
        assert check(copy).ok
        assert answers(copy) == right
    assert refused


@pytest.mark.parametrize("is_database", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_file_that_is_cut_short(is_database, share, tmp_path):
    index, files = prepare(tmp_path, "update")
    run("update", index, files)
    right = answers(index)
    path = index / DATABASE if is_database else next(index.glob("matrix-*.vectors"))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    if not is_database:
        assert answers(index) == right
    report = check(index)
    assert (report.ok, len(report.damaged)) == (False, len({*report.damaged}))
    assert str(index) in str(report)
    kept = len(right) - mend(index, files)
    assert kept > 0 or share < 0.9
    assert answers(index) == right
