from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from bundle.data.phantom import make_phantom
from bundle.handlers import EpisodePictures, ListOutput, OverlaySaver, RunRecord
from bundle.handlers.run_record import quote


@pytest.fixture
def case(tmp_path):
    image, label, affine = make_phantom(1, shape=(32, 32, 6), spacing_mm=(10.0, 10.0, 25.0))
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "case_7.nii.gz")
    return MetaTensor(label[None], affine=affine, meta={"filename_or_obj": str(tmp_path / "case_7.nii.gz")})


def run(handler, batch, output):
    engine = Engine(lambda _, item: output)
    engine.state.batch = batch
    handler.attach(engine)
    engine.run([batch], max_epochs=1)


def test_overlay_beside_the_prediction_truth_from_the_batch(case, tmp_path):
    saver = OverlaySaver(tmp_path / "out", {1: "liver"}, "label_map", "truth")
    run(saver, [{"truth": case}], [{"label_map": case}])
    assert [p.name for p in (tmp_path / "out" / "case_7").iterdir()] == ["case_7_overlay.png"]


def test_a_case_without_its_file_does_not_stop_the_run(case, tmp_path, caplog):
    case.meta["filename_or_obj"] = str(tmp_path / "gone.nii.gz")
    run(OverlaySaver(tmp_path / "out"), [{}], [{"pred": case}])
    assert "no overlay" in caplog.text
    assert not (tmp_path / "out").exists()


def test_pictures_are_drawn_while_the_next_case_is_segmented(case, tmp_path, monkeypatch):
    segmented, drawn = threading.Event(), []

    def draw(self, output):
        drawn.append((output["number"], segmented.wait(30)))

    def segment(engine, batch):
        if batch[0]["number"] == 2:
            segmented.set()  # the picture of the first case waits for this
        return [{"pred": case}]

    monkeypatch.setattr(OverlaySaver, "draw", draw)
    engine = Engine(segment)
    OverlaySaver(tmp_path).attach(engine)
    engine.run([[{"number": number}] for number in (1, 2, 3)], max_epochs=1)
    assert drawn == [(1, True), (2, True), (3, True)]


def test_a_wrong_key_is_named(case, tmp_path):
    with pytest.raises(KeyError, match=r"OverlaySaver: \['truth'\] absent"):
        OverlaySaver(tmp_path, truth_key="truth").draw({"pred": case})


def test_record_holds_command_settings_and_time(tmp_path):
    run(RunRecord(tmp_path, {"fold": 3, "path": tmp_path}), [1], None)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["settings"] == {"fold": 3, "path": str(tmp_path)}
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["seconds"] >= 0
    assert record["command"].startswith("python")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("--a#b", "--a#b"), ("[{'a':1}]", "\"[{'a':1}]\""), ("two words", "'two words'"), ("$HOME's", "'$HOME'\"'\"'s'")],
)
def test_commands_can_be_pasted(argument, expected):
    assert quote(argument) == expected


@pytest.mark.parametrize(("interval", "expected"), [(2, [2, 4]), (0, [])])
def test_pictures_every_few_epochs(interval, expected):
    written, flushed = [], []
    writer = SimpleNamespace(
        add_image=lambda tag, picture, step, dataformats: written.append((tag, picture.shape, step)),
        flush=lambda: flushed.append(1),
    )
    masks = torch.zeros(1, 1, 1, 16, 16)
    masks[..., 4:9, 4:9] = 1
    image = torch.rand(1, 1, 16, 16)
    support = {"support_image": image[:, None, None], "support_label": masks}
    engine = Engine(lambda _, item: {"pred": torch.rand(1, 2, 8, 8)})
    ListOutput().attach(engine)
    engine.prepare_batch = lambda batch, device: (image, masks[:, 0], (), support)
    engine.state.device = "cpu"
    EpisodePictures(writer, interval).attach(engine)
    engine.run([0], max_epochs=4)
    assert [step for _, _, step in written] == expected
    assert len(flushed) == 4
    assert all(np.prod(shape) > 1000 and shape[2] == 3 for _, shape, _ in written)
    with pytest.raises(ValueError, match="interval must be"):
        EpisodePictures(writer, -1)
