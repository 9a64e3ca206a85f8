from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bundle.data.phantom import write_phantom
from bundle.visualize.colors import CONFIDENCE_SCALE, SIMILARITY_SCALE, heat_colors
from bundle.visualize.report import build_page, find_runs
from bundle.visualize.report.viewer import _heat_png
from scripts import preview
from scripts import report as command

from ..conftest import not_installed

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


def test_without_truth_the_lowest_expected_dice_comes_first(dataset, tmp_path):
    folder = make_run(tmp_path / "run", dataset)
    for name in ("metrics.csv", "summary.json"):
        (folder / name).unlink()
    for case, expected in {"phantom_01": [84.2, 71.8, 91.8], "phantom_02": [85.0, 73.0, 92.2]}.items():
        quality = {"expected_dice": {"liver": expected, "spleen": [60.0, 41.7, 75.9]}}
        (folder / case / f"{case}_quality.json").write_text(json.dumps(quality))
    page = build_page(find_runs(folder), dataset)
    assert check(page).cases == ["slices-0", "slices-1"]
    assert page.index("<h3>phantom_01</h3>") < page.index("<h3>phantom_02</h3>")
    assert "<td>84 (72-92)</td>" in page


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
        with pytest.raises((ValueError, OSError), match=message):
            command.report(str(tmp_path / folder))
    (tmp_path / "run" / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns"):
        command.report(str(tmp_path / "run"))


def add_confidence(run, level=40):
    """A confidence map and a quality file for the first case: sure but for one half of each slice."""
    case = "phantom_01"
    label = nib.load(run / case / f"{case}_seg.nii.gz")
    percent = np.full(label.shape, 100, np.uint8)
    percent[: label.shape[0] // 2] = level
    nib.save(nib.Nifti1Image(percent, label.affine), run / case / f"{case}_confidence.nii.gz")
    quality = {"support_similarity": 0.3587, "reverse_dice": {"liver <&>": 0.814, "spleen": 0.1}}
    quality |= {"warning": "look at <b>", "confidence": {"liver <&>": 81.4, "spleen": None}}
    quality |= {
        "volume_ml": {"liver <&>": 1432.04, "spleen": 0.0},
        "mean_intensity": {"liver <&>": 61.27, "spleen": None},
    }
    quality |= {"extent_mm": {"liver <&>": [205.3, 181.6, 90.0], "spleen": None}}
    (run / case / f"{case}_quality.json").write_text(json.dumps(quality))
    return run


def test_confidence_and_quality_of_a_case(dataset, tmp_path):
    run = make_run(tmp_path / "run", dataset)
    before = build_page(find_runs(run), dataset)
    for word in ("show-heat", 'class="heat"', 'class="scale', "Support–query similarity", '"confidence"', "show-like"):
        assert word not in before.split("<script>\n")[0]
    [found] = find_runs(add_confidence(run))
    assert set(found.predictions) == {"phantom_01", "phantom_02"}
    assert found.predictions["phantom_01"].name == "phantom_01_seg.nii.gz"
    assert found.confidences["phantom_01"].name == "phantom_01_confidence.nii.gz"
    page = build_page([found], dataset)
    check(page)
    worse, better = re.findall(r"<article.*?</article>", page, re.DOTALL)  # phantom_02 has neither file
    assert "show-heat" not in worse
    assert "show-like" not in page.split("<script>\n")[0]
    assert "Support–query similarity" not in worse
    assert "<strong>Look at &lt;b&gt;</strong>. Support–query similarity 0.36 (-1 to 1, higher is closer)</p>" in better
    rows = re.findall(r"<tr>(.*?)</tr>", better.split('class="measured"')[1])
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]
    assert cells == [
        ["label", "mL", "extent mm", "mean intensity", "confidence %", "reverse Dice"],
        ["liver &lt;&amp;&gt;", "1432", "205 × 182 × 90", "61.27", "81", "0.81"],
        ["spleen", "0", "–", "–", "–", "0.10"],
    ]
    assert "measured" not in worse
    assert better.count('class="number"') == 1  # into which the slider writes
    assert "95 % or more, sure" in better
    slices = json.loads(re.search(r'id="slices-1">(.*?)</script>', page).group(1))
    assert all(entry["confidence"].startswith("data:image/png") for entry in slices)
    small = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    nib.save(small, run / "phantom_01" / "phantom_01_confidence.nii.gz")
    assert "phantom_01_confidence.nii.gz: shape (3, 3, 3) does not fit" in build_page(find_runs(run), dataset)


def add_similarity(run, level=40):
    """A map for the first case: similar but for one half of each slice."""
    label = nib.load(run / "phantom_01/phantom_01_seg.nii.gz")
    percent = np.full(label.shape, 100, np.uint8)
    percent[:, label.shape[1] // 2 :] = level
    nib.save(nib.Nifti1Image(percent, label.affine), run / "phantom_01/phantom_01_similarity.nii.gz")
    return run


@pytest.mark.parametrize("confidence", [False, True])
def test_similarity_of_a_case(dataset, tmp_path, confidence):
    run = add_similarity(make_run(tmp_path / "run", dataset))
    [found] = find_runs(add_confidence(run) if confidence else run)
    assert {case: file.name for case, file in found.predictions.items()} == {
        f"phantom_0{n}": f"phantom_0{n}_seg.nii.gz" for n in (1, 2)
    }
    assert found.similarities == {"phantom_01": run / "phantom_01/phantom_01_similarity.nii.gz"}
    assert bool(found.confidences) == confidence
    page = build_page([found], dataset)
    check(page)
    worse, better = re.findall(r"<article.*?</article>", page, re.DOTALL)
    assert "similarity" not in worse
    assert 'class="show-like"' in better
    assert ('class="show-heat"' in better) == confidence
    assert "40 % or less, nothing like it in the support" in better
    slices = json.loads(re.search(r'id="slices-1">(.*?)</script>', page).group(1))
    assert all(entry["similarity"].startswith("data:image/png") for entry in slices)
    assert all(("confidence" in entry) == confidence for entry in slices)
    assert {file.parent.name: str(file) for file in found.predictions.values()} == preview.predictions(run)
    small = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    nib.save(small, run / "phantom_01" / "phantom_01_similarity.nii.gz")
    assert "phantom_01_similarity.nii.gz: shape (3, 3, 3) does not fit" in build_page(find_runs(run), dataset)


@pytest.mark.parametrize(
    ("scale", "percent"), [(CONFIDENCE_SCALE, [100, 70, 40, 0]), (SIMILARITY_SCALE, [70, 55, 40, 0])]
)
def test_heat_is_clear_where_good_and_bright_where_not(scale, percent):
    colors, alpha = heat_colors(scale.hues)
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colors]
    assert light == sorted(light)
    assert alpha[:2] == [0, 0]
    assert alpha[2] > 0
    assert alpha == sorted(alpha)
    assert 200 < alpha[-1] < 255
    source = _heat_png(np.array([percent]), [1, 4], scale)
    picture = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    pixels = np.asarray(picture.convert("RGBA"))[0]
    assert pixels[0, 3] == 0
    np.testing.assert_array_equal(pixels[1], [*colors[6], alpha[6]])  # half of the range
    np.testing.assert_array_equal(pixels[2], [*colors[-1], alpha[-1]])
    np.testing.assert_array_equal(pixels[3], pixels[2])


def chromium(page, tmp_path, *options):
    """Open a page in a headless browser; what it prints."""
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        not_installed("chromium; apt-get install chromium")
    (tmp_path / "page.html").write_text(page)
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/u"]
    command = [browser, *flags, *options, (tmp_path / "page.html").as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


def screenshot(page, tmp_path, size, *options):
    """Pixels (H, W, 3) of a page."""
    chromium(page, tmp_path, f"--screenshot={tmp_path}/shot.png", f"--window-size={size[0]},{size[1]}", *options)
    picture = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert picture.shape[:2] == (size[1], size[0])
    return picture


def near(picture, color, distance=40):
    return np.abs(picture - color).sum(axis=2) < distance


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1200, 1600), (500, 1600)], ids=["desktop", "phone"])
def test_chromium_draws_the_page(dataset, tmp_path, size):
    make_run(tmp_path / "run", dataset)
    picture = screenshot(build_page(find_runs(tmp_path / "run"), dataset), tmp_path, size)
    assert near(picture, (0x56, 0xB4, 0xE9)).sum() > 50  # the line of label 1
    assert (picture.sum(axis=2) < 30).sum() > 5000  # the black of the scan
    assert near(picture, (255, 255, 255), 10).mean() > 0.3  # light paper


