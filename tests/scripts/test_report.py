from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest

from bundle.data.phantom import write_phantom
from bundle.visualize.report import build_page, find_runs
from scripts import report as command

VOID = {"meta", "img", "input", "br", "line", "circle", "polyline"}


class Checker(HTMLParser):
    """Raises if tags are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.sources, self.cases = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.sources += [attrs[name] for name in ("src", "href") if name in attrs]
        if "data-viewer" in attrs:
            self.cases.append(attrs["data-viewer"])
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(page):
    parser = Checker()
    parser.feed(page)
    assert parser.open == []
    assert all(source == "" or source.startswith("data:image/") for source in parser.sources)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page)
    return parser


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data"), 3, shape=(40, 40, 8), spacing_mm=(8.0, 8.0, 20.0))


def make_run(folder, dataset, dice=(90.0, 40.0)):
    rows = []
    for number, score in zip((1, 2), dice):
        case = f"phantom_{number:02d}"
        label = nib.load(dataset / "labelsTr" / f"{case}.nii.gz")
        (folder / case).mkdir(parents=True)
        nib.save(
            nib.Nifti1Image(np.roll(np.asarray(label.dataobj), 1, 0), label.affine),
            folder / case / f"{case}_seg.nii.gz",
        )
        rows.append([case, 1, "liver <&>", score, "volume"])
        rows.append([case, 2, "spleen", "", "volume"])
    with open(folder / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([["case", "label", "name", "dice", "protocol"], *rows])
    (folder / "summary.json").write_text(json.dumps({"protocol": "volume", "fold": 0, "weights": "w.pt"}))
    return folder


def test_page_of_a_run(dataset, tmp_path):
    make_run(tmp_path / "run", dataset)
    page = build_page(find_runs(tmp_path / "run"), dataset)
    parser = check(page)
    assert parser.cases == ["slices-0", "slices-1"]
    assert page.index("<h3>phantom_02</h3>") < page.index("<h3>phantom_01</h3>")  # worst first
    assert "liver &lt;&amp;&gt;" in page
    assert "liver <&>" not in page
    assert "65.0 ± 35.4" in page  # 90 and 40 by hand
    assert '<b class="left">R</b>' in page
    assert "--protocol volume --fold 0 --ckpt_path w.pt" in page
    slices = json.loads(re.search(r'id="slices-0">(.*?)</script>', page).group(1))
    assert all({"number", "image", "note"} <= set(entry) for entry in slices)
    assert any("truth" in entry and "prediction" in entry for entry in slices)
    assert len(page) < 2_000_000


def test_no_truth_and_no_scan_degrade(dataset, tmp_path):
    make_run(tmp_path / "run", dataset)
    for name in ("metrics.csv", "summary.json"):
        (tmp_path / "run" / name).unlink()
    page = build_page(find_runs(tmp_path / "run"))
    assert len(check(page).cases) == 2
    assert "no scan found; no truth found" in page
    assert "no Dice measured" in page
    assert 'class="show-lines"' not in page


def test_several_runs_have_mean_and_sd(dataset, tmp_path):
    make_run(tmp_path / "fold0", dataset, (90.0, 50.0))
    make_run(tmp_path / "fold1", dataset, (80.0, 40.0))
    page = build_page(find_runs(tmp_path), dataset, max_pictures=12)
    assert len(check(page).cases) == 4
    assert "65.0 ± 7.1" in page  # 70 and 60 by hand
    assert "phantom_02 (fold1)" in page


def test_training_has_curves(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        for step in range(40):
            writer.add_scalar("train_loss", 1 / (step + 1), step)
    page = build_page(find_runs(tmp_path))
    check(page)
    assert "train_loss: lowest 0.025 at 39" in page
    assert page.count("<polyline") == 2


def test_a_broken_prediction_is_named_and_the_others_go_on(dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset)
    broken = run / "phantom_01" / "phantom_01_seg.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    page = build_page(find_runs(run), dataset)
    assert check(page).cases == ["slices-0"]
    assert "phantom_01_seg.nii.gz: cannot be read" in page


def test_command_writes_the_page_and_refuses_bad_input(dataset, tmp_path, capsys):
    make_run(tmp_path / "run", dataset)
    command.report(str(tmp_path / "run"), str(dataset))
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "no such folder"), ("empty", "no results")):
        with pytest.raises(SystemExit, match=message):
            command.report(str(tmp_path / folder))
    (tmp_path / "run" / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="expected the columns"):
        command.report(str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1200, 1600), (500, 1600)], ids=["desktop", "phone"])
def test_chromium_draws_the_page(dataset, tmp_path, size):
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    from PIL import Image

    make_run(tmp_path / "run", dataset)
    page, shot = tmp_path / "page.html", tmp_path / "shot.png"
    page.write_text(build_page(find_runs(tmp_path / "run"), dataset))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/u"]
    options += [f"--screenshot={shot}", f"--window-size={size[0]},{size[1]}", page.as_uri()]
    subprocess.run([browser, *options], check=True, capture_output=True, timeout=120)
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert picture.shape[:2] == (size[1], size[0])
    blue = np.abs(picture - (0x56, 0xB4, 0xE9)).sum(axis=2) < 40  # the line of label 1
    assert blue.sum() > 50
    assert (picture.sum(axis=2) < 30).sum() > 5000  # the black of the scan
