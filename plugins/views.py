"""views -- the pictures that children have of what they share: `ctx.view(space, apply)` is one of these."""
from __future__ import annotations

from collections.abc import Callable
from math import inf

import midatagram as mi


class View:
    """A child's own picture of a space of the store; see Context.view()."""

    def __init__(self, store: mi.Store, space: str, apply: Callable[[dict, str, str | None], None]):
        self.store, self.space, self.apply = store, space, apply
        self.version, self.since = -1, 0
        self.picture: dict = {}
        self.ends_s: dict[str, float] = {}  # key -> when it expires
        self.next_s = inf  # no key does before this moment

    def now(self) -> dict:
        """The picture, after what changed is taken in; StoreError."""
        version = self.store.version(self.space)
        if version < 0 or version != self.version:
            self.catch_up()
        if self.ends_s and (now_s := self.store.now_s()) >= self.next_s:
            for key in [key for key, ends_s in self.ends_s.items() if ends_s <= now_s]:
                del self.ends_s[key]
                self.apply(self.picture, key, None)
            self.next_s = min(self.ends_s.values(), default=inf)
        return self.picture

    def catch_up(self) -> None:
        """Take in what changed; StoreError."""
        version, void, newer, changes = self.changes()
        self.version, self.since = -1, 0  # all anew if apply() raises
        if void:
            self.picture, self.ends_s, self.next_s = {}, {}, inf
        for key, value, expires_s in changes:
            if value is not None and expires_s is not None:
                self.ends_s[key] = expires_s
                self.next_s = min(self.next_s, expires_s)
            else:
                self.ends_s.pop(key, None)
            self.apply(self.picture, key, value)
        self.since, self.version = newer, version

    def changes(self) -> tuple:
        """The version of now, and what changed since that of last time, as Store.changes() has it; StoreError."""
        while True:
            version, since = self.store.version(self.space), self.since
            if self.store.mine[:3] == (self.space, self.version, version):
                return version, False, version, self.store.mine[3:]
            changes = self.store.changes(self.space, since)
            if since == self.since:  # no other greenlet was here meanwhile
                return version, *changes
