"""Losses against plain forms, at their edges, and where their gradients go."""

import pytest
import torch
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from onepeace.losses.box import box
from onepeace.losses.contrastive import contrastive
from onepeace.losses.denoising import denoising as denoising_of_tokens
from onepeace.losses.denoising import masked_tokens
from onepeace.losses.distillation import distillation
from onepeace.losses.sigmoid import sigmoid
from onepeace.losses.tiled_infonce import tiled_infonce


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


# contrastive


def contrastive_of_full_logits(a, b, scale, groups, smoothing):
    targets = torch.arange(len(a))
    forward = infonce_of_full_logits(a, b, scale, targets, groups, smoothing)
    backward = infonce_of_full_logits(b, a, scale, targets, groups, smoothing)
    return (forward + backward).item() / len(a) / 2


def test_contrastive_with_groups_equals_full_logits():
    a = unit(5, 7)
    b = unit(5, 7)
    groups = torch.tensor([0, 1, 0, 2, 0])
    loss = contrastive(a, b, 9.0, groups=groups, label_smoothing=0.1)
    assert loss.item() == pytest.approx(contrastive_of_full_logits(a, b, 9.0, groups, 0.1), abs=1e-5)


@pytest.mark.parametrize("detach_keys", [False, True])
def test_contrastive_gradient_reaches_keys_unless_detached(detach_keys):
    a = unit(4, 6).requires_grad_()
    b = unit(4, 6).requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    targets = torch.arange(4)

    def keys(vectors):
        return vectors.detach() if detach_keys else vectors

    forward = F.cross_entropy(scale * a @ keys(b).T, targets)
    backward = F.cross_entropy(scale * b @ keys(a).T, targets)
    expected = torch.autograd.grad((forward + backward) / 2, [a, b, scale])
    gradients = torch.autograd.grad(contrastive(a, b, scale, detach_keys=detach_keys), [a, b, scale])
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-6)


# tiles


def infonce_of_full_logits(queries, keys, scale, targets, groups, smoothing):
    group_of_key = torch.arange(len(keys)) if groups is None else groups
    group_of_query = group_of_key[targets]
    is_positive = (group_of_query[:, None] == group_of_key).float()
    share = is_positive / is_positive.sum(1, keepdim=True)
    smoothed = (1 - share) * smoothing / (len(keys) - 1)
    target = share * (1 - smoothing) + smoothed
    return F.cross_entropy(scale * queries @ keys.T, target, reduction="sum")


@pytest.mark.parametrize(("grouped", "smoothing"), [(False, 0.0), (True, 0.1)])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_tiles_give_the_loss_and_gradients_of_full_logits(rows, grouped, smoothing):
    torch.manual_seed(4)
    values = [unit(7, 5), unit(11, 5), torch.tensor(6.0)]
    targets = torch.randint(11, (7,))
    groups = torch.randint(4, (11,)) if grouped else None
    tiled = [value.clone().requires_grad_() for value in values]
    full = [value.clone().requires_grad_() for value in values]
    loss = tiled_infonce(*tiled, targets, groups, smoothing, tile=rows * 11)
    expected = infonce_of_full_logits(*full, targets, groups, smoothing)
    (3 * loss).backward()
    (3 * expected).backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for tiled_leaf, full_leaf in zip(tiled, full, strict=True):
        torch.testing.assert_close(tiled_leaf.grad, full_leaf.grad, rtol=1e-4, atol=1e-5)


def test_logits_are_never_whole():
    """1,024 x 1,024 logits would be a million numbers; a tile holds 16,384."""
    queries = unit(1024, 8).requires_grad_()
    keys = unit(1024, 8).requires_grad_()
    largest = LargestTensor()
    with largest:
        tiled_infonce(queries, keys, 5.0, torch.arange(1024), tile=16384).backward()
    assert 16384 <= largest.numbers < 2 * 16384


