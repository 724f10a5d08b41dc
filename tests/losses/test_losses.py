"""Losses against plain loops, at their edges, and where their gradients go."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from onepeace.losses.box import box, generalized_iou
from onepeace.losses.contrastive import contrastive
from onepeace.losses.denoising import denoising as denoising_of_tokens
from onepeace.losses.denoising import masked_tokens
from onepeace.losses.distillation import distillation
from onepeace.losses.hinge import hinge
from onepeace.losses.tiled_infonce import tiled_infonce


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def log_softmax(row):
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


# contrastive


def contrastive_by_loops(a, b, scale, groups, smoothing):
    count, total = len(a), 0.0
    for mine, theirs in ((a, b), (b, a)):
        for i in range(count):
            logp = log_softmax([scale * float(mine[i] @ theirs[j]) for j in range(count)])
            positives = [j for j in range(count) if groups[j] == groups[i]]
            for positive in positives:
                for j in range(count):
                    share = 1 - smoothing if j == positive else smoothing / (count - 1)
                    total -= share * logp[j] / len(positives)
    return total / count / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 0], [3, 3, 3, 3, 3]])
def test_contrastive_equals_loops(groups, smoothing):
    a, b = unit(5, 7), unit(5, 7)
    given = None if groups is None else torch.tensor(groups)
    loss = contrastive(a, b, 9.0, groups=given, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(contrastive_by_loops(a, b, 9.0, groups or range(5), smoothing), abs=1e-5)


def test_contrastive_gradient_reaches_both_sides_unless_detached():
    grads = []
    for detach in (False, True):
        torch.manual_seed(3)
        a, b, scale = unit(4, 6).requires_grad_(), unit(4, 6).requires_grad_(), torch.tensor(5.0, requires_grad=True)
        contrastive(a, b, scale, detach_keys=detach).backward()
        grads.append((a.grad, b.grad, scale.grad))
    (whole_a, _, whole_scale), (half_a, half_b, half_scale) = grads
    assert half_scale == pytest.approx(whole_scale.item(), rel=1e-5)
    torch.manual_seed(3)
    a, b = unit(4, 6).requires_grad_(), unit(4, 6)
    F.cross_entropy(5.0 * a @ b.T, torch.arange(4)).div(2).backward()
    assert torch.allclose(half_a, a.grad, atol=1e-6)
    assert not torch.allclose(half_a, whole_a, atol=1e-3)
    assert half_b.abs().max() > 0


# tiles


def full_logits(queries, keys, scale, targets, groups, smoothing):
    own = torch.arange(len(keys)) if groups is None else groups
    same = (own[targets][:, None] == own[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    target = target * (1 - smoothing) + (1 - target) * smoothing / (len(keys) - 1)
    return F.cross_entropy(scale * queries @ keys.T, target, reduction="sum")


@pytest.mark.parametrize(("grouped", "smoothing"), [(False, 0.0), (True, 0.1)])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_tiles_give_the_loss_and_every_gradient_of_full_logits(rows, grouped, smoothing):
    torch.manual_seed(4)
    values = unit(7, 5).double(), unit(11, 5).double(), torch.tensor(6.0).double()
    targets = torch.randint(11, (7,))
    groups = torch.randint(4, (11,)) if grouped else None
    ours, full = ([value.clone().float().requires_grad_() for value in values] for _ in range(2))
    loss = tiled_infonce(*ours, targets, groups, smoothing, tile=rows * 11)
    expected = full_logits(*full, targets, groups, smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    for a, b in zip(ours, full, strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_logits_are_never_whole():
    """1,024 x 1,024 logits would be a million numbers; a tile holds 16,384."""
    queries, keys = unit(1024, 8).requires_grad_(), unit(1024, 8).requires_grad_()
    largest = LargestTensor()
    with largest:
        tiled_infonce(queries, keys, 5.0, torch.arange(1024), tile=16384).backward()
    assert 16384 <= largest.found < 2 * 16384


class LargestTensor(TorchDispatchMode):
    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.found = max(self.found, result.numel())
        return result


def test_autocast_does_not_round_cosines():
    """bfloat16 has 8 bits: cosines of vectors that are nearly equal would all be the same."""
    base = unit(1, 16)
    a, b = (F.normalize(base + 0.01 * torch.randn(6, 16), dim=-1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive(a, b, 90.0) == contrastive(a.float(), b.float(), 90.0)
    expected = contrastive_by_loops(a, b, 90.0, range(6), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive(a, b, 90.0).item() == pytest.approx(expected, abs=1e-4)


def test_parts_of_a_batch_give_the_loss_of_the_whole():
    a, b, groups, size = unit(8, 6), unit(8, 6), torch.tensor([0, 1, 0, 3, 4, 5, 1, 7]), 2
    each = [
        contrastive(a[i : i + size], b[i : i + size], 9.0, groups, 0.1, keys=(a, b), first=i) for i in range(0, 8, size)
    ]
    assert torch.stack(each).mean().item() == pytest.approx(contrastive(a, b, 9.0, groups, 0.1).item(), abs=1e-5)


# denoising


def denoising(student, teacher, masked, padding=None, **options):
    real = torch.ones_like(masked) if padding is None else ~padding
    masked_positions, real_positions = (flags.flatten().nonzero().squeeze(1) for flags in (masked & real, real))
    queries, keys = masked_tokens(student, teacher, masked_positions, real_positions)
    return denoising_of_tokens(queries, keys, masked[real].nonzero().squeeze(1), **options)


def denoising_by_loops(student, teacher, masked, padding, scale, smoothing):
    places = [(b, i) for b in range(len(student)) for i in range(student.shape[1]) if not padding[b, i]]
    keys = [teacher[place] / teacher[place].norm() for place in places]
    losses = []
    for at, place in enumerate(places):
        if masked[place]:
            query = student[place] / student[place].norm()
            logp = log_softmax([scale * float(query @ key) for key in keys])
            each = smoothing / (len(keys) - 1)
            losses.append(-(1 - smoothing - each) * logp[at] - each * sum(logp))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("padded", [False, True])
def test_denoising_equals_loops(padded, smoothing):
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    masked = torch.rand(3, 5) < 0.5
    padding = torch.arange(5) >= torch.tensor([[5], [2], [4]]) if padded else torch.zeros(3, 5, dtype=torch.bool)
    found = denoising(student, teacher, masked, padding if padded else None, scale=2.5, label_smoothing=smoothing)
    expected = denoising_by_loops(student, teacher, masked, padding, 2.5, smoothing)
    assert found.item() == pytest.approx(expected, abs=1e-5)
    if padded:
        wild = [torch.where(padding[..., None], torch.full_like(x, 1e4), x) for x in (student, teacher)]
        again = denoising(*wild, masked | padding, padding, scale=2.5, label_smoothing=smoothing)
        assert again == pytest.approx(found.item(), abs=1e-6)


@pytest.mark.parametrize("masked", [torch.zeros(2, 3, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)])
def test_nothing_masked_or_one_candidate_alone(masked):
    """A batch of one-word captions: no loss, no NaN, and still a graph for the processes that wait."""
    student = torch.randn(*masked.shape, 4, requires_grad=True)
    loss = denoising(student, torch.randn(*masked.shape, 4), masked, label_smoothing=0.1)
    loss.backward()
    assert loss == 0
    assert bool(torch.isfinite(student.grad).all())


def test_denoising_teacher_is_a_target():
    student, teacher = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    masked = torch.tensor([[True, False, False], [False, True, True]])
    denoising(student, teacher, masked).backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(-1) > 0).equal(masked)


# distillation


def test_distillation_is_least_at_the_teacher():
    teacher = torch.randn(6, 5)
    student = (teacher + 0.3 * torch.randn(6, 5)).requires_grad_()
    least = distillation(3.0 * teacher, teacher)
    similarity = 10 * F.normalize(teacher, dim=1) @ F.normalize(teacher, dim=1).T
    entropy = -(similarity.softmax(1) * similarity.log_softmax(1)).sum(1).mean()
    assert least == pytest.approx(entropy.item(), abs=1e-5)
    loss = distillation(student, teacher.requires_grad_())
    loss.backward()
    assert loss > least
    assert teacher.grad is None
    with torch.no_grad():
        assert distillation(student - 0.1 * student.grad, teacher) < loss


# classification, multilabel and the formula of boxes: against the original in tests/model/test_golden_heads.py


# hinge


def test_hinge_of_two_questions():
    scores, target = torch.tensor([[2.0, 1.2, 0.1, -3.0], [0.0, 0.3, 0.9, 5.0]]), torch.tensor([0, 2])
    expected = 0.0
    for row, right in zip(scores.tolist(), target.tolist(), strict=True):
        expected += sum(max(0.0, 1 + x - row[right]) for j, x in enumerate(row) if j != right) / 2
    assert hinge(scores, target).item() == pytest.approx(expected, abs=1e-6)


# box


def test_only_ordered_boxes_count_for_the_overlap():
    target = torch.tensor([[0.2, 0.1, 0.6, 0.7]]).expand(3, 4)
    predicted = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.5, 0.2, 0.1, 0.6], [0.1, 0.6, 0.5, 0.2]])
    overlap = box(torch.logit(predicted[:1]), target[:1]) - (predicted[0] - target[0]).abs().sum()
    distance = (predicted - target).abs().sum() / 3
    assert box(torch.logit(predicted), target).item() == pytest.approx((distance + overlap).item(), abs=1e-5)


def test_no_valid_box():
    logits = torch.tensor([[3.0, 3.0, -3.0, -3.0], [2.0, -2.0, -2.0, 2.0]], requires_grad=True)
    target = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.2, 0.3, 0.9, 0.9]])
    loss = box(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx((logits.sigmoid() - target).abs().sum().item() / 2, abs=1e-6)
    assert bool(torch.isfinite(logits.grad).all())
    assert bool((logits.grad != 0).all())


def test_generalized_iou_equals_torchvision():
    from torchvision.ops import generalized_box_iou_loss

    corners = torch.rand(2, 50, 2)
    first, second = torch.cat([corners, corners + torch.rand(2, 50, 2)], dim=2)
    expected = 1 - generalized_box_iou_loss(first, second)
    assert torch.allclose(generalized_iou(first, second), expected, atol=1e-6)