@pytest.mark.slow
def test_chromium_draws_the_page_in_the_dark(dataset, tmp_path):
    page = build_page(find_runs(add_confidence(make_run(tmp_path / "run", dataset))), dataset)
    picture = screenshot(page, tmp_path, (1200, 1600), "--blink-settings=preferredColorScheme=0")
    assert near(picture, (0x14, 0x17, 0x1B), 6).mean() > 0.3  # the dark paper
    assert near(picture, (255, 255, 255), 30).mean() < 0.05
    assert near(picture, (0xE6, 0xE9, 0xEC), 30).sum() > 500  # the ink


CLICKS = """<script>
const [worse, better] = document.querySelectorAll(".case");
const slider = better.querySelector(".slider"), heat = better.querySelector(".show-heat");
const seen = (name) => {
  const part = better.querySelector("." + name);
  return part.checkVisibility ? part.checkVisibility() : part.offsetParent !== null;
};
const like = better.querySelector(".show-like");
const state = () => [better.querySelector(".number").textContent, seen("heat"), seen("scale"), seen("fill")];
const log = { fill: worse.querySelector(".fill").checkVisibility(), start: state() };
worse.querySelector(".show-fill").click();
log.hidden = worse.querySelector(".fill").checkVisibility();
heat.click();
log.heat = state();
slider.value = Number(slider.value) + 1;
slider.dispatchEvent(new Event("input", { bubbles: true }));
log.moved = state();
log.scan = better.querySelector(".scan").src;
like.click();
log.like = [...state().slice(1), seen("like"), seen("like-scale"), heat.checked];
like.click();
log.none = [...state().slice(1), seen("like"), seen("like-scale")];
heat.click();
log.again = [...state().slice(1), seen("like"), seen("like-scale")];
document.body.dataset.log = JSON.stringify(log);
better.scrollIntoView();
</script></body>"""


