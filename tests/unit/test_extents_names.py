"""Names kept together, and finding one of them."""

from __future__ import annotations

import pickle

import pytest

from splitmirror.extents import names as module
from splitmirror.extents.names import NameIndex, Names

SOME = [b"data", b"data/\xff\n", b"", b"data/a b", b"data/" + b"x" * 300]


def named(names: list[bytes]) -> Names:
    made = Names()
    for name in names:
        made.append(name)
    return made


def test_names_are_given_back_by_place_in_order_and_in_stretches() -> None:
    names = named(SOME)

    assert list(names) == SOME
    assert [names[at] for at in range(len(names))] == SOME
    assert names[-1] == SOME[-1]
    assert names[1:4] == SOME[1:4]
    assert names == SOME
    assert names != SOME[:-1]
    with pytest.raises(IndexError):
        names[len(SOME)]
    with pytest.raises(IndexError):
        names[-len(SOME) - 1]


def test_no_names_are_an_empty_sequence() -> None:
    assert list(Names()) == []
    assert len(Names()) == 0


def test_iterating_goes_on_beyond_what_is_taken_apart_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PIECE", 3)
    many = [b"%d" % at for at in range(20)]

    assert list(named(many)) == many


def test_packed_names_are_names_again() -> None:
    names = named(SOME)

    assert Names(bytearray(names.packed)) == names
    assert pickle.loads(pickle.dumps(names)) == names


def test_packed_names_that_are_cut_off_are_refused() -> None:
    with pytest.raises(ValueError, match="subsection"):
        Names(bytearray(b"whole\0cut"))


def test_a_stretch_of_other_names_is_appended() -> None:
    names = named([b"first"])

    names.extend_from(named(SOME), 1, 4)
    names.append(b"last")

    assert names == [b"first", *SOME[1:4], b"last"]


def test_a_name_is_found_and_another_is_not() -> None:
    many = named([b"%d" % at for at in range(1000)])
    index = NameIndex(many)

    assert all(index.find(name) == at for at, name in enumerate(many))
    assert index.find(b"1000") is None
    assert NameIndex(Names()).find(b"") is None


def test_names_whose_hashes_begin_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hash", lambda name: -7, raising=False)
    names = named(SOME)
    index = NameIndex(names)

    assert [index.find(name) for name in SOME] == list(range(len(SOME)))
    assert index.find(b"no") is None
    assert not index.repeated()
    assert NameIndex(named([*SOME, SOME[1]])).repeated()


def test_a_name_that_stands_twice_is_noticed() -> None:
    assert NameIndex(named([b"a", b"b", b"a"])).repeated()
    assert not NameIndex(named([b"a", b"b"])).repeated()
