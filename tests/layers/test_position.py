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
    sequence_table_rows,
    spline_matrix,
    stretch_grid_table,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("buckets", [8, 12, 256, 512])
def test_sequence_buckets_match_golden(buckets):
    by_distance = load_file(FOLDER / "buckets.safetensors")[f"token_bucket_{buckets}_by_distance"].long()
    found = sequence_buckets(1024, buckets, CPU)[0]
    places = torch.arange(1024)
    expected = by_distance[places[:, None] - places[None, :] + 1023]
    assert torch.equal(found[1:, 1:], expected[1:, 1:])


@pytest.mark.parametrize("side", [4, 6])
def test_grid_buckets_match_golden(side):
    expected = load_file(FOLDER / "buckets.safetensors")[f"image_bucket_{side}"].long()
    assert torch.equal(grid_buckets(side, side, CPU)[0].long(), expected)


@pytest.mark.parametrize(("length", "buckets"), [(1, 4), (40, 6)])
def test_cls_has_three_buckets_of_its_own(length, buckets):
    found = sequence_buckets(length, buckets, CPU)[0].long()
    rows = sequence_table_rows(buckets)
    assert found[0, 0] == rows - 1
    assert bool((found[0, 1:] == rows - 3).all())
    assert bool((found[1:, 0] == rows - 2).all())


def test_sequence_buckets_have_no_longest_length():
    """What lies further apart than the tables were made for shares the last bucket."""
    found = sequence_buckets(1300, 256, CPU)[0]
    assert bool((found[1200:, 1:100] == 510).all())
    assert bool((found[1:100, 1200:] == 0).all())


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 6)])
def test_grid_buckets_of_any_shape(rows, columns):
    found = grid_buckets(rows, columns, CPU)[0]
    for p in range(rows * columns):
        for q in range(rows * columns):
            down, right = p // columns - q // columns, p % columns - q % columns
            assert found[1 + p, 1 + q] == (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    inner = (2 * rows - 1) * (2 * columns - 1)
    assert found[0, 0] == inner + 2
    assert bool((found[0, 1:] == inner).all())
    assert bool((found[1:, 0] == inner + 1).all())


def test_matrices_made_while_embedding_serve_training():
    for make, sizes in ((sequence_buckets, (23, 3)), (grid_buckets, (2, 7))):
        with torch.inference_mode():
            make(*sizes, CPU)
        table = torch.zeros(500, 1, requires_grad=True)
        torch.nn.functional.embedding(make(*sizes, CPU), table).sum().backward()
        assert table.grad.sum() == make(*sizes, CPU).numel()


def test_interpolation_matches_golden():
    found = case("resized").outputs
    assert_near(resize_bias_table(found["rel_table_16"], 24), found["rel_table_16_to_24"], 1e-6)
    for side in (8, 14, 24):
        positions = GridPositions(6, 16)
        positions.weight.data = found["pos_16"]
        assert_near(positions((side, side))[0], found[f"pos_16_to_{side}"], 1e-6)


def test_spline_is_exact_for_cubics_and_equal_to_scipy():
    source, target = (
        torch.tensor([-5.0, -3, -1, 0, 2, 3, 7]).double(),
        torch.tensor([-5, -4.2, 0, 0.5, 6.9, 7]).double(),
    )
    matrix = spline_matrix(source, target)
    assert torch.allclose(matrix @ (source**3 - 2 * source), target**3 - 2 * target, rtol=0, atol=1e-11)
    # From scipy.interpolate.RectBivariateSpline(source, source, ..., kx=3, ky=3, s=0) of 52 rows of sines.
    table = resize_bias_table(torch.sin(torch.arange(104.0).view(52, 2)), 6)
    expected = [0.0, 0.303018, -0.768255, 0.574081, 0.983588, 0.994827]
    assert table[[0, 7, 60, 100, 120, 123], 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_every_interpolation_matches_golden(shared):
    found = case("resized", shared / "golden").outputs
    for side in (20, 24, 28, 30, 32):
        assert_near(resize_bias_table(found["rel_table_16"], side), found[f"rel_table_16_to_{side}"], 1e-6)
    positions = GridPositions(6, 16)
    positions.weight.data = found["pos_16"]
    assert_near(positions((32, 32))[0], found["pos_16_to_32"], 1e-6)


@pytest.mark.parametrize("side", [3, 6])
def test_table_shrinks_too(side):
    """Offsets are whole patches: a smaller picture's table is the middle of the larger one's, near enough."""
    table = torch.randn(grid_table_rows(8), 2)
    smooth = torch.linspace(-1, 1, 15)
    table[:-3, 0] = (smooth[:, None] * 2 + smooth[None, :]).flatten()
    found = resize_bias_table(table, side)
    assert found.shape == (grid_table_rows(side), 2)
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found[-3:], table[-3:])
    before, after = table[:-3, 0].view(15, 15), found[:-3, 0].view(2 * side - 1, -1)
    # A step is worth up to 0.29 here, and the released method spreads the offsets by 1 %.
    assert torch.allclose(after, before[8 - side : 7 + side, 8 - side : 7 + side], atol=0.06)


def test_stretched_table_fits_any_picture():
    table = torch.randn(grid_table_rows(4), 3)
    assert stretch_grid_table(table, 4, 4, 4) is table
    for rows, columns in ((2, 6), (5, 5), (1, 3)):
        found = stretch_grid_table(table, 4, rows, columns)
        assert found.shape == ((2 * rows - 1) * (2 * columns - 1) + 3, 3)
        assert torch.equal(found[-3:], table[-3:])
        # No offset stays no offset, and rows are not columns.
        middle = found[:-3].view(2 * rows - 1, 2 * columns - 1, 3)[rows - 1, columns - 1]
        assert torch.allclose(middle, table[:-3].view(7, 7, 3)[3, 3], atol=1e-5)
        if rows > 1 and columns > 1:
            assert torch.allclose(found[0], table[0], atol=1e-5)
            assert torch.allclose(found[-4], table[-4], atol=1e-5)
        turned = torch.cat([table[:-3].view(7, 7, 3).transpose(0, 1).reshape(49, 3), table[-3:]])
        other = stretch_grid_table(turned, 4, columns, rows)[:-3].view(2 * columns - 1, 2 * rows - 1, 3)
        assert torch.allclose(other.transpose(0, 1).reshape(-1, 3), found[:-3], atol=1e-5)


def test_positions_stretch_to_any_picture():
    positions = GridPositions(4, 3)
    positions.reset_parameters()
    positions.weight.data[1:] = torch.arange(9.0)[:, None].expand(9, 4)
    assert torch.equal(positions((3, 3))[0], positions.weight)
    wide = positions((3, 6))[0].detach()
    assert wide.shape == (19, 4)
    assert torch.equal(wide[0], positions.weight[0])
    # Rows of the wide picture are further apart than its columns: the first axis is the rows.
    grid = wide[1:, 0].view(3, 6)
    assert torch.allclose(grid[1] - grid[0], torch.full((6,), 3.0), atol=0.5)
    assert bool((grid[:, 1:] > grid[:, :-1] - 0.2).all())
    assert (grid[:, 5] - grid[:, 0]).mean().item() == pytest.approx(2.0, abs=0.5)


def test_sequence_positions_start_with_cls():
    positions = SequencePositions(4, 7)
    positions.reset_parameters()
    assert torch.equal(positions((5,))[0], positions.weight[:6])
    assert positions.weight.abs().max() <= 0.02
    assert positions.weight.std() > 0.005
