"""Every behaviour has a test or a deviation, and the page that says so is new."""

from __future__ import annotations

import pytest

from tests.support import conformance
from tests.support.behaviours import BUS1_IDS, IDS


@pytest.fixture(scope="module")
def account() -> conformance.Account:
    return conformance.take_account()


def test_every_behaviour_has_a_test_or_a_deviation(account: conformance.Account) -> None:
    assert account.missing == []


def test_no_test_and_no_deviation_names_a_behaviour_that_does_not_exist(account: conformance.Account) -> None:
    assert account.unknown == []


def test_the_page_is_as_new_as_the_tests(account: conformance.Account) -> None:
    fresh = conformance.document(account) == conformance.DOCUMENT.read_text()
    assert fresh, "docs/conformance.md is stale: make conformance"
    fresh = conformance.bus1_document(account) == conformance.BUS1_DOCUMENT.read_text()
    assert fresh, "docs/conformance-bus1.md is stale: make conformance"


def test_there_are_446_behaviours_of_v3_and_128_of_the_last_kdbus_and_102_of_bus1() -> None:
    assert len(IDS) == len(set(IDS)) == 446 + 128
    assert len(BUS1_IDS) == len(set(BUS1_IDS)) == 102


def test_every_behaviour_of_bus1_has_a_test_or_a_deviation(account: conformance.Account) -> None:
    assert account.missing_of(BUS1_IDS) == []


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("GEN-5, GEN-7: both", ["GEN-5", "GEN-7"]),
        ("REP-14 to REP-16", ["REP-14", "REP-15", "REP-16"]),
        ("NAME-6 to 8, QUO-1", ["NAME-6", "NAME-7", "NAME-8", "QUO-1"]),
        ("POL rows, UTF-8, SEND-999", ["SEND-999"]),
        ("from FS-1 to GEN-2", ["FS-1", "GEN-2"]),
        ("B1-SEND-1, SEND-2, B1-ORD-1 to B1-ORD-3", ["B1-SEND-1", "SEND-2", "B1-ORD-1", "B1-ORD-2", "B1-ORD-3"]),
    ],
)
def test_ids_in_prose(text: str, ids: list[str]) -> None:
    assert list(conformance.mentioned(text)) == ids


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("test_send_17_no_descriptors", ["SEND-17"]),
        ("test_match_12_lim_9_the_257th", ["MATCH-12", "LIM-9"]),
        ("test_rep_14_15_both", ["REP-14", "REP-15"]),
        ("test_b1_send_1_2_b1_ord_3_all", ["B1-SEND-1", "B1-SEND-2", "B1-ORD-3"]),
        ("test_of_the_root", []),
        ("test_send_3_sizes_64_to_8192", ["SEND-3"]),
        ("test_note_of_bus_7", []),
    ],
)
def test_ids_in_names(name: str, ids: list[str]) -> None:
    assert list(conformance.named(name)) == ids
