from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bundle.visualize import PALETTE, display_range, label_colors, plane_dice, render_slice, to_planes
from bundle.visualize.colors import parse_color
from bundle.visualize.picture import outline, resize_labels


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "ASR", "SPL"])
def test_right_is_left_and_front_is_up_whatever_the_file(codes):
    scan = np.zeros((8, 10, 6), np.uint8)  # right, anterior, superior
    scan[7, 9, 2] = 1  # right, front
    scan[0, 9, 2] = 2  # left, front
    scan[7, 0, 5] = 3  # right, back
    affine = np.diag([2.0, 3.0, 9.0, 1.0])
    image = nib.Nifti1Image(scan, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    stored = image.as_reoriented(turn)
    planes = to_planes(np.asarray(stored.dataobj), stored.affine)
    assert planes.values.shape == (6, 10, 8)
    assert planes.values[2, 0, 0] == 1
    assert planes.values[2, 0, -1] == 2
    assert planes.values[5, -1, 0] == 3
    assert (planes.left, planes.top) == ("R", "A")
    assert planes.pixel_mm == (3.0, 2.0)
    assert planes.slice_mm == 9.0
    assert planes.aspect == pytest.approx(8 * 2 / (10 * 3))


def test_a_volume_needs_three_axes():
    with pytest.raises(ValueError, match="three axes"):
        to_planes(np.zeros((4, 4)))


def test_window_is_soft_tissue_for_hu_and_percentiles_otherwise():
    ct = np.full(1000, 40.0)
    ct[:100] = -1000
    assert display_range(ct) == (-160.0, 240.0)
    low, high = display_range(np.arange(10001))
    assert low == pytest.approx(50)
    assert high == pytest.approx(9900)


def test_fill_and_line_have_the_labels_color():
    grey = np.full((20, 20), 0.5)
    labels = np.zeros((20, 20), int)
    labels[5:15, 5:15] = 2
    color = np.array(parse_color(PALETTE[1]))
    filled = render_slice(grey, fill=labels, opacity=1.0)
    assert filled.dtype == np.uint8
    assert (filled[10, 10] == color).all()
    assert (filled[0, 0] == 128).all()
    lined = render_slice(grey, contour=labels)
    assert (lined[5, 10] == color).all()
    assert (lined[10, 10] == 128).all()
    assert (lined[4, 10] < 64).all()  # dark edge outside the line
    half = render_slice(grey, fill=labels, opacity=0.4)
    assert half[10, 10] == pytest.approx(0.6 * 127.5 + 0.4 * color, abs=1)


def test_labels_must_fit_the_slice():
    with pytest.raises(ValueError, match="fill of shape"):
        render_slice(np.zeros((4, 4)), fill=np.zeros((4, 5)))


def test_a_label_keeps_its_color_and_no_two_share_one():
    assert label_colors([3, 7])[7] == label_colors(range(1, 40))[7]
    colors = label_colors(range(0, 60))
    assert 0 not in colors
    assert len(set(colors.values())) == 59


def test_outline_is_inside_and_not_at_the_pictures_border():
    labels = np.zeros((6, 6), int)
    labels[:, :3] = 4
    assert (outline(labels)[:, 2] == 4).all()
    assert (outline(labels)[:, [0, 1, 3, 4, 5]] == 0).all()


def test_enlarged_labels_keep_place_and_values():
    labels = np.zeros((8, 8), int)
    labels[2:4, 4:8] = 9
    large = resize_labels(labels, (16, 16))
    assert set(np.unique(large)) == {0, 9}
    assert large[5, 12] == 9
    assert large[5, 4] == 0


def test_dice_by_hand():
    assert plane_dice([1, 1, 0, 2], [1, 0, 0, 2], 1) == pytest.approx(2 / 3)
    assert np.isnan(plane_dice([0], [0], 5))
