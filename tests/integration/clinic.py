"""A clinic on one machine: generated studies as DICOM, the archive Orthanc, and a browser for MONAI Label's OHIF."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from PIL import Image
from pydicom.uid import generate_uid

from bundle.data.phantom import make_phantom

from ..data.archives import write_series
from ..data.dicom import edit
from .client import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Study:
    """A study of one series.

    Attributes:
        patient: name of the patient.
        uid: UID of the study.
        series: UID of the series.
        files: one of each slice, from the feet to the head.
        label: true label map on the series' grid.
    """

    patient: str
    uid: str
    series: str
    files: list[Path]
    label: SimpleITK.Image


def write_study(
    folder: Path, subject: int, shape: Sequence[int], spacing_mm: Sequence[float], head_first: bool = True
) -> Study:
    """Write a generated MR scan as DICOM: rows to the back, columns to the left, tilted a little as it was taken.

    Args:
        folder: where the files go.
        subject: number of the patient.
        shape: voxels of the phantom, see `make_phantom`.
        spacing_mm: their size.
        head_first: whether the slices are numbered from the head to the feet, or the other way round.
    """
    image, label, affine = make_phantom(subject, shape=shape, spacing_mm=spacing_mm)
    axes = TO_LPS @ affine[:3, :3] @ np.diag([-1, -1, 1])  # the first two axes are turned round
    origin = TO_LPS @ (affine @ [shape[0] - 1, shape[1] - 1, 0, 1])[:3]
    columns, rows, _ = (axes / np.asarray(spacing_mm)).T
    uid, series, frame, patient = generate_uid(), generate_uid(), generate_uid(), f"Phantom^{subject}"
    files = write_series(
        folder,
        image[::-1, ::-1].transpose(1, 0, 2).clip(0),
        origin=origin,
        step=axes[:, 2],
        pixel_spacing=(spacing_mm[1], spacing_mm[0]),
        directions=np.concatenate([columns, rows]),
        series=series,
    )
    edit(
        files,
        StudyInstanceUID=uid,
        FrameOfReferenceUID=frame,
        PatientID=f"phantom-{subject}",
        PatientName=patient,
        PatientBirthDate="19700101",
        PatientSex="O",
        StudyDate="20260101",
        StudyTime="120000",
        StudyID=str(subject),
        AccessionNumber=str(subject),
        StudyDescription="generated abdomen",
        ReferringPhysicianName="",
        SeriesNumber=1,
        SeriesDescription="T2 ax",
        SliceThickness=spacing_mm[2],
        InstanceNumber=list(range(len(files), 0, -1) if head_first else range(1, len(files) + 1)),
        WindowCenter=float(np.percentile(image, 99) / 2),
        WindowWidth=float(np.percentile(image, 99)),
    )
    known = SimpleITK.GetImageFromArray(label[::-1, ::-1].transpose(2, 1, 0))
    known.SetDirection(np.stack([columns, rows, axes[:, 2] / spacing_mm[2]], axis=1).ravel().tolist())
    known.SetOrigin(origin.tolist())
    known.SetSpacing([float(value) for value in spacing_mm])
    return Study(patient, uid, series, files, known)


class Archive:
    """A running Orthanc: what tests ask of it, by its own REST interface."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.dicom_web = f"{self.url}/dicom-web"

    def call(self, path: str, body: bytes | None = None) -> bytes:
        """Content of an answer."""
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=body), timeout=60) as answer:
            return answer.read()

    def send(self, files: Sequence[Path]) -> None:
        """Send files to it."""
        for file in files:
            assert json.loads(self.call("/instances", file.read_bytes()))["Status"] == "Success"

    def segmentations(self, study: Study) -> list[Any]:
        """The DICOM segmentations of a study, the last one that it got last."""
        query = {"Level": "Series", "Expand": True, "Query": {"StudyInstanceUID": study.uid, "Modality": "SEG"}}
        found = json.loads(self.call("/tools/find", json.dumps(query).encode()))
        files = [
            instance for series in sorted(found, key=lambda s: s["LastUpdate"]) for instance in series["Instances"]
        ]
        return [pydicom.dcmread(BytesIO(self.call(f"/instances/{file}/file"))) for file in files]


