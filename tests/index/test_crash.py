"""Commands that are killed, and a full disk: nothing is lost, and nothing is wrong in silence."""

import shutil
from pathlib import Path

import pytest
from support.crash import COMMANDS, answers, finish, in_process, prepare, run, state

from onepeace.index import check
from onepeace.index.database import DATABASE
from onepeace.index.maintain import NEXT


def by_name(files):
    return {Path(path).name: file for path, file in files.items()}


def check_intact(index):
    """The index is whole, or not made yet."""
    if (index / DATABASE).exists():
        assert check(index).ok


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_kill_costs_nothing(command, tmp_path):
    index, files = prepare(tmp_path / "whole", command, num_texts=12)
    code, num_operations = in_process(command, index, files)
    assert code == 0
    expected = by_name(finish(command, index, files))

    for quarter in (1, 2, 3):
        index, files = prepare(tmp_path / str(quarter), command, num_texts=12)
        before = state(index) if command == "update" else {}
        code, _ = in_process(command, index, files, kill_at=num_operations * quarter // 4)
        assert code < 0
        check_intact(index)
        if before:
            missing = before.keys() - state(index).keys()
            assert not any(Path(path).exists() for path in missing)
        assert by_name(finish(command, index, files)) == expected


def test_kill_while_built_anew_leaves_vectors_of_one_model(tmp_path):
    old, files = prepare(tmp_path, "anew", num_texts=6)
    new = shutil.copytree(old, tmp_path / "new")
    code, num_operations = in_process("anew", new, files)
    before = answers(old)
    after = answers(new)
    assert code == 0
    assert before != after
    kill_points = [num_operations * number // 15 for number in range(1, 15)]
    kill_points += range(num_operations - 10, num_operations + 1, 2)  # come after the new vectors are there

    num_new = 0
    for kill_at in kill_points:
        index = shutil.copytree(old, tmp_path / str(kill_at))
        code, _ = in_process("anew", index, files, kill_at=kill_at)
        assert code < 0
        assert check(index).ok
        answers_when_killed = answers(index)
        assert answers_when_killed in (before, after)
        run("anew", index, files)
        assert not (index / NEXT).exists()
        assert answers(index) == after
        num_new += answers_when_killed == after
    assert 0 < num_new < len(kill_points)


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_is_an_error_and_costs_nothing(command, tmp_path):
    codes = []
    for limit in (4_000, 20_000, 90_000):
        index, files = prepare(tmp_path / str(limit), command)
        code, _ = in_process(command, index, files, limit=limit)
        codes.append(code)
        check_intact(index)
        finish(command, index, files)
        assert check(index).ok

    assert 3 in codes
    assert set(codes) <= {0, 3}
