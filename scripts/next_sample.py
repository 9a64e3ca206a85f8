"""Which scan to label next: ``python -m scripts.next_sample STUDIES``."""

from __future__ import annotations

import json
import sys

import fire

from bundle.data.datastore import Datastore


def next_sample(studies: str) -> str:
    """List the scans of a MONAI Label studies folder without a finished label, the worst fit first.

    The fit is what the answers to the last batch or single requests said; scans without one come first.

    Args:
        studies: the studies folder.
    """
    datastore = Datastore(studies)
    fits = {key: datastore.support_fit(key) for key in datastore.unlabelled()}
    order = sorted(fits, key=lambda key: (fits[key] is not None, fits[key] or 0.0, key))
    return "\n".join(f"{key}\t{'not segmented yet' if fits[key] is None else fits[key]}" for key in order)


def main() -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    try:
        fire.Fire(next_sample, name="scripts.next_sample")
    except (ValueError, OSError, json.JSONDecodeError) as error:
        sys.exit(f"next_sample: {error}")


if __name__ == "__main__":
    main()
