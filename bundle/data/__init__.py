"""Data: lists of files, episodes for training, the support, the protocols."""

from .bank import SliceBank
from .datalist import (
    case_name,
    check_dataset,
    dataset_modality,
    held_out,
    label_names,
    label_values,
    list_images,
    make_datalist,
    select_cases,
    spread,
)
from .datastore import studies_folder
from .episodes import EpisodeDataset, EpisodeSampler, share_of_batch
from .fingerprint import check_entries, check_folder, read_fingerprint
from .preflight import check_run, check_training
from .prepare_episodes import PrepareEpisodes
from .protocol import (
    PROTOCOLS,
    Protocol,
    evaluation_split,
    fold_cases,
    get_protocol,
    query_chunks,
    support_slices,
    training_pseudo_supports,
)
from .read_ahead import ReadAheadLoader
from .reader import NiftiReader
from .support import SupportScan, choose_pseudo_supports, default_support, load_support, query_list, resolve_support
from .support_check import SupportCheck
from .writer import VolumeWriter

__all__ = [
    "PROTOCOLS",
    "EpisodeDataset",
    "EpisodeSampler",
    "PrepareEpisodes",
    "Protocol",
    "ReadAheadLoader",
    "NiftiReader",
    "SliceBank",
    "SupportCheck",
    "SupportScan",
    "VolumeWriter",
    "case_name",
    "check_dataset",
    "check_entries",
    "check_folder",
    "check_run",
    "check_training",
    "choose_pseudo_supports",
    "default_support",
    "evaluation_split",
    "fold_cases",
    "get_protocol",
    "held_out",
    "dataset_modality",
    "label_names",
    "label_values",
    "list_images",
    "load_support",
    "make_datalist",
    "query_chunks",
    "query_list",
    "read_fingerprint",
    "resolve_support",
    "select_cases",
    "share_of_batch",
    "spread",
    "studies_folder",
    "support_slices",
    "training_pseudo_supports",
]