@pytest.mark.slow
def test_slider_and_switches_in_chromium(dataset, tmp_path):
    page = build_page(find_runs(add_similarity(add_confidence(make_run(tmp_path / "run", dataset)))), dataset)
    slices = json.loads(re.search(r'id="slices-1">(.*?)</script>', page).group(1))
    page = page.replace("</body>", CLICKS)
    dom = chromium(page, tmp_path, "--dump-dom")
    log = json.loads(html.unescape(re.search(r'data-log="(.*?)"', dom).group(1)))
    number = int(log["start"][0])
    assert log["fill"] is True
    assert log["hidden"] is False
    assert log["start"][1:] == [False, False, True]
    assert log["heat"] == [str(number), True, True, False]
    assert log["moved"][:3] == [str(number + 1), True, True]
    assert log["like"] == [False, False, False, True, True, False]  # one heat at a time
    assert log["none"] == [False, False, True, False, False]
    assert log["again"] == [True, True, False, False, False]
    assert log["scan"] == next(entry["image"] for entry in slices if entry["number"] == number + 1)
    heat = screenshot(page, tmp_path, (1200, 1600))
    plain = screenshot(page.replace("heat.click();", "").replace("like.click();", ""), tmp_path, (1200, 1600))
    hot = [near(picture, (0xDA, 0xDC, 0x90), 120).sum() for picture in (heat, plain)]  # bright heat on dark tissue
    assert hot[0] > 5000 + hot[1]
