"""A converted official checkpoint gives the official logits: encoder, prototypes and gate together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.networks import ALPNet, ResNetEncoder, load_weights
from bundle.networks.weights import convert_official, save_state_dict

from . import literal_alp
from .literal_encoders import resnet_features
from .test_weights import official_state_dict


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A synthetic checkpoint in the official layout, and the network that its conversion makes."""
    source = official_state_dict(101, embedding_channels=256)
    path = tmp_path_factory.mktemp("official") / "model.pt"
    save_state_dict(convert_official(source).state_dict, path)
    network = ALPNet(ResNetEncoder(101, 8, 256, freeze_norm=True), align=True)
    return source, load_weights(network, path)


def episode(radius):
    generator = torch.Generator().manual_seed(4)
    axis = torch.arange(96) - 44.0
    mask = ((axis[:, None] ** 2 + axis[None] ** 2).sqrt() < radius).float()
    query, support = torch.randn(2, 1, 96, 96, generator=generator)
    return query, (support + 2 * mask), mask[None]


@pytest.mark.parametrize("training", [False, True], ids=["testing window", "training window and alignment"])
@pytest.mark.parametrize("radius", [36.0, 14.0], ids=["gate open", "gate closed"])
def test_logits_equal_the_official_computation(converted, training, radius):
    source, network = converted
    trunk = {key[len("encoder.backbone.") :]: value for key, value in source.items() if ".backbone." in key}

    def encoder(images):
        features = resnet_features(trunk, images.expand(-1, 3, -1, -1), (False, True, True))
        return F.conv2d(features, source["encoder.localconv.weight"])

    query, support, masks = episode(radius)
    network.train(training)
    with torch.no_grad():
        found = network(query[None], support[None, None, None], masks[None, None])
        expected = literal_alp.episode(encoder, query, support[None], masks, 4 if training else 2, align=training)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)
