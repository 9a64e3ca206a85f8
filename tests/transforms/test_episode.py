from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.transforms import Compose
from scipy import ndimage
from torch.utils.data import default_collate

from bundle.transforms import RandEpisoded, RandPseudoLabeld, RandView
from bundle.transforms.episode import apply_drawn_views, apply_gamma, apply_views, spread_control_points

STILL = {"rotation_deg": 0.0, "shift_px": 0.0, "shear_deg": 0.0, "zoom": (1, 1), "elastic_px": 0.0, "gamma": (1, 1)}
SHAPE = (40, 56)  # not square: a wrong scale of one axis shows


class Highest:
    """Random state that draws the top of every range."""

    def rand(self):
        return 0.0

    def uniform(self, low, high, size=None):
        return np.full(size, high) if size else high

    def normal(self, size):
        return np.ones(size)


def view_of(**ranges):
    """A view that takes the top of each given range and moves nothing else."""
    view = RandView(**{**STILL, **ranges})
    view.R = Highest()
    return view


@pytest.fixture
def scene():
    """A smooth image and two masks: (1, 40, 56), (2, 40, 56)."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2).astype(np.float32)
    masks = np.zeros((2, *SHAPE), np.uint8)
    masks[0, 10:25, 12:40] = 1
    masks[1, 15:38, 30:33] = 1
    return torch.from_numpy(image / image.std())[None], torch.from_numpy(masks)


def sampled(image, linear, shift, order):
    """Literal view: each output pixel reads the image at linear @ (its place from the center) + shift, (x, y)."""
    height, width = image.shape
    out = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            x, y = linear @ np.array([column + 0.5 - width / 2, row + 0.5 - height / 2]) + shift
            place = [[y + height / 2 - 0.5], [x + width / 2 - 0.5]]
            mode = "nearest" if order else "constant"
            out[row, column] = ndimage.map_coordinates(image.astype(float), place, order=order, mode=mode)[0]
    return out


def test_empty_ranges_change_nothing(scene):
    image, masks = RandView(**STILL)(*scene)
    torch.testing.assert_close(image, scene[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(masks, scene[1])


def test_zero_probability_changes_nothing_whatever_the_ranges(scene):
    image, masks = RandView(prob=0.0)(*scene)
    torch.testing.assert_close(image, scene[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(masks, scene[1])
    assert (RandView(prob=1.0)(*scene)[0] - scene[0]).abs().max() > 0.1


def test_shift_moves_by_whole_pixels(scene):
    image, masks = view_of(shift_px=3.0)(*scene)
    torch.testing.assert_close(image[:, :-3, :-3], scene[0][:, 3:, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(masks[:, :-3, :-3], scene[1][:, 3:, 3:])
    torch.testing.assert_close(image[:, -3:, :-3], scene[0][:, -1:, 3:].expand(-1, 3, -1), atol=1e-4, rtol=0)
    assert masks[:, -3:].sum() + masks[..., -3:].sum() == 0  # an edge is repeated for images, masks end there


def test_quarter_turn_on_a_square():
    image = torch.rand(1, 24, 24)
    masks = (torch.rand(2, 24, 24) > 0.5).to(torch.uint8)
    turned, turned_masks = view_of(rotation_deg=90.0)(image, masks)
    torch.testing.assert_close(turned, torch.rot90(image, 1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned_masks, torch.rot90(masks, 1, (1, 2)))


def test_zoom_of_two_shows_the_middle_at_double_size(scene):
    masks = view_of(zoom=(1.0, 2.0))(*scene)[1]
    repeated = scene[1][:, 10:30, 14:42].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(masks, repeated)


@pytest.mark.parametrize(
    ("ranges", "linear", "shift"),
    [
        ({"rotation_deg": 30.0}, [[3**0.5 / 2, -0.5], [0.5, 3**0.5 / 2]], [0, 0]),
        ({"shear_deg": 20.0}, [[1, np.tan(np.pi / 9)], [np.tan(np.pi / 9), 1]], [0, 0]),
        ({"zoom": (0.1, 0.8)}, [[1.25, 0], [0, 1.25]], [0, 0]),
        ({"shift_px": 2.4}, [[1, 0], [0, 1]], [2.4, 2.4]),
        (
            {"rotation_deg": 30.0, "shear_deg": 10.0, "zoom": (1, 1.2), "shift_px": 2.5},
            np.array([[3**0.5 / 2, -0.5], [0.5, 3**0.5 / 2]])
            @ np.array([[1, np.tan(np.pi / 18)], [np.tan(np.pi / 18), 1]])
            / 1.2,
            [2.5, 2.5],
        ),
    ],
    ids=["rotation", "shear", "zoom", "shift", "all"],
)
def test_view_equals_a_literal_resampling(scene, ranges, linear, shift):
    image, masks = view_of(**ranges)(*scene)
    expected = sampled(scene[0][0].numpy(), np.array(linear), np.array(shift), order=1)
    np.testing.assert_allclose(image[0].numpy(), expected, atol=2e-3)
    for mask, source in zip(masks, scene[1]):
        literal = sampled(source.numpy(), np.array(linear), np.array(shift), order=0)
        assert (mask.numpy() != literal).mean() < 0.01  # ties of the nearest pixel may fall either way


def test_mask_and_image_move_together():
    axis = torch.arange(64) - 32.0
    blob = ((axis[:, None] + 4) ** 2 + (axis[None] * 0.7) ** 2 < 15**2).float()[None]
    view = RandView(rotation_deg=20, shift_px=8, shear_deg=10, zoom=(0.8, 1.3), elastic_px=3, gamma=(1, 1))
    view.set_random_state(seed=0)
    moved = 0
    for _ in range(20):
        image, mask = view(blob, blob)
        assert ((image > 0.5).float() != mask).float().mean() < 0.01
        moved += int((mask != blob).float().mean() > 0.02)
    assert moved > 15


def test_elastic_displacement_is_smooth_and_of_the_size_asked_for():
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(256.0), indexing="ij")
    view = RandView(**{**STILL, "elastic_px": 2.0}).set_random_state(seed=0)
    views = [view(torch.stack([rows, columns]), torch.zeros(1, 128, 256))[0] for _ in range(20)]
    inside = (slice(None), slice(12, -12), slice(12, -12))
    for axis, places in enumerate((rows, columns)):
        moves = torch.stack([v[axis] for v in views])[inside] - places[12:-12, 12:-12]
        assert 1.0 < moves.std() < 2.2  # the spline between control points is calmer than these
        assert (moves.diff(dim=1).abs().max()) < 1.0
        assert (moves.diff(dim=2).abs().max()) < 1.0


def test_elastic_draws_have_the_given_spread_in_pixels():
    view = RandView(**{**STILL, "elastic_px": 3.0, "elastic_points": 40}).set_random_state(seed=0)
    view.randomize((100, 300))
    pixels = view.parameters["displacement"] * np.array([150, 50])[:, None, None]
    assert pixels.shape == (2, 40, 40)
    np.testing.assert_allclose(pixels.std(axis=(1, 2)), 3.0, atol=0.25)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gamma_bends_between_darkest_and_brightest(gamma):
    image = torch.tensor([[[[-1.0, 0.0], [1.0, 3.0]]], [[[5.0, 5.0], [5.0, 5.0]]]])
    out = apply_gamma(image, torch.tensor([gamma, gamma]))
    expected = torch.tensor([[-1.0, 0.25**gamma * 4 - 1], [0.5**gamma * 4 - 1, 3.0]])
    torch.testing.assert_close(out[0, 0], expected)
    torch.testing.assert_close(out[1], image[1])


def test_batch_equals_one_view_after_another():
    view = RandView().set_random_state(seed=0)
    images, masks = torch.rand(3, 1, *SHAPE), (torch.rand(3, 2, *SHAPE) > 0.5).float()
    single, parameters = [], []
    for image, mask in zip(images, masks):
        single.append(view(image, mask))
        parameters.append({name: torch.as_tensor(value) for name, value in view.parameters.items()})
    stacked = [torch.stack([p[name] for p in parameters]) for name in ("affine", "displacement", "gamma")]
    batch = apply_views(images, masks, *stacked)
    for index, (image, mask) in enumerate(single):
        torch.testing.assert_close(batch[0][index], image)
        torch.testing.assert_close(batch[1][index], mask)


def test_same_seed_same_view_and_the_input_stays(scene):
    before = scene[0].clone()
    first = RandView().set_random_state(seed=5)(*scene)
    again = RandView().set_random_state(seed=5)(*scene)
    other = RandView().set_random_state(seed=6)(*scene)
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert (first[0] - other[0]).abs().max() > 0.01
    torch.testing.assert_close(scene[0], before)
    assert first[1].dtype == torch.uint8
    assert isinstance(RandView()(scene[0].numpy(), scene[1].numpy())[0], np.ndarray)


def test_episode_holds_both_views_of_slice_and_label_map(scene):
    data = {"image": scene[0], "pseudo_label": scene[1][:1]}
    episode = RandEpisoded(RandView(), RandView())(data)
    for side in ("image", "label", "support_image", "support_label"):
        assert episode[side].shape == (1, *SHAPE)
    assert "pseudo_label" not in episode
    assert data["image"] is scene[0]


def test_lazy_episodes_become_the_same_views_in_a_batch(scene):
    wild = {"rotation_deg": 20, "stretch": 0.2, "elastic_px": 3, "bias": 0.3, "contrast": 0.3}
    samples = {}
    for lazy in (False, True):
        chain = RandEpisoded(RandView(**wild), RandView(**wild), lazy=lazy)
        made = []
        for seed in range(3):
            chain.set_random_state(seed=seed)
            made.append(chain({"image": scene[0] + seed, "pseudo_label": scene[1][:1]}))
        samples[lazy] = apply_drawn_views(default_collate(made))
    for key in ("image", "label", "support_image", "support_label"):
        torch.testing.assert_close(samples[True][key].float(), samples[False][key].float(), atol=1e-5, rtol=0)


def test_contrast_brightness_and_bias_are_the_drawn_ones(scene):
    darkest = scene[0].min()
    image = view_of(contrast=0.2)(*scene)[0]
    expected = (scene[0] - scene[0].mean()) * float(np.exp(0.2)) + scene[0].mean() + 0.2
    torch.testing.assert_close(image, expected, atol=1e-3, rtol=0)
    image = view_of(bias=0.3)(*scene)[0]  # every control point at one standard deviation: a constant field
    torch.testing.assert_close(image, (scene[0] - darkest) * float(np.exp(0.3)) + darkest, atol=1e-3, rtol=0)


@pytest.mark.parametrize("fixed", ["query", "support"])
def test_a_side_without_a_view_stays_as_it_is(scene, fixed):
    data = {"image": scene[0], "pseudo_label": scene[1]}
    views = {"query_view": RandView(), "support_view": RandView(), f"{fixed}_view": None}
    episode = RandEpisoded(**views).set_random_state(seed=0)(data)
    images = {"query": episode["image"], "support": episode["support_image"]}
    masks = {"query": episode["label"], "support": episode["support_label"]}
    for side in images:
        assert torch.equal(images[side], scene[0]) == (side == fixed)
        assert torch.equal(masks[side], scene[1]) == (side == fixed)


def test_two_views_of_an_episode_differ_and_repeat_under_a_seed(scene):
    data = {"image": scene[0], "superpixels": scene[1][:1].short()}
    chain = Compose([RandPseudoLabeld(min_area_px=9), RandEpisoded(RandView(), RandView())])
    first = chain.set_random_state(seed=2)(data)
    again = chain.set_random_state(seed=2)(data)
    for key in ("image", "label", "support_image", "support_label"):
        torch.testing.assert_close(first[key], again[key], atol=0, rtol=0)
    assert (first["image"] - first["support_image"]).abs().max() > 0.05


def test_one_view_object_on_both_sides_still_gives_two_views(scene):
    view = RandView()
    data = {"image": scene[0], "pseudo_label": scene[1]}
    episode = RandEpisoded(view, view).set_random_state(seed=0)(data)
    assert (episode["image"] - episode["support_image"]).abs().max() > 0.05


@pytest.mark.parametrize(
    "ranges", [{"zoom": (1.2, 0.9)}, {"zoom": (0, 1)}, {"gamma": (-1, 1)}, {"gamma": (0.5, 1, 2)}], ids=str
)
def test_ranges_upside_down_or_not_positive_are_named(ranges):
    name = next(iter(ranges))
    with pytest.raises(ValueError, match=rf"{name} must be a positive range \[smallest, largest\], got"):
        RandView(**ranges)


@pytest.mark.parametrize("points", [2, 6])
def test_control_points_are_spread_as_a_bicubic_interpolation(points):
    values = torch.randn(2, 3, points, points)
    expected = F.interpolate(values, size=SHAPE, mode="bicubic", align_corners=True)
    torch.testing.assert_close(spread_control_points(values, SHAPE), expected, atol=1e-5, rtol=0)
