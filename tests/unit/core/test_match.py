"""MATCH: which broadcasts, signals and notifications a connection gets."""

from __future__ import annotations

from errno import EDOM, EINVAL, EMFILE, EMSGSIZE, ENOENT, EOPNOTSUPP
from struct import pack
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import Client, Pair, World
from tests.support.core_scenes import (
    bloom,
    cookies,
    drain,
    events,
    expire,
    id_change,
    id_rule,
    listening,
    mask,
    name_change,
    name_rule,
    request,
    signal,
)

ADD, REMOVE, CHANGE = c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE
ANY = c.MATCH_ID_ANY


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    """A sender and a receiver."""
    return world.connect(), world.connect()


def gets(sender: Client, receiver: Client, **more: Any) -> bool:
    """Whether the receiver gets a signal of the sender."""
    assert signal(sender, **more) == 0
    return len([message for message in drain(receiver) if message.src_id == sender.id]) == 1


def test_match_1_all_rules_of_an_entry_and_any_of_the_entries(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1, mask(1) + id_rule(sender.id))
    assert gets(sender, receiver, bits=1)
    assert not gets(sender, receiver, bits=2)
    assert not gets(sender.world.connect(), receiver, bits=1)
    receiver.add_match(2, mask(2))
    assert gets(sender, receiver, bits=2)
    assert gets(sender, receiver, bits=3)


def test_match_2_an_entry_without_rules_accepts_everything(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1)
    assert gets(sender, receiver)
    sender.acquire(b"a.b")
    sender.close()
    assert [event[0] for event in events(receiver)] == [ADD, REMOVE, c.ITEM_ID_REMOVE]


@pytest.mark.parametrize("rule", [mask(0), id_rule(ANY), name_rule(b"a.b")])
def test_match_3_rules_for_messages_and_for_notifications_together_match_nothing(pair: Pair, rule: bytes) -> None:
    sender, receiver = pair
    sender.acquire(b"a.b")
    receiver.add_match(1, rule + id_change(c.ITEM_ID_ADD))
    receiver.add_match(2, name_change(REMOVE) + id_change(c.ITEM_ID_ADD))
    assert not gets(sender, receiver)
    sender.world.connect()
    sender.release_name(b"a.b")
    assert events(receiver) == []


@pytest.mark.parametrize("rule", [mask(0), id_rule(ANY), name_rule(b"a.b")])
def test_match_3_rules_for_messages_get_no_notifications(pair: Pair, rule: bytes) -> None:
    sender, receiver = pair
    sender.acquire(b"a.b")
    receiver.add_match(1, rule)
    assert gets(sender, receiver)
    sender.close()
    assert events(receiver) == []


def test_match_4_other_items_are_einval(pair: Pair) -> None:
    _, receiver = pair
    for kind in (0, 99, c.ITEM_DST_NAME, c.ITEM_BLOOM_FILTER, c.ITEM_REPLY_TIMEOUT, c.ITEM_REPLY_DEAD, c.ITEM_CREDS):
        payload = {c.ITEM_DST_NAME: b"a.b\0", c.ITEM_CREDS: bytes(32)}.get(kind, bytes(8))
        if kind in (c.ITEM_REPLY_TIMEOUT, c.ITEM_REPLY_DEAD):
            payload = b""
        assert receiver.add_match(1, make_item(kind, payload)) == -EINVAL
    assert receiver.remove_match(1) == -ENOENT


def test_match_5_masks_have_n_times_the_size_of_the_bus(pair: Pair) -> None:
    _, receiver = pair
    for size in (0, 8, 63, 65, 100):
        assert receiver.add_match(1, make_item(c.ITEM_BLOOM_MASK, bytes(size))) == -EDOM
    for n in (1, 2, 16):
        assert receiver.add_match(1, make_item(c.ITEM_BLOOM_MASK, bytes(64 * n))) == 0


def test_match_6_every_bit_of_the_mask_must_be_in_the_filter(pair: Pair) -> None:
    sender, receiver = pair
    everything = (1 << 512) - 1
    receiver.add_match(1, mask(0b1010 << 500))
    for bits, result in ((0b1010, True), (0b1110, True), (0b1000, False), (0, False)):
        assert gets(sender, receiver, bits=bits << 500) is result
    receiver.add_match(1, mask(everything), c.MATCH_REPLACE)
    assert gets(sender, receiver, bits=everything)
    assert not gets(sender, receiver, bits=everything - 1)
    receiver.add_match(1, mask(0), c.MATCH_REPLACE)
    assert gets(sender, receiver, bits=0)


