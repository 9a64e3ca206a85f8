"""Inferers of few stages: what is not asked for is off."""

from __future__ import annotations

from bundle.inferers import (
    FewShotInferer,
    KnownExtents,
    Quality,
    ScanFusion,
    SliceMatching,
    SliceRegistration,
    SupportEncoder,
)

STAGES = {  # arguments of each stage, with what they are where a test does not say
    "support_encoder": (
        SupportEncoder,
        {
            "support": (),
            "preprocessing": None,
            "labels": None,
            "dataset_dir": None,
            "extension": 0.0,
            "region_of_interest": None,
            "num_supports": None,
            "completion": None,
            "cache_size": 8,
            "slice_batch_size": 8,
        },
    ),
    "registration": (
        SliceRegistration,
        {"num_slices": 1, "descriptor_cells": 4, "alignment": {}, "trial_slices": 12, "flip_penalty": 0.0},
    ),
    "matching": (SliceMatching, {"slice_batch_size": 8}),
    "fusion": (ScanFusion, {"similarity_temperature": 0.1, "smoothing_mm": 0.0, "smoothing_share": 0.03}),
    "quality": (
        Quality,
        {"min_reverse_dice": 0.0, "reverse_dice_discount": 0.0, "truncated_structures": None, "keep_similarity": False},
    ),
    "known_extents": (KnownExtents, {"atlas_fallback": None}),
}
PARTS = (
    "in_plane_orientation",
    "mirror_check",
    "pseudo_supports",
    "refinement",
    "upsampling",
    "shape_interpolation",
    "memory_check",
)


def make_inferer(support=(), preprocessing=None, *, registration=None, **options):
    """An inferer of plain stages but for the given arguments, which are told apart by their names.

    ``registration`` is that of the cells.
    """
    options |= {"support": support, "preprocessing": preprocessing}
    stages = {}
    for name, (kind, defaults) in STAGES.items():
        own = {key: options.get(key, value) for key, value in defaults.items()}
        stages[name] = kind(**own, **({"cells": registration} if name == "registration" else {}))
    known = {key for _, defaults in STAGES.values() for key in defaults} | set(PARTS)
    assert set(options) <= known, set(options) - known
    return FewShotInferer(**stages, **{name: options.get(name) for name in PARTS})
