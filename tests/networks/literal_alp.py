"""The published equations, taken literally: one episode, one class, one cell at a time.

Written from the paper and from a reading of what the official code computes; slow on purpose. The tests hold the
batched network against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

TEMPERATURE = 20.0


def unit(vector):
    return vector / max(float(vector.norm()), 1e-4)


def windows(features, mask, side, threshold):
    """Averages of the windows whose mask average exceeds the threshold, as a list of vectors."""
    found = []
    for row in range(0, features.shape[1] - side + 1, side):
        for column in range(0, features.shape[2] - side + 1, side):
            area = (slice(row, row + side), slice(column, column + side))
            if float(mask[area].mean()) > threshold:
                found.append(features[(slice(None), *area)].mean(dim=(1, 2)))
    return found


def masked_average(features, mask):
    return (features * mask).sum(dim=(1, 2)) / (mask.sum() + 1e-5)


def score(query, prototypes):
    """Softmax-weighted sum of 20 x cosine, cell by cell."""
    out = torch.zeros(query.shape[1:])
    for row in range(query.shape[1]):
        for column in range(query.shape[2]):
            cell = unit(query[:, row, column])
            similar = torch.stack([TEMPERATURE * torch.dot(cell, unit(p)) for p in prototypes])
            out[row, column] = (torch.softmax(similar, 0) * similar).sum()
    return out


def gate_open(masks, side, threshold):
    best = 0.0
    for mask in masks:
        for row in range(0, mask.shape[0] - side + 1, side):
            for column in range(0, mask.shape[1] - side + 1, side):
                best = max(best, float(mask[row : row + side, column : column + side].mean()))
    return best >= threshold


def segment(query, supports, foregrounds, backgrounds, window, gate_window=4, threshold=0.95):
    """Scores (2, h, w) of one query from the features and masks (on the grid) of its support images."""
    local = [p for f, m in zip(supports, backgrounds) for p in windows(f, m, window, threshold)]
    if not local:  # the official code stops here; ours falls back to the class-level prototype
        annotated = [masked_average(f, m) for f, m in zip(supports, backgrounds) if m.sum() > 0]
        local = [torch.stack(annotated or [torch.zeros(query.shape[0])]).mean(0)]
    levels = [masked_average(f, m) for f, m in zip(supports, foregrounds)]
    if gate_open(foregrounds, gate_window, threshold):
        prototypes = [p for f, m in zip(supports, foregrounds) for p in windows(f, m, window, threshold)] + levels
    else:
        prototypes = [torch.stack(levels).mean(0)]
    return torch.stack([score(query, local), score(query, prototypes)])


def grid(mask, size):
    return F.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def episode(encoder, query_image, support_images, support_masks, window, align=False):
    """Logits (2, H, W) of one one-way episode; with `align`, (2 + 2 * shot, H, W)."""
    size = query_image.shape[-2:]
    features = encoder(torch.stack([query_image, *support_images]))
    query, supports = features[0], list(features[1:])
    hw = query.shape[-2:]
    foregrounds = [grid(m, hw) for m in support_masks]
    backgrounds = [grid(1 - m, hw) for m in support_masks]
    maps = [segment(query, supports, foregrounds, backgrounds, window)]
    if align:
        winner = maps[0].argmax(dim=0)
        for support in supports:
            maps.append(segment(support, [query], [(winner == 1).float()], [(winner == 0).float()], window))
    return F.interpolate(torch.cat(maps)[None], size=size, mode="bilinear", align_corners=False)[0]
