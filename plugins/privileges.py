"""privileges -- the user and group of `-u` and `-g`, with whose rights the server runs once its sockets are open."""
from __future__ import annotations

import argparse
import grp
import os
import pwd

import midatagram as mi


def account_of(options: argparse.Namespace) -> tuple:
    """The entry of -u's user (None: no -u) and the number of the group to run with (None: ours); StartError."""
    try:
        user = pwd.getpwnam(options.user) if options.user else None
        return user, grp.getgrnam(options.group).gr_gid if options.group else user and user.pw_gid
    except KeyError as error:
        what = f'-u: no user "{options.user}"' if "getpwnam" in str(error) else f'-g: no group "{options.group}"'
        raise mi.StartError(mi.EXIT_CONFIG, f"{what} on this system") from None


def drop(options: argparse.Namespace) -> None:
    """Become -u and -g; StartError if that cannot be."""
    user, gid = account_of(options)
    try:
        if user:
            os.initgroups(user.pw_name, gid)
        if gid is not None:
            os.setgid(gid)
        if user:
            os.setuid(user.pw_uid)
    except PermissionError:
        text = f"-u, -g: uid {os.geteuid()} may not change user or group; only root can"
        raise mi.StartError(mi.EXIT_PERMISSION, text) from None
