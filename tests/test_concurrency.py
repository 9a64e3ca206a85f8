"""Several inferences at once in one process give what each gives alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate

from bundle.networks import load_weights

from .conftest import ROOT, TINY_NETWORK

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = ("phantom_01", "phantom_03", "phantom_04")


def test_requests_share_one_set_of_objects(phantom_dir, tiny_weights, tmp_path):
    """As in a MONAI Label server, which parses the config once and answers each request in a thread of its own."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.json"))
    overrides = {"dataset_dir": str(phantom_dir), "device": "cpu", "image_size": [64, 64], "network_def": TINY_NETWORK}
    overrides |= {"output_dir": str(tmp_path), "bundle_root": str(ROOT), "save_confidence": True}
    for key, value in overrides.items():
        parser[key] = value
    before, inferer, after = (parser.get_parsed_content(k) for k in ("preprocessing", "inferer", "postprocessing"))
    network = load_weights(parser.get_parsed_content("network"), tiny_weights).eval()

    def request(case, support):
        image = str(phantom_dir / "imagesTr" / f"{case}.nii.gz")
        item = before({"image": image})
        entry = {key: str(phantom_dir / f"{key}sTr" / f"{support}.nii.gz") for key in ("image", "label")}
        item["image"].meta["support"] = f'[{{"image": "{entry["image"]}", "label": "{entry["label"]}"}}]'
        batch = list_data_collate([item])
        with torch.no_grad():
            (result,) = decollate_batch({"pred": inferer(batch["image"], network)})
        made = after(result)
        return [torch.as_tensor(made[key]).clone() for key in ("pred", "confidence")]

    jobs = [(case, support) for case in CASES for support in CASES if case != support]
    alone = [request(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: request(*job), jobs * 3))
    for index, found in enumerate(together):
        for mine, expected in zip(found, alone[index % len(jobs)]):
            assert torch.equal(mine, expected)
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(alone, alone[1:]))  # they are not all the same


def test_two_whole_runs_at_once(run_config, tmp_path, phantom_dir):
    def start(name, case):
        query = [{"image": str(phantom_dir / "imagesTr" / f"{case}.nii.gz")}]
        support = [{key: f"{key}sTr/phantom_02.nii.gz" for key in ("image", "label")}]
        out = tmp_path / name
        run_config("inference", datalist=query, support=support, output_dir=str(out))
        return np.asarray(nib.load(out / case / f"{case}_seg.nii.gz").dataobj)

    alone = [start(f"alone_{case}", case) for case in CASES[:2]]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(start, ("one", "two"), CASES[:2]))
    for found, expected in zip(together, alone):
        np.testing.assert_array_equal(found, expected)