def test_match_6_the_filters_generation_chooses_the_mask_the_last_for_all_beyond(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1, mask(1, 2, 4))
    for generation, wanted in ((0, 1), (1, 2), (2, 4), (3, 4), (c.U64_MAX, 4)):
        for bits in (1, 2, 4):
            items = bloom(bits, generation)
            assert sender.send(dst=ANY, flags=c.MSG_SIGNAL, items=items) == 0
            assert (len(drain(receiver)) == 1) is (bits == wanted)


def test_match_7_an_id_rule_is_the_senders_id_or_any(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1, id_rule(sender.id))
    assert gets(sender, receiver)
    assert not gets(sender.world.connect(), receiver)
    receiver.add_match(1, id_rule(0), c.MATCH_REPLACE)
    assert not gets(sender, receiver)
    receiver.add_match(1, id_rule(ANY), c.MATCH_REPLACE)
    assert gets(sender, receiver)


def test_match_8_a_name_rule_is_a_name_that_the_sender_owns_when_it_sends(pair: Pair) -> None:
    sender, receiver = pair
    for name in (b"a", b"a.*", b"a..b"):
        assert receiver.add_match(1, name_rule(name)) == -EINVAL
    assert receiver.add_match(1, name_rule(b"a.b")) == 0
    assert not gets(sender, receiver)
    sender.acquire(b"a.b")
    assert gets(sender, receiver)
    sender.release_name(b"a.b")
    receiver.acquire(b"a.b")
    sender.acquire(b"a.b", c.NAME_QUEUE)
    assert not gets(sender, receiver)


def test_match_9_id_changes_match_by_id(world: World) -> None:
    first = world.connect()
    for cookie, kind in ((1, c.ITEM_ID_ADD), (2, c.ITEM_ID_REMOVE)):
        first.add_match(cookie, make_item(kind, pack("<QQ", first.id + 2, 99)))  # flags are ignored
        first.add_match(cookie, id_change(kind, 0))
    second, third = world.connect(), world.connect()
    second.close()
    third.close()
    assert events(first) == [(c.ITEM_ID_ADD, third.id, 1), (c.ITEM_ID_REMOVE, third.id, 1)]
    first.add_match(3, id_change(c.ITEM_ID_REMOVE, ANY))
    world.connect().close()
    assert [event[0] for event in events(first)] == [c.ITEM_ID_REMOVE]


def test_match_10_name_changes_match_by_both_ids_and_the_name(world: World) -> None:
    watcher, old, new = world.connect(), world.connect(), world.connect()

    def seen(*rules: bytes) -> list[int]:
        """Kinds of notifications of one round of changes that entries with these rules bring."""
        for rule in rules:
            watcher.add_match(1, rule)
        old.acquire(b"a.b", c.NAME_ALLOW_REPLACEMENT)
        new.acquire(b"a.b", c.NAME_REPLACE_EXISTING)
        new.release_name(b"a.b")
        watcher.remove_match(1)
        return [event[0] for event in events(watcher)]

    kinds = (ADD, CHANGE, REMOVE)
    assert seen(*(name_change(kind) for kind in kinds)) == list(kinds)
    for kind in kinds:
        assert seen(name_change(kind)) == [kind]
        assert seen(name_change(kind, name=b"a.b")) == [kind]
        assert seen(name_change(kind, name=b"a.c")) == []
        assert seen(name_change(kind, name=b"no name at all")) == []
    assert seen(name_change(ADD, old=0, new=old.id)) == [ADD]
    assert seen(name_change(ADD, old=old.id)) == []
    assert seen(name_change(CHANGE, old=old.id, new=new.id)) == [CHANGE]
    assert seen(name_change(CHANGE, old=new.id)) == []
    assert seen(name_change(CHANGE, new=old.id)) == []
    assert seen(name_change(REMOVE, old=new.id, new=0)) == [REMOVE]
    assert seen(name_change(REMOVE, new=new.id)) == []
    flags = make_item(ADD, pack("<QQQQ", ANY, 77, ANY, 88))
    assert seen(flags) == [ADD]


