from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.metrics import ScanDice, scan_dice


def masks(*columns):
    """Masks (n, 1, W, D) of lists (W, D) of 0 and 1."""
    return torch.tensor(columns)[:, None]


def literal(pred, truth, within_extent):
    """Dice of one label by loops over slices: TP, FP and FN summed over the scan."""
    shown = [z for z in range(truth.shape[-1]) if truth[..., z].any()]
    if not shown:
        return float("nan")
    tp = fp = fn = 0
    for z in range(truth.shape[-1]):
        if within_extent and not shown[0] <= z <= shown[-1]:
            continue
        p, t = pred[..., z] > 0, truth[..., z] > 0
        tp, fp, fn = tp + (p & t).sum(), fp + (p & ~t).sum(), fn + (~p & t).sum()
    return 2 * tp / (2 * tp + fp + fn)


def test_answers_worked_out_by_hand():
    truth = masks([[0, 1, 1, 0], [0, 1, 1, 0]])
    pred = masks([[1, 1, 0, 0], [0, 1, 0, 0]])
    assert scan_dice(pred, truth).item() == pytest.approx(2 * 2 / (3 + 4))
    assert scan_dice(pred, truth, within_extent=True).item() == pytest.approx(2 * 2 / (2 + 4))
    assert scan_dice(truth, truth).item() == 1.0
    assert scan_dice(1 - truth, truth).item() == 0.0


def test_gap_inside_the_extent_counts():
    truth = masks([[0, 1, 0, 1, 0]])
    pred = masks([[1, 1, 1, 1, 1]])
    assert scan_dice(pred, truth, within_extent=True).item() == pytest.approx(4 / 5)


def test_label_that_the_truth_does_not_show_is_nan():
    nothing = torch.zeros(1, 2, 2, 2)
    assert scan_dice(nothing, nothing).isnan().all()
    assert scan_dice(1 - nothing, nothing, within_extent=True).isnan().all()
    assert scan_dice(nothing, 1 - nothing).item() == 0.0


@pytest.mark.parametrize("within_extent", [False, True])
def test_vectorized_equals_literal(within_extent):
    rng = np.random.default_rng(0)
    pred, truth = (rng.random((5, 6, 7, 9)) > t for t in (0.6, 0.9))
    truth[:, :, :, :2] = truth[0] = False
    got = scan_dice(torch.from_numpy(pred), torch.from_numpy(truth).to(torch.uint8), within_extent)
    expected = [literal(p, t, within_extent) for p, t in zip(pred, truth)]
    np.testing.assert_allclose(got.numpy(), expected)


def test_metric_means_over_scans_first_and_labels_last():
    full, none = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    metric = ScanDice()
    metric(torch.cat([full, full])[None], torch.cat([full, none])[None])  # label 1: 1.0, label 2: not shown
    metric(torch.cat([none, full])[None], torch.cat([full, full])[None])  # 0.0 and 1.0
    metric(torch.cat([none, full])[None], torch.cat([full, full])[None])  # 0.0 and 1.0
    assert metric.aggregate().item() == pytest.approx((1 / 3 + 1) / 2)
    metric.reset()
    metric(torch.cat([full, full])[None], torch.cat([full, full])[None])
    assert metric.aggregate().item() == 1.0


def test_metric_passes_the_extent_on():
    truth, pred = masks([[0, 1, 1, 0]]), masks([[1, 1, 1, 1]])
    values = {}
    for within_extent in (False, True):
        metric = ScanDice(within_extent)
        metric(pred[None], truth[None])
        values[within_extent] = metric.aggregate().item()
    assert values == {False: pytest.approx(2 / 3), True: 1.0}


def test_misfits_are_named():
    with pytest.raises(ValueError, match=r"pred of shape \(1, 2, 2, 2\) does not fit truth of shape \(2, 2, 2, 2\)"):
        scan_dice(torch.zeros(1, 2, 2, 2), torch.zeros(2, 2, 2, 2))
    with pytest.raises(ValueError, match="ScanDice needs the true masks"):
        ScanDice()(torch.zeros(1, 1, 2, 2, 2))
