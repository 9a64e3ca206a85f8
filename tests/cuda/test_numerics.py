"""Number formats that a GPU computes in must not move organs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from bundle.data.support import SupportScan
from bundle.inferers import CellRegistration
from bundle.networks import ALPNet, TinyEncoder
from bundle.networks.blocks.prototypes import grid_positions, similarity, split_digits

from ..conftest import make_tiny
from ..inferers.build import make_inferer
from ..inferers.test_few_shot import noise, query_of, squares
from .tf32 import TensorFloat32, rounded

FORMATS = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16), "TensorFloat-32": TensorFloat32}


@pytest.fixture(params=list(FORMATS))
def number_format(request):
    """A context in which products are computed in another format."""
    return FORMATS[request.param]


def features(count, seed=0):
    """Features of slices that resemble their neighbors ``(count, 40, 16, 16)``."""
    coarse = torch.randn(count // 2 + 1, 40, 4, 4, generator=torch.Generator().manual_seed(seed))
    volume = F.interpolate(coarse.movedim(0, 1)[None], size=(count, 16, 16), mode="trilinear", align_corners=True)
    return volume[0].movedim(1, 0).contiguous()


def matching(images=3, batch=2):
    """A network and what it matches: slices that lie 20 cm deep on a scan."""
    network = ALPNet(
        TinyEncoder(16, stride=4), foreground_gate="matched", position_weight=100.0, depth_weight=0.3, testing_window=1
    ).eval()
    draw = torch.Generator().manual_seed(1)
    support = features(images).expand(batch, -1, -1, -1, -1)
    query = support[:, 1] + 0.3 * torch.randn(batch, 40, 16, 16, generator=draw)
    labels = torch.randint(0, 3, (batch, images, 16, 16), generator=draw)
    foreground = torch.stack([labels == value for value in (1, 2)], dim=1).flatten(1, 2).float()
    places = grid_positions(16, 16, query).T.reshape(1, 2, 16, 16).expand(batch, -1, -1, -1)
    places = places + 0.02 * torch.randn(batch, 2, 16, 16, generator=draw)
    places = torch.cat([places, torch.full_like(places[:, :1], 20.7)], dim=1)
    depths = (20 + 0.7 * torch.arange(images)).expand(batch, -1)
    return network, (query, support, foreground, (labels == 0).float(), places, depths)


@pytest.mark.parametrize("gradient", [False, True])
def test_scores_stay_in_other_number_formats(number_format, gradient):
    network, inputs = matching()
    with torch.set_grad_enabled(gradient):
        expected = network.match(*inputs)
        with number_format():
            found = network.match(*inputs)
    assert found.dtype == torch.float32
    assert expected.abs().max() > 5
    assert (found - expected).abs().max() < 0.1


def test_training_scores_stay_under_autocast():
    network = make_tiny(align=True).train()
    image, support = torch.randn(2, 1, 32, 32), torch.randn(2, 1, 1, 1, 32, 32)
    label = torch.zeros(2, 1, 1, 32, 32)
    label[..., 8:24, 8:24] = 1
    with torch.no_grad():
        expected = network(image, support, label)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network(image, support, label), expected)


def test_cells_stay_where_they_are_found_in_other_number_formats(number_format):
    register, scan = CellRegistration(), features(12)
    arguments = (scan[2:9] + 0.1, scan, torch.arange(2.0, 9.0) + 0.4, 40.0, 40.0)
    expected = register(*arguments)
    with number_format():
        found = register(*arguments)
    moved = (found - expected).abs().amax(dim=(0, 2, 3))
    assert moved[:2].max() < 1e-3  # of the image's side
    assert moved[2] < 0.05  # cm


def test_a_scan_is_segmented_alike_under_autocast():
    network, inferer = make_tiny(), make_inferer(registration=CellRegistration())
    inferer.set_support([SupportScan(noise(0), squares(), 7.0, "scan")])
    query = query_of(noise(0) + 0.3 * noise(1))
    expected = inferer(query, network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inferer(query, network), expected)


def test_similarities_are_cosine_less_squared_distance():
    draw = torch.Generator().manual_seed(0)
    query, vectors = torch.randn(2, 7, 3, 4, generator=draw), torch.randn(2, 5, 7, generator=draw)
    places, cells = 9 + torch.rand(1, 5, 3, generator=draw), 9 + torch.rand(2, 12, 3, generator=draw)
    cosine = torch.einsum("bpd,bdc->bpc", F.normalize(vectors, dim=2), F.normalize(query, dim=1).flatten(2))
    expected = 20 * cosine.double() - torch.cdist(places.double(), cells.double()).square()
    for context in (nullcontext(), TensorFloat32()):
        with context:
            torch.testing.assert_close(
                similarity(query, vectors, 20.0, places, cells).double(), expected, atol=2e-2, rtol=0
            )
    high, low = split_digits(cells)
    assert torch.equal(rounded(high), high)
    assert torch.equal(high + low, cells)


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [True, False])
def test_scores_of_a_gpu_are_those_of_the_cpu(tf32):
    network, inputs = matching()
    expected = network.match(*inputs)
    network, inputs = network.to("cuda"), [item.to("cuda") for item in inputs]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            found = network.match(*inputs)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert (found.cpu() - expected).abs().max() < (0.1 if tf32 else 1e-3)
