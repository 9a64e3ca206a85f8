"""Write a generated abdominal data set: ``python -m scripts.phantom --dst DIR``."""

from __future__ import annotations

from typing import Literal

from .command import command
from .on_demand import OnDemand

generated = OnDemand("bundle.data.phantom")


def phantom(
    dst: str, num_subjects: int = 6, modality: Literal["mr", "ct"] = "mr", seed: int = 0, num_test: int = 0
) -> None:
    """Write a generated multi-subject abdominal data set (no download).

    Args:
        dst: folder to write to.
        num_subjects: labeled scans in imagesTr and labelsTr.
        modality: mr or ct.
        seed: number of the family of patients; the same seed gives the same scans.
        num_test: further scans in imagesTs and labelsTs.
    """
    root = generated.write_phantom(dst, num_subjects, seed, modality, num_test)
    print(f"{num_subjects} + {num_test} {modality} scans in {root}")


if __name__ == "__main__":
    command(phantom, "scripts.phantom")