class LargestTensor(TorchDispatchMode):
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_autocast_does_not_round_cosines():
    """bfloat16 has 8 bits: cosines of vectors that are nearly equal would all be the same."""
    base = unit(1, 16)
    a = F.normalize(base + 0.01 * torch.randn(6, 16), dim=-1)
    b = F.normalize(base + 0.01 * torch.randn(6, 16), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive(a, b, 90.0)
    expected = contrastive_of_full_logits(a, b, 90.0, groups=None, smoothing=0.0)
    assert loss.item() == pytest.approx(expected, abs=1e-4)


# sigmoid


def sigmoid_of_each_pair(a, b, scale, bias, paired=True):
    total = 0.0
    for row, x in enumerate(a):
        for column, y in enumerate(b):
            answer = 1 if paired and row == column else -1
            total -= F.logsigmoid(answer * (scale * x @ y + bias))
    return total / len(a)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_sigmoid_is_that_of_each_pair(rows, paired):
    torch.manual_seed(4)
    values = [unit(7, 5), unit(7, 5), torch.tensor(6.0), torch.tensor(-2.0)]
    tiled = [value.clone().requires_grad_() for value in values]
    plain = [value.clone().requires_grad_() for value in values]
    loss = sigmoid(*tiled, paired=paired, tile=rows * 7)
    expected = sigmoid_of_each_pair(*plain, paired=paired)
    (3 * loss).backward()
    (3 * expected).backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(tiled, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_sigmoid_is_computed_in_tiles_and_in_float32():
    a = unit(1024, 8).requires_grad_()
    b = unit(1024, 8).requires_grad_()
    largest = LargestTensor()
    with largest, torch.autocast("cpu", torch.bfloat16):
        loss = sigmoid(a, b, torch.tensor(10.0), torch.tensor(-10.0), tile=16384)
        loss.backward()
    assert 16384 <= largest.numbers < 2 * 16384
    whole = sigmoid(a, b, torch.tensor(10.0), torch.tensor(-10.0))
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)


# denoising


def denoising(student, teacher, masked, padding=None, **options):
    real = torch.ones_like(masked) if padding is None else ~padding
    queries, keys = masked_tokens(student, teacher, positions(masked & real), positions(real))
    return denoising_of_tokens(queries, keys, positions(masked[real]), **options)


def positions(flags):
    return flags.flatten().nonzero().squeeze(1)


def denoising_of_full_logits(student, teacher, masked, real, scale, smoothing):
    """The loss of the masked tokens, found among all tokens of the batch that are no padding."""
    queries = F.normalize(student[masked & real], dim=1)
    keys = F.normalize(teacher[real], dim=1)
    targets = positions(masked[real])
    total = infonce_of_full_logits(queries, keys, scale, targets, None, smoothing)
    return total.item() / len(targets)


@pytest.fixture
def tokens():
    """Features of a student and of a teacher, and which tokens are masked."""
    student = torch.randn(3, 5, 4)
    teacher = torch.randn(3, 5, 4)
    masked = torch.rand(3, 5) < 0.5
    return student, teacher, masked


LENGTHS = torch.tensor([5, 2, 4])
PADDING = torch.arange(5) >= LENGTHS[:, None]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_denoising_equals_full_logits(tokens, padding, smoothing):
    loss = denoising(*tokens, padding, scale=2.5, label_smoothing=smoothing)
    real = torch.ones_like(PADDING) if padding is None else ~padding
    expected = denoising_of_full_logits(*tokens, real, 2.5, smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "masked",
    [
        torch.zeros(2, 3, dtype=torch.bool),
        torch.ones(1, 1, dtype=torch.bool),
    ],
)
def test_nothing_masked_or_one_candidate_alone(masked):
    """A batch of one-word captions: no loss, no NaN, and still a graph for the processes that wait."""
    student = torch.randn(*masked.shape, 4, requires_grad=True)
    loss = denoising(student, torch.randn(*masked.shape, 4), masked, label_smoothing=0.1)
    loss.backward()
    assert loss == 0
    assert bool(torch.isfinite(student.grad).all())


def test_denoising_teacher_is_a_target():
    student = torch.randn(2, 3, 4, requires_grad=True)
    teacher = torch.randn(2, 3, 4, requires_grad=True)
    masked = torch.tensor([[True, False, False], [False, True, True]])
    denoising(student, teacher, masked).backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(-1) > 0).equal(masked)


# distillation


def test_distillation_is_least_at_the_teacher():
    teacher = torch.randn(6, 5)
    student = (teacher + 0.3 * torch.randn(6, 5)).requires_grad_()
    least = distillation(3.0 * teacher, teacher)
    directions = F.normalize(teacher, dim=1)
    similarity = 10 * directions @ directions.T
    entropy = Categorical(logits=similarity).entropy().mean()
    assert least == pytest.approx(entropy.item(), abs=1e-5)
    loss = distillation(student, teacher.requires_grad_())
    loss.backward()
    assert loss > least
    assert teacher.grad is None
    with torch.no_grad():
        assert distillation(student - 0.1 * student.grad, teacher) < loss


# classification, multilabel, hinge and the formula of boxes: against the original in tests/heads/test_golden_heads.py


# box


def test_only_ordered_boxes_count_for_the_overlap():
    target = torch.tensor([[0.2, 0.1, 0.6, 0.7]])
    ordered = torch.tensor([[0.1, 0.2, 0.5, 0.6]])
    x_swapped = ordered[:, [2, 1, 0, 3]]
    y_swapped = ordered[:, [0, 3, 2, 1]]
    predicted = torch.cat([ordered, x_swapped, y_swapped])
    overlap = box(ordered.logit(), target) - (ordered - target).abs().sum()
    distance = (predicted - target).abs().sum() / 3
    loss = box(predicted.logit(), target.expand(3, 4))
    expected = distance + overlap
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
