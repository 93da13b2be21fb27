"""A doubly linked list whose elements hold the links: removal of any element is O(1)."""

from __future__ import annotations


class Linked:
    """An element; `before` and `after` are its neighbours in the `LinkedList` that it is in."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: Linked | None = None
        self.after: Linked | None = None


class LinkedList:
    """first, last: None in an empty list."""

    __slots__ = ("first", "last")

    def __init__(self) -> None:
        self.first: Linked | None = None
        self.last: Linked | None = None

    def append(self, element: Linked) -> None:
        """Add `element`, which is in no list, behind the last one."""
        last = self.last
        element.before = last
        if last is None:
            self.first = element
        else:
            last.after = element
        self.last = element

    def insert_behind(self, before: Linked | None, element: Linked) -> None:
        """Add `element`, which is in no list, behind `before`; None: as the first one."""
        after = self.first if before is None else before.after
        element.before = before
        element.after = after
        if before is None:
            self.first = element
        else:
            before.after = element
        if after is None:
            self.last = element
        else:
            after.before = element

    def remove(self, element: Linked) -> None:
        """Take out `element`, which is in this list."""
        before, after = element.before, element.after
        element.before = element.after = None
        if before is None:
            self.first = after
        else:
            before.after = after
        if after is None:
            self.last = before
        else:
            after.before = before

    def join(self, other: LinkedList) -> None:
        """Move all elements of `other` behind the last one."""
        first = other.first
        if first is None:
            return
        last = self.last
        first.before = last
        if last is None:
            self.first = first
        else:
            last.after = first
        self.last = other.last
        other.first = other.last = None
