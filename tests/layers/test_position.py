"""Buckets of distance, positions and bias tables, and the resizing of both."""

import pytest
import torch
from safetensors.torch import load_file
from support.golden_cases import FOLDER, assert_near, case

from onepeace.layers.position import (
    GridPositions,
    SequencePositions,
    grid_buckets,
    grid_table_rows,
    resize_bias_table,
    sequence_buckets,
    stretch_grid_table,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("buckets", [8, 12, 256, 512])
def test_sequence_buckets_match_golden(buckets):
    by_distance = load_file(FOLDER / "buckets.safetensors")[f"token_bucket_{buckets}_by_distance"].long()
    positions = torch.arange(1024)
    expected = by_distance[positions[:, None] - positions[None, :] + 1023]
    actual = sequence_buckets(1024, buckets, CPU)[0]
    assert torch.equal(actual[1:, 1:], expected[1:, 1:])


@pytest.mark.parametrize("side", [4, 6])
def test_grid_buckets_match_golden(side):
    expected = load_file(FOLDER / "buckets.safetensors")[f"image_bucket_{side}"].long()
    assert torch.equal(grid_buckets(side, side, CPU)[0].long(), expected)


def test_sequence_buckets_have_no_longest_length():
    """What lies further apart than the tables were made for shares the last bucket."""
    matrix = sequence_buckets(1300, 256, CPU)[0]
    assert bool((matrix[1200:, 1:100] == 510).all())
    assert bool((matrix[1:100, 1200:] == 0).all())


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 6)])
def test_grid_buckets_of_any_shape(rows, columns):
    matrix = grid_buckets(rows, columns, CPU)[0]
    for query in range(rows * columns):
        for key in range(rows * columns):
            down = query // columns - key // columns
            right = query % columns - key % columns
            bucket = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
            assert matrix[1 + query, 1 + key] == bucket


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (sequence_buckets, (23, 3)),
        (grid_buckets, (2, 7)),
    ],
)
def test_matrices_made_while_embedding_serve_training(make, sizes):
    with torch.inference_mode():
        make(*sizes, CPU)
    table = torch.zeros(500, 1, requires_grad=True)
    buckets = make(*sizes, CPU)
    torch.nn.functional.embedding(buckets, table).sum().backward()
    assert table.grad.sum() == buckets.numel()


def test_interpolation_matches_golden():
    golden = case("resized").outputs
    assert_near(resize_bias_table(golden["rel_table_16"], 24), golden["rel_table_16_to_24"], 1e-6)
    positions = GridPositions(6, 16)
    positions.weight.data = golden["pos_16"]
    for side in (8, 14, 24):
        assert_near(positions((side, side))[0], golden[f"pos_16_to_{side}"], 1e-6, what=f"positions of side {side}")


@pytest.mark.parametrize("side", [3, 6])
def test_table_shrinks_too(side):
    """Offsets are whole patches: a smaller picture's table is the middle of the larger one's, near enough."""
    table = torch.randn(grid_table_rows(8), 2)
    slope = torch.linspace(-1, 1, 15)
    plane = 2 * slope[:, None] + slope
    table[:-3, 0] = plane.flatten()
    resized = resize_bias_table(table, side)
    assert resized.shape == (grid_table_rows(side), 2)
    assert resized.dtype == torch.float32
    assert bool(torch.isfinite(resized).all())
    assert torch.equal(resized[-3:], table[-3:])
    before = table[:-3, 0].view(15, 15)
    after = resized[:-3, 0].view(2 * side - 1, -1)
    middle = slice(8 - side, 7 + side)
    # A step is worth up to 0.29 here, and the released method spreads the offsets by 1 %.
    assert_near(after, before[middle, middle], 0.06)


@pytest.fixture
def bias_table():
    """The table of pictures of 4 x 4 patches: 7 x 7 offsets and three rows of CLS."""
    return torch.randn(grid_table_rows(4), 3)


SHAPES = pytest.mark.parametrize(("rows", "columns"), [(2, 6), (5, 5), (1, 3)])


def stretched_offsets(table, rows, columns):
    stretched = stretch_grid_table(table, 4, rows, columns)
    return stretched[:-3].view(2 * rows - 1, 2 * columns - 1, 3)


def test_stretched_table_of_its_own_size_is_the_table(bias_table):
    assert stretch_grid_table(bias_table, 4, 4, 4) is bias_table


@SHAPES
def test_stretched_table_keeps_cls_the_centre_and_the_corners(bias_table, rows, columns):
    stretched = stretch_grid_table(bias_table, 4, rows, columns)
    assert torch.equal(stretched[-3:], bias_table[-3:])
    offsets = stretched_offsets(bias_table, rows, columns)
    assert_near(offsets[rows - 1, columns - 1], bias_table[3 * 7 + 3], 1e-5)
    if rows > 1:
        assert_near(offsets[0, 0], bias_table[0], 1e-5)


@SHAPES
def test_stretched_table_of_a_turned_picture(bias_table, rows, columns):
    """Rows are not columns."""
    turned = bias_table.clone()
    offsets = bias_table[:-3].view(7, 7, 3)
    turned[:-3] = offsets.transpose(0, 1).flatten(0, 1)
    offsets = stretched_offsets(turned, columns, rows).transpose(0, 1)
    assert_near(offsets, stretched_offsets(bias_table, rows, columns), 1e-5)


def test_positions_stretch_to_any_picture():
    positions = GridPositions(4, 3)
    positions.reset_parameters()
    rows = torch.arange(3.0)
    positions.weight.data[1:] = rows.repeat_interleave(3)[:, None]
    assert torch.equal(positions((3, 3))[0], positions.weight)

    wide = positions((3, 6))[0].detach()
    assert wide.shape == (19, 4)
    assert torch.equal(wide[0], positions.weight[0])
    assert_near(wide[1:, 0], rows.repeat_interleave(6), 1e-5)


def test_sequence_positions_start_with_cls():
    positions = SequencePositions(4, 7)
    positions.reset_parameters()
    assert torch.equal(positions((5,))[0], positions.weight[:6])
    assert positions.weight.abs().max() <= 0.02
    assert positions.weight.std() > 0.005
