"""access -- who may use single commands: the rules of allow_command."""
from __future__ import annotations

import functools
import grp
import logging
import os
import pwd
import re
import socket
import struct
from typing import Any, NamedTuple

import midatagram as mi

log = logging.getLogger("midatagram")


class Rule(NamedTuple):
    """Who may use some commands: networks of UDP senders, users and groups of UNIX senders (names or numbers)."""

    commands: tuple
    networks: tuple
    users: tuple
    groups: tuple


def read_rule(value: Any) -> tuple:
    """Read `COMMAND[, COMMAND]: WHO[, WHO]`, WHO being a network, `uid:NAME` or `gid:NAME`, into the fields of a Rule, as a
    tuple that all processes know; ValueError."""
    commands, _, who = mi.string(value).partition(": " if ": " in mi.string(value) else ":")  # a name may hold a colon
    if not who.strip():
        raise ValueError('takes commands and who may use them: "kill, log_level: 127.0.0.1, uid:root, gid:voip"')
    users, groups = (tuple(mi.account(item[4:]) for item in mi.words(who) if item.startswith(kind)) for kind in ("uid:", "gid:"))
    addresses = [item for item in mi.words(who) if not item.startswith(("uid:", "gid:"))]
    for item in addresses:
        if re.fullmatch(r"[a-z_][\w-]*", item):  # unlike an address, such as cafe::1
            raise ValueError(f'takes networks, users and groups: "{item}" is no network; a user is written uid:{item}, a group '
                             f"gid:{item}")
    return mi.patterns(commands), mi.networks(", ".join(addresses)) if addresses else (), users, groups


def with_numbers(rule: tuple, where: tuple[str, int]) -> tuple:
    """The same with numbers in place of the names of users and groups; ConfigError at `where`."""
    commands, networks, *accounts = rule
    users, groups = (tuple(mi.account_numbers(name, look_up, where, "allow_command")[0] for name in names)
                     for names, look_up in zip(accounts, (pwd.getpwnam, grp.getgrnam)))
    return commands, networks, users, groups


class Access:
    """Says who may use the commands that rules name."""

    def __init__(self, rules: list[tuple], server: Any):
        self.rules, self.server = [Rule(*rule) for rule in rules], server
        self.restricted = {name for rule in self.rules for name in rule.commands}
        self.rules_of = functools.lru_cache(100)(self.rules_that_name)

    def rules_that_name(self, name: str) -> list[Rule]:
        """The rules for a command, under any of its names."""
        names = name, *self.server.registry.names_of(name)
        return [rule for rule in self.rules if any(one in rule.commands for one in names)]

    def allows(self, command: Any, caller: tuple, *names: str) -> bool:
        """Whether a sender may use a command, or what a catch-all is asked for by its first name; a refusal is logged for
        the audit."""
        asked = names[0] if command.name in ("", "*") else command.name
        rules = self.rules_of(asked)
        if not rules:
            return True
        endpoint, client = caller
        address = endpoint.address_of(client)
        if endpoint.unix:
            credentials = credentials_of(client)
            who, about = ("pid {} uid {} gid {}".format(*credentials), credentials[1]) if credentials else ("unknown", None)
            allowed = credentials is not None and any(fits(rule, *credentials[1:]) for rule in rules)
        else:
            who = about = address[0]
            allowed = any(mi.in_networks(who, rule.networks) for rule in rules)
        if not allowed:
            self.server.count("forbidden")
            log.warning("audit: command %s refused to %s (%s)", asked, mi.shown_address(address), who,
                        extra={"about": about})  # one client may ask from many sockets
        return allowed


def credentials_of(client: Any) -> tuple | None:
    """The (pid, uid, gid) of a UNIX sender, None if the kernel does not say."""
    for level, kind, data in client[1]:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return struct.unpack("3i", data)
    return None


def fits(rule: Rule, uid: int, gid: int) -> bool:
    """Whether a rule, with numbers in place of names, has a user or one of the user's groups."""
    try:
        gids = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        gids = [gid]
    return uid in rule.users or not {*gids}.isdisjoint(rule.groups)
