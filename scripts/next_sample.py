"""Which scan to label next: ``python -m scripts.next_sample STUDIES``."""

from __future__ import annotations

from .command import command
from .on_demand import OnDemand

store = OnDemand("bundle.data.datastore")


def next_sample(studies: str) -> str:
    """List the scans of a MONAI Label studies folder without a finished label, the worst segmented first.

    That is the one whose labels give those of the supports back least, as the last batch of requests left it in the
    datastore: its mean reverse Dice and its weakest label follow the name. Scans that no batch has segmented come
        first.

    Args:
        studies: the studies folder.
    """
    datastore = store.Datastore(studies)
    found = {key: datastore.reverse_dice(key) for key in datastore.unlabelled()}
    means = {key: sum(each.values()) / len(each) if each else -1.0 for key, each in found.items()}
    lines = []
    for key in sorted(found, key=lambda key: (means[key], key)):
        weakest = min(found[key], key=found[key].__getitem__, default=None)
        told = "not segmented yet" if weakest is None else f"{means[key]:.2f}\t{weakest} {found[key][weakest]:.2f}"
        lines.append(f"{key}\t{told}")
    return "\n".join(lines)


def main() -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    command(next_sample, "scripts.next_sample")


if __name__ == "__main__":
    main()
