from __future__ import annotations

import json

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from bundle.handlers import CaseQuality
from bundle.quality import describe_quality

META = {"filename_or_obj": "scans/case_7.nii.gz"}
NAMES = {1: "liver", 2: "spleen"}


def prediction(**meta):
    return MetaTensor(torch.tensor([1, 1, 0, 5]).view(1, 1, 1, 4), meta={**META, **meta})


def expected(reverse_dice, sides=((2.0, 1.0, 1.0), (1.0, 1.0, 1.0)), **meta):
    """A label map of a liver and a spleen of which the support's sides are known."""
    known = {"label_values": torch.tensor([[1, 2]]), "support_sides_mm": torch.tensor([sides])}
    found = MetaTensor(torch.tensor([1, 1, 0, 2]).view(1, 1, 1, 4), meta={**META, **known, **meta})
    found.meta["reverse_dice"] = torch.tensor([reverse_dice])
    return found


def test_mean_confidence_over_the_predicted_voxels_and_the_fit_of_the_support(tmp_path):
    labels = prediction(
        support_similarity=torch.tensor([0.62341]),
        label_values=torch.tensor([[1, 2, 5]]),
        label_confidence=torch.tensor([80.504, float("nan"), 55.0]),
    )
    engine = Engine(lambda _, item: [{"label_map": labels}])
    engine.state.batch = [{}]
    CaseQuality(tmp_path, NAMES, "label_map").attach(engine)
    engine.run([[{}]], max_epochs=1)
    assert [p.name for p in (tmp_path / "case_7").iterdir()] == ["case_7_quality.json"]
    found = json.loads((tmp_path / "case_7" / "case_7_quality.json").read_text())
    assert found.pop("volume_ml") == {"liver": 0.002, "spleen": 0, "label 5": 0.001}
    assert found.pop("extent_mm") == {"liver": [1.0, 1.0, 2.0], "spleen": None, "label 5": [1.0, 1.0, 1.0]}
    assert found == {"support_similarity": 0.6234, "confidence": {"liver": 80.5, "spleen": None, "label 5": 55.0}}


def test_what_is_not_known_is_left_out(tmp_path):
    saver = CaseQuality(tmp_path, NAMES)
    measured = {
        "volume_ml": {"liver": 0.002, "label 5": 0.001},
        "extent_mm": {"liver": [1.0, 1.0, 2.0], "label 5": [1.0, 1.0, 1.0]},
    }
    assert json.loads(saver.write({"pred": prediction()}).read_text()) == measured
    path = saver.write({"pred": prediction(support_similarity=0.5)})
    assert json.loads(path.read_text()) == {"support_similarity": 0.5, **measured}
    with pytest.raises(KeyError, match=r"CaseQuality: \['pred'\] absent, there are \['other'\]"):
        saver.write({"other": 1})


@pytest.mark.parametrize(
    ("reverse_dice", "warning"),
    [
        ([0.8, 0.65], None),
        ([0.8, 0.25], "look at these labels, expected Dice below 60: spleen 49 (32-67)"),
        ([0.1, 0.0], "the support does not fit this scan, expected Dice below 60: liver 35 (21-53), spleen 27 (15-44)"),
    ],
)
def test_labels_of_low_expected_dice_are_warned_of_in_the_file_and_the_log(tmp_path, caplog, reverse_dice, warning):
    found = expected(reverse_dice)
    path = CaseQuality(tmp_path, NAMES).write({"pred": found})
    read = json.loads(path.read_text())
    assert read["reverse_dice"] == pytest.approx(dict(zip(NAMES.values(), reverse_dice)))
    assert read.get("warning") == warning
    assert [record.message for record in caplog.records] == ([f"case_7: {warning}"] if warning else [])


def test_a_support_of_another_body_part_is_warned_of_before_its_labels(tmp_path, caplog):
    found = expected([0.8, 0.2], support_similarity=0.43)
    read = json.loads(CaseQuality(tmp_path, NAMES, warn_similarity_below=0.5).write({"pred": found}).read_text())
    assert read["warning"] == (
        "the support looks unlike this scan, similarity 0.43 below 0.5; "
        "look at these labels, expected Dice below 60: spleen 44 (28-62)"
    )
    assert [record.message for record in caplog.records] == [f"case_7: {read['warning']}"]
    assert "warning" in json.loads(
        CaseQuality(tmp_path, NAMES).write({"pred": prediction(support_similarity=0.1)}).read_text()
    )


@pytest.mark.parametrize(("turn", "degrees"), [(0, None), (1, 90), (3, 270)])
def test_a_turned_scan_is_named(tmp_path, turn, degrees):
    found = describe_quality(prediction(support_rotation=torch.tensor([turn])), {}, None, 60, 0.5)
    assert found.get("rotated_degrees") == degrees
    assert ("warning" in found) == (f"turned by {degrees} degrees" in found.get("warning", "")) == (turn > 0)


@pytest.mark.parametrize(("shares", "names"), [((0.0, 0.0), None), ((0.0, 0.5), ["spleen"])])
def test_a_label_that_is_found_by_its_place_is_named(shares, names):
    found = prediction(atlas_fallback=torch.tensor([shares]), label_values=torch.tensor([[1, 2]]))
    read = describe_quality(found, NAMES, None, 60, 0.5)
    assert read.get("atlas_fallback") == names
    assert read.get("warning") == (names and "unlike the support's, found by where they must lie: spleen")
