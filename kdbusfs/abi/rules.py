"""What the core does otherwise for one ABI than for another, each difference with a name of its own.

A command is judged by the rules of who gives it.  What is delivered, how, and against which limits, is decided by the
rules of who gets it.
"""

from __future__ import annotations

from errno import EFAULT, ENOBUFS, ENOENT, ENOTTY, EPERM, ESRCH


class Rules:
    """The rules of v3 unless a family sets something else.

    Errno:
    wrong_state: of a command that a file does not take in its state; bad_pool_size: of HELLO; no_tracker: of a reply
    that nobody expects; no_match: of MATCH_REMOVE; pool_full: where an allocation finds no room; not_an_owner: of
    NAME_RELEASE by who neither owns nor waits.

    Files:
    checks_byebye: BYEBYE has a struct, and is refused on a dead connection like everything else; unknown_first: an
    unknown request is ENOTTY before anything is looked at; control_polls_ready: `control` that owns a bus is ready;
    poll_tells_lost: POLLIN also for a lost message; endpoint_ends: an owner whose endpoint is gone gets ESHUTDOWN.

    HELLO and UPDATE:
    hello_items_first: its items are looked at before its rights; agrees_to_all: counts as sending all that its bus
    requires; activators_update: an activator may change its attach flags; opener_counts: credentials and user namespace
    of who opened the file stand for its connection, and all that it is shown is translated for that namespace and the
    others of its HELLO, whoever reads it.

    Sending:
    examines_late: header, items and files of a message are checked after one another, and after the CANCEL_FD;
    hears_itself: gets its own broadcasts; drops_signals: a signal that its receiver does not want is no error;
    resumes_any: a call is taken up again by its cookie alone; refuses_late: a call whose deadline is over is not sent.

    Receiving:
    one_slice: a message is laid out, with its metadata, when it is sent, in one slice, and charged to its sender's
    share of the pool (`core/whole_delivery.py`); basic_metadata: kinds that a sender cannot withhold, and others as
    far as the receiver's /proc shows them; foreign_caps: capabilities of another user namespace are shown as far as
    they count in the receiver's, instead of not at all; lost_with_message: what was lost is told of together with the
    next message; empty_at_end: "nothing" is where the pool ends, and may be freed; ids_everywhere: ID_ADD and
    ID_REMOVE also on custom endpoints.

    Names:
    acquires_again: an owner or waiter may ask again, with other flags; name_check_late: the number of names is judged
    after the right to own; releases_any: NAME_RELEASE does not look at the syntax; queues_replaced_first: who is
    replaced is the next to own; lists_entries: LIST shows entries, and no monitors; checks_both: CONN_INFO with an id
    and a name wants both to be of the same connection.
    """

    __slots__ = (
        "acquires_again",
        "activators_update",
        "agrees_to_all",
        "bad_pool_size",
        "basic_metadata",
        "checks_both",
        "checks_byebye",
        "control_polls_ready",
        "drops_signals",
        "empty_at_end",
        "endpoint_ends",
        "examines_late",
        "foreign_caps",
        "hears_itself",
        "hello_items_first",
        "ids_everywhere",
        "lists_entries",
        "lost_with_message",
        "name_check_late",
        "no_match",
        "no_tracker",
        "not_an_owner",
        "one_slice",
        "opener_counts",
        "poll_tells_lost",
        "pool_full",
        "queues_replaced_first",
        "refuses_late",
        "releases_any",
        "resumes_any",
        "unknown_first",
        "wrong_state",
    )

    def __init__(self) -> None:
        self.wrong_state: int = ENOTTY
        self.bad_pool_size: int = EFAULT
        self.no_tracker: int = EPERM
        self.no_match: int = ENOENT
        self.pool_full: int = ENOBUFS
        self.not_an_owner: int = ESRCH
        self.basic_metadata = 0
        self.control_polls_ready = True
        self.acquires_again = False
        self.activators_update = False
        self.agrees_to_all = False
        self.checks_both = False
        self.checks_byebye = False
        self.drops_signals = False
        self.empty_at_end = False
        self.endpoint_ends = False
        self.examines_late = False
        self.foreign_caps = False
        self.hears_itself = False
        self.hello_items_first = False
        self.ids_everywhere = False
        self.lists_entries = False
        self.lost_with_message = False
        self.name_check_late = False
        self.one_slice = False
        self.opener_counts = False
        self.poll_tells_lost = False
        self.queues_replaced_first = False
        self.refuses_late = False
        self.releases_any = False
        self.resumes_any = False
        self.unknown_first = False
