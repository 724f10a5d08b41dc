"""The term relations: items become as like each other as a teacher finds them."""

import pytest
import torch
from support.training import recipe
from torch.nn import functional as F

from onepeace import losses
from onepeace.errors import UserError
from onepeace.train import loop, teachers
from onepeace.train.log import read_log


def reference(student, teacher, student_scale, teacher_scale):
    """Item by item, its own similarity left out."""
    total = []
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        ours = torch.stack([student_scale * F.cosine_similarity(student[i], student[j].detach(), 0) for j in others])
        theirs = torch.stack([teacher_scale * F.cosine_similarity(teacher[i], teacher[j], 0) for j in others])
        total.append(F.cross_entropy(ours, theirs.softmax(0)))
    return torch.stack(total).mean()


def test_it_is_the_cross_entropy_over_the_others():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 9)
    found = losses.relations(student, teacher, student.detach(), teacher, 0, 4.0, 7.0)
    expected = reference(student, teacher, 4.0, 7.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, expected)))
    halves = [
        losses.relations(student[i : i + 3], teacher[i : i + 3], student.detach(), teacher, i, 4.0, 7.0, 6)
        for i in (0, 3)
    ]
    torch.testing.assert_close(sum(halves), expected)


@pytest.mark.parametrize("count", [0, 1])
def test_of_no_others_it_is_zero(count):
    student = torch.randn(count, 5, requires_grad=True)
    loss = losses.relations(student, torch.randn(count, 3), student.detach(), torch.randn(count, 3))
    loss.backward()
    assert loss == 0
    assert student.grad is None or bool(student.grad.isfinite().all())
    with pytest.raises(ValueError, match="must be of the same items"):
        losses.relations(student, torch.randn(2, 3), student, torch.randn(count, 3))


def relations_recipe(root, out, **fields):
    objective = {"contrastive": {"multi_positive": True}, "relations/image": {"teacher": "brightness"}}
    return recipe(root, out, steps=40, objective=objective, **fields)


def test_it_is_learned(root, tmp_path, monkeypatch):
    def brightness():
        return lambda pictures: torch.tensor([[*p.resize((1, 1)).getpixel((0, 0))] for p in pictures]) / 255

    monkeypatch.setitem(teachers.TEACHERS, "brightness", brightness)
    loop.train(relations_recipe(root, tmp_path))
    first, *_, last = read_log(tmp_path / "log.jsonl")
    assert last["relations/image"] < first["relations/image"] - 0.05


def test_a_model_without_the_projection_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.setitem(teachers.TEACHERS, "brightness", lambda: None)
    with pytest.raises(UserError, match=r"objective\.relations/image needs a projection of image"):
        loop.train(
            recipe(
                root,
                tmp_path,
                steps=1,
                objective={"relations/image": {"teacher": "brightness"}},
                model={"size": "tiny", "modalities": ["text", "image"], "projections": ["text"]},
            )
        )
