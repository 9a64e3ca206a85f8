from __future__ import annotations

import numpy as np
import pytest

from bundle.data import case_name, evaluation_split, fold_cases, get_protocol, query_chunks, support_slices

PUBLISHED = [(20, [0, 4, 8, 12, 16], "CHAOS"), (30, [0, 6, 12, 18, 24], "SABS"), (35, [0, 7, 14, 21, 28], "MS-CMRSeg")]


@pytest.mark.parametrize(("count", "starts"), [p[:2] for p in PUBLISHED], ids=[p[2] for p in PUBLISHED])
def test_published_folds(count, starts):
    ids = list(range(count))
    for fold, start in enumerate(starts):
        following = starts[fold + 1] if fold < 4 else count
        expected = ids[start : following + 1] if fold < 4 else [*ids[start:], 0]
        training, validation = fold_cases(ids, fold)
        assert validation == expected
        assert training == [i for i in ids if i not in expected]
        assert len(validation) == count // 5 + 1


def test_chaos_scans_of_fold_0():
    names = [f"chaos_{i:02d}" for i in (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)]
    training, validation = fold_cases(names, 0)
    assert validation == ["chaos_01", "chaos_02", "chaos_03", "chaos_05", "chaos_08"]
    assert len(training) == 15


@pytest.mark.parametrize(("fold", "count"), [(-1, 20), (5, 20), (0, 9), (0, 0)])
def test_fold_that_does_not_exist(fold, count):
    with pytest.raises(ValueError, match=rf"fold must be in 0..4 with at least 10 cases, got {fold} of {count}"):
        fold_cases(range(count), fold)


@pytest.mark.parametrize("count", range(3, 61))
def test_support_slices_in_the_official_float_arithmetic(count):
    slices = list(range(7, 7 + count))
    half_part = 1 / (3 * 2)
    part_interval = (1 - 1 / 3) / (3 - 1)
    expected = [slices[int((half_part + part_interval * k) * count)] for k in range(3)]
    assert support_slices(slices) == expected


def test_support_slices_by_hand():
    assert support_slices(list(range(6))) == [1, 3, 5]
    assert support_slices(list(range(20))) == [3, 10, 16]
    assert support_slices(list(range(6)), 1) == [3]
    assert support_slices([4], 3) == [4, 4, 4]


def test_support_slices_are_of_the_slices_that_show_the_organ():
    assert support_slices([2, 3, 9, 10, 11, 30]) == [3, 10, 30]


@pytest.mark.parametrize("extent", range(1, 41))
@pytest.mark.parametrize("num_chunks", [1, 3])
def test_chunks_of_a_query(extent, num_chunks):
    labelled = np.zeros(50, bool)
    labelled[[5, 5 + extent - 1]] = True  # a gap inside counts as extent
    zmin, zmax = 5, 5 + extent - 1
    expected = np.full(50, -1)
    for z in range(50):
        if zmin <= z <= zmax:
            step = (zmax - zmin) / num_chunks
            expected[z] = min(int((z - zmin) // step), num_chunks - 1) if step else 0
    np.testing.assert_array_equal(query_chunks(labelled, num_chunks), expected)


def test_chunks_of_an_organ_of_ten_slices_by_hand():
    np.testing.assert_array_equal(query_chunks(np.ones(10, bool)), [0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


def test_absent_organ_has_no_chunk():
    np.testing.assert_array_equal(query_chunks(np.zeros(6, bool)), [-1] * 6)


@pytest.mark.parametrize(
    ("name", "chunks", "index"), [("official", 3, -1), ("adnet_ep1", 3, 2), ("adnet_ep2", 1, 2), ("volume", 0, -1)]
)
def test_protocols_by_name(name, chunks, index):
    protocol = get_protocol(name)
    assert (protocol.num_chunks, protocol.support_index) == (chunks, index)


def test_unknown_protocol_names_the_known_ones():
    with pytest.raises(
        ValueError, match="no protocol is called 'paper'; there are official, adnet_ep1, adnet_ep2, volume"
    ):
        get_protocol("paper")


@pytest.fixture
def twenty(tmp_path):
    """Twenty labelled scans, and one without a label that takes no part."""
    for index in range(21):
        for kind in ("images", "labels"):
            (tmp_path / f"{kind}Tr").mkdir(exist_ok=True)
            if kind == "images" or index != 20:
                (tmp_path / f"{kind}Tr" / f"c{index:02d}.nii.gz").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("protocol", "fold", "index", "support", "queries"),
    [
        ("official", 0, None, 4, [0, 1, 2, 3]),
        ("official", 4, None, 0, [16, 17, 18, 19]),
        ("volume", 1, None, 8, [4, 5, 6, 7]),
        ("adnet_ep1", 0, None, 2, [0, 1, 3, 4]),
        ("adnet_ep2", 4, None, 18, [16, 17, 19, 0]),
        ("official", 0, 0, 0, [1, 2, 3, 4]),
    ],
)
def test_split_of_a_data_set(twenty, protocol, fold, index, support, queries):
    split = evaluation_split(twenty, protocol, fold, support_index=index)

    def numbers(entries):
        assert all(e["image"].replace("images", "labels") == e["label"] for e in entries)
        return [int(e["image"][-9:-7]) for e in entries]

    assert numbers(split["support"]) == [support]
    assert numbers(split["queries"]) == queries
    assert numbers(split["train"]) == [i for i in range(20) if i not in [support, *queries]]


def test_support_index_out_of_range(twenty):
    with pytest.raises(ValueError, match=r"support_index must be in 0..4, got 5"):
        evaluation_split(twenty, "official", 0, support_index=5)


def test_folds_count_the_cases(tmp_path):
    """case_2 precedes case_10, whatever the order in which a folder lists them."""
    for number in (10, 1, 2, 11, 9, 3):
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"case_{number}.nii.gz").touch()
    split = evaluation_split(tmp_path, "official", fold=0, num_folds=3)
    names = {part: [case_name(entry["image"]) for entry in entries] for part, entries in split.items()}
    assert names == {"train": ["case_9", "case_10", "case_11"], "support": ["case_3"], "queries": ["case_1", "case_2"]}


@pytest.mark.parametrize(
    ("name", "count", "starts"), [("chaos_{:02d}", 20, (0, 4, 8, 12, 16)), ("sabs_{}", 30, (0, 6, 12, 18, 24))]
)
def test_official_folds_start_where_the_protocol_says(tmp_path, name, count, starts):
    for number in range(count):
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name.format(number)}.nii.gz").touch()
    for fold, start in enumerate(starts):
        split = evaluation_split(tmp_path, "official", fold)
        end = (starts + (count,))[fold + 1]
        assert [case_name(e["image"]) for e in split["queries"]] == [name.format(n) for n in range(start, end)]
        assert case_name(split["support"][0]["image"]) == name.format(end % count)


def test_a_support_index_of_false_is_the_protocols_own(twenty):
    assert evaluation_split(twenty, "official", 0, support_index=False) == evaluation_split(twenty, "official", 0)