@contextmanager
def serve_archive(folder: Path) -> Iterator[Archive]:
    """An empty Orthanc with DICOMweb, until the block ends."""
    port = free_port()
    settings = {
        "Name": "clinic",
        "StorageDirectory": str(folder / "archive"),
        "IndexDirectory": str(folder / "archive"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with open(folder / "orthanc.log", "w") as log:
        process = subprocess.Popen(
            [find_program("Orthanc"), folder / "orthanc.json"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        archive = Archive(port)
        for _ in range(60):
            try:
                archive.call("/dicom-web/studies")
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise TimeoutError((folder / "orthanc.log").read_text()[-2000:])
        yield archive
    finally:
        process.terminate()
        process.wait(30)


def missing_parts() -> list[str]:
    """What is not installed here of the archive and the browser."""
    parts = {
        "orthanc": find_program("Orthanc"),
        "orthanc-dicomweb": PLUGIN.is_file(),
        "chromium": find_browser(),
        "playwright": importlib.util.find_spec("playwright"),
    }
    return [name for name, found in parts.items() if not found]


def find_program(*names: str) -> str | None:
    """Path of the first program that is there; servers lie where not every user looks."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    return next((path for path in (shutil.which(name, path=places) for name in names) if path), None)


def find_browser() -> str | None:
    """Path of a browser."""
    return find_program("chromium", "chromium-browser", "google-chrome")


# What a page tells of itself: OHIF leaves its services and its drawing library in these variables
VOLUME_IS_LOADED = "() => window.cornerstone?.cache.getVolumes().some(v => v.imageIds?.length && v.loadStatus?.loaded)"
SHOWS_SEGMENTS = """() => window.services.segmentationService.getLabelmapVolume('1')
    ?.voxelManager.getCompleteScalarDataArray().some(value => value > 0)"""
LABEL_MAP = """() => {
    const volume = window.services.segmentationService.getLabelmapVolume('1');
    const voxels = Array.from(volume.voxelManager.getCompleteScalarDataArray());
    const {dimensions, origin, spacing, direction} = volume;
    return {voxels, dimensions, origin, spacing, direction: Array.from(direction)};
}"""
SEGMENTS = """() => Object.fromEntries(window.services.segmentationService.getSegmentations()
    .flatMap(s => Object.values(s.segments)).map(s => [s.label, s.segmentIndex]))"""
SEGMENTATION_IS_LOADED = """() => {
    const {segmentationService, viewportGridService} = window.services;
    const shown = segmentationService.getSegmentationRepresentations(viewportGridService.getActiveViewportId());
    return shown.length > 0;
}"""
MIDDLE_SLICE = """() => {
    const {viewportGridService, cornerstoneViewportService} = window.services;
    const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
    const slices = viewport?.getImageIds?.() ?? [];
    if (slices.length) viewport.setImageIdIndex(Math.floor(slices.length / 2));
    return slices.length > 0;
}"""


class Viewer:
    """MONAI Label's OHIF in a browser: what a user does there, step by step.

    Args:
        page: the browser's page.
        url: of the MONAI Label server.
        pictures: folder of the pictures that are taken.
    """

    def __init__(self, page: Any, url: str, pictures: Path) -> None:
        self.page, self.url, self.pictures = page, url, pictures
        page.route("**/*.googleapis.com/**", lambda route: route.abort())  # fonts
        page.on("console", lambda message: print(message.text[:500]) if "Error" in message.text else None)
        page.set_default_timeout(60_000)

    def open(self, patient: str, mode: str) -> list[str]:
        """Open a patient's study from the list of studies; the patients that are listed."""
        self.page.goto(f"{self.url}/ohif/")
        names = self.page.locator("span.truncate", has_text=re.compile(r"^Phantom, "))
        names.first.wait_for()
        listed = names.all_inner_texts()
        notice = self.page.get_by_text("Confirm and Hide")
        if notice.is_visible():
            notice.click()
        names.filter(has_text=patient).first.click()
        self.page.mouse.move(0, 0)  # away from the name, whose hint hides the buttons
        self.page.get_by_role("button", name=mode).click()
        return sorted(set(listed))

    def connect(self) -> list[str]:
        """Connect the panel of MONAI Label to the server; the models that it offers."""
        self.page.wait_for_function(VOLUME_IS_LOADED)
        self.page.fill("#monailabelServerURL", f"{self.url}/")
        self.page.click(".settingsTable .actionButton")
        self.page.click("label:has-text('Auto-Segmentation')")
        return self.page.locator(".modelSelector option").evaluate_all("found => found.map(option => option.value)")[:1]

    def run(self) -> tuple[bytes, str]:
        """Press the button that runs the model: the request's form and the label map that came."""
        with self.page.expect_response(lambda answer: "/infer/" in answer.url, timeout=300_000) as waiting:
            self.page.click("button[title='Run Segmentation']")
        answer = waiting.value
        assert answer.status == 200, answer.text()
        self.page.wait_for_function(SHOWS_SEGMENTS)
        return answer.body(), answer.request.post_data

    def label_map(self) -> SimpleITK.Image:
        """The label map that is shown."""
        shown = self.page.evaluate(LABEL_MAP)
        image = SimpleITK.GetImageFromArray(np.reshape(shown["voxels"], shown["dimensions"][::-1]).astype(np.uint8))
        image.SetOrigin(shown["origin"])
        image.SetSpacing(shown["spacing"])
        image.SetDirection(np.reshape(shown["direction"], (3, 3)).T.ravel().tolist())
        return image

    def segments(self) -> dict[str, int]:
        """Names and values of the segments that are shown."""
        return self.page.evaluate(SEGMENTS)

    def load_segmentation(self) -> None:
        """Open the last segmentation of the study in the mode for segmentations."""
        self.page.get_by_text("SEG", exact=True).last.dblclick()
        self.page.get_by_role("button", name="Yes").click()
        self.page.get_by_text("Add Segment").wait_for()
        self.page.wait_for_function(SEGMENTATION_IS_LOADED)
        self.page.wait_for_function(MIDDLE_SLICE)

    def download(self, path: Path) -> Path:
        """Save the segmentation that is shown as a file."""
        add = self.page.get_by_text("Add Segment")
        add.locator("xpath=preceding::button[@aria-haspopup='menu'][1]").click()
        self.page.get_by_role("menuitem", name="Export & Download").click()
        item = self.page.get_by_role("menuitem", name="Download DICOM SEG")
        item.wait_for()
        with self.page.expect_download() as waiting:
            item.press("Enter")
        waiting.value.save_as(path)
        return path

    def upload(self, path: Path) -> None:
        """Send a file to the archive from the list of studies."""
        self.page.goto(f"{self.url}/ohif/")
        self.page.get_by_text("Upload").first.click()
        self.page.set_input_files("input[type=file]", path)
        self.page.get_by_text("1 file completed").wait_for()

    def picture(self, name: str) -> int:
        """Take a picture; how many of its pixels in the views are colored."""
        self.page.wait_for_timeout(2000)  # to draw
        self.page.screenshot(path=self.pictures / f"{name}.png")
        with Image.open(self.pictures / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))[120:700, 290:980].astype(int)
        return int(((pixels[..., 0] - pixels[..., 1]) > 30).sum())  # the scan is gray, the writing blue


@contextmanager
def open_viewer(url: str, pictures: Path) -> Iterator[Viewer]:
    """A browser without a screen, until the block ends."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # 3D without a graphics card
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=flags)
        try:
            yield Viewer(browser.new_page(viewport={"width": 1280, "height": 800}), url, pictures)
        finally:
            browser.close()
