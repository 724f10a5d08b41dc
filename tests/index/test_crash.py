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


def by_name(files):
    return {Path(path).name: file for path, file in files.items()}


def check_intact(index, command):
    """The index is whole, or not made yet; `repair` begins with a damaged one."""
    if command != "repair" and (index / DATABASE).exists():
        assert check(index).ok


@pytest.mark.parametrize("command", COMMANDS)
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
        check_intact(index, command)
        if before:
            missing = before.keys() - state(index).keys()
            assert not any(Path(path).exists() for path in missing)
        assert by_name(finish(command, index, files)) == expected


def kill_and_finish(index, files, kill_at):
    """Answers of an index after its move was killed, and after the move was given again."""
    code, _ = in_process("move", index, files, kill_at=kill_at)
    assert code < 0
    assert check(index).ok
    answers_when_killed = answers(index)

    run("move", index, files)
    assert not (index / NEXT).exists()
    return answers_when_killed, answers(index)


def test_kill_of_a_move_leaves_vectors_of_one_model(tmp_path):
    unmoved, files = prepare(tmp_path, "move", num_texts=6)
    moved = shutil.copytree(unmoved, tmp_path / "moved")
    code, num_operations = in_process("move", moved, files)
    before = answers(unmoved)
    after = answers(moved)
    assert code == 0
    assert before != after
    kill_points = [num_operations * number // 15 for number in range(1, 15)]
    kill_points += range(num_operations - 10, num_operations + 1, 2)  # come after the new vectors are there

    num_moved = 0
    for kill_at in kill_points:
        index = shutil.copytree(unmoved, tmp_path / str(kill_at))
        answers_when_killed, answers_at_the_end = kill_and_finish(index, files, kill_at)
        assert answers_when_killed in (before, after)
        assert answers_at_the_end == after
        num_moved += answers_when_killed == after
    assert 0 < num_moved < len(kill_points)


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_is_an_error_and_costs_nothing(command, tmp_path):
    codes = []
    for limit in (4_000, 20_000, 90_000):
        index, files = prepare(tmp_path / str(limit), command)
        code, _ = in_process(command, index, files, limit=limit)
        codes.append(code)
        check_intact(index, command)
        finish(command, index, files)
        assert check(index).ok

    assert 3 in codes
    assert set(codes) <= {0, 3}


@pytest.fixture
def updated(tmp_path):
    """An index that was built and updated, and its files."""
    index, files = prepare(tmp_path, "update")
    run("update", index, files)
    return index, files


def test_flipped_bits_never_change_an_answer_in_silence(updated, tmp_path):
    index, files = updated
    expected = answers(index)
    draw = random.Random(0)  # noqa: S311
    num_refused = 0
    for trial in range(30):
        copy = shutil.copytree(index, tmp_path / f"copy{trial}")
        paths = [copy / DATABASE, *(path for path in derived(copy) if path.stat().st_size)]
        flip(paths[trial % len(paths)], draw)
        try:
            assert answers(copy) == expected
        except UserError:
            num_refused += 1
        mend(copy, files)
        assert check(copy).ok
        assert answers(copy) == expected
    assert num_refused


@pytest.mark.parametrize("pattern", [DATABASE, "matrix-*.vectors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_file_that_is_cut_short(updated, pattern, share):
    index, files = updated
    expected = answers(index)
    (path,) = index.glob(pattern)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    if pattern != DATABASE:
        assert answers(index) == expected

    report = check(index)
    num_lost = mend(index, files)

    assert not report.ok
    assert len(report.damaged) == len(set(report.damaged))
    assert str(index) in str(report)
    assert num_lost < len(expected) or share < 0.9
    assert answers(index) == expected