def test_match_11_equal_cookies_are_several_entries_and_replace_removes_them(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(7, mask(1))
    receiver.add_match(7, mask(2))
    receiver.add_match(8, mask(4))
    assert gets(sender, receiver, bits=1) and gets(sender, receiver, bits=2)
    assert receiver.add_match(7, mask(8), c.MATCH_REPLACE) == 0
    assert not gets(sender, receiver, bits=3)
    assert gets(sender, receiver, bits=8) and gets(sender, receiver, bits=4)
    assert receiver.add_match(9, mask(16), c.MATCH_REPLACE) == 0
    assert gets(sender, receiver, bits=16)


def test_match_12_lim_9_the_257th_entry_is_emfile_after_the_replacement(pair: Pair) -> None:
    sender, receiver = pair
    for cookie in range(256):
        assert receiver.add_match(cookie, mask(1)) == 0
    assert receiver.add_match(1000) == -EMFILE
    assert receiver.add_match(1000, flags=c.MATCH_REPLACE) == -EMFILE
    assert receiver.add_match(3, mask(2), c.MATCH_REPLACE) == 0
    assert gets(sender, receiver, bits=2)
    assert sender.add_match(1) == 0


def test_match_13_remove_takes_all_entries_with_the_cookie(pair: Pair) -> None:
    sender, receiver = pair
    for _ in range(3):
        receiver.add_match(5, mask(1))
    receiver.add_match(6, mask(2))
    assert receiver.remove_match(7) == -ENOENT
    assert receiver.remove_match(5) == 0
    assert receiver.remove_match(5) == -ENOENT
    assert not gets(sender, receiver, bits=1)
    assert gets(sender, receiver, bits=2)
    fixed = pack("<QQQQQ", 0, 6, 0, 0, 0)
    assert receiver.command(c.CMD_MATCH_REMOVE, fixed, make_item(c.ITEM_ID, bytes(8))) == -EMSGSIZE
    assert receiver.command(c.CMD_MATCH_REMOVE, fixed[:32]) == -EINVAL


def test_match_14_errors_come_in_order_and_leave_the_entries(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1, mask(1))
    bad_mask, bad_name = make_item(c.ITEM_BLOOM_MASK, bytes(8)), name_rule(b"a")
    cut_off = make_item(c.ITEM_ID, bytes(4))
    replace = c.MATCH_REPLACE
    assert receiver.add_match(1, bad_mask, 2 | replace) == -EINVAL
    assert receiver.add_match(1, bad_mask + cut_off, replace) == -EINVAL
    assert receiver.add_match(1, bad_mask + bad_name, replace) == -EDOM
    assert receiver.add_match(1, bad_name + bad_mask, replace) == -EINVAL
    assert gets(sender, receiver, bits=1)
    for cookie in range(255):
        receiver.add_match(1 if cookie < 1 else 2, mask(2))
    assert receiver.add_match(3, bad_mask) == -EDOM
    assert receiver.add_match(3, mask(2)) == -EMFILE
    assert gets(sender, receiver, bits=1)


def test_match_15_only_ordinary_connections_have_matches(world: World) -> None:
    name = make_item(c.ITEM_NAME, b"a.b\0")
    for flags, items in ((c.HELLO_MONITOR, b""), (c.HELLO_ACTIVATOR, name), (c.HELLO_POLICY_HOLDER, name)):
        special = world.connect(flags=flags, items=items, free=False)
        assert special.add_match(1) == -EOPNOTSUPP
        assert special.remove_match(1) == -EOPNOTSUPP
        special.close()


def test_match_15_unicasts_and_reply_notifications_are_never_filtered(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1, mask(1))
    assert sender.send(dst=receiver.id, cookie=5) == 0
    assert cookies(receiver) == [5]
    request(receiver, sender.id, 6, timeout=1)
    expire(sender.world, 2)
    assert events(receiver) == [(c.ITEM_REPLY_TIMEOUT, 6)]


def test_match_16_send_41_unicast_signals_are_matched_like_broadcasts(pair: Pair) -> None:
    sender, receiver = pair
    receiver.add_match(1, mask(6))
    assert signal(sender, receiver.id, bits=7) == 0
    assert signal(sender, receiver.id, bits=5) == -1
    assert cookies(receiver) == [1]


def test_a_refused_entry_costs_nothing_and_all_charges_come_back(pair: Pair) -> None:
    """MATCH-12, MATCH-13: entries are charged to their user's memory."""
    _, receiver = pair
    user = receiver.connection.user
    before = user.account.used
    for cookie in range(300):
        receiver.add_match(cookie, mask(1) + id_rule(1))
    assert user.account.used > before
    for cookie in range(256):
        assert receiver.remove_match(cookie) == 0
    assert user.account.used == before
    assert not listening(receiver.world)
