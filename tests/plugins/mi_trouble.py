"""mi_trouble -- handlers that block their whole child, raise or never answer, and one that tells which child it is in."""

import os

from gevent.event import AsyncResult

import midatagram as mi


@mi.command(milliseconds=mi.integer(0))
def block(ctx, milliseconds):
    """Keep the child from its hub, as C code that does not cooperate would."""
    mi.original("time", "sleep")(milliseconds / 1000)
    return mi.Reply()


@mi.command
def stumble(ctx):
    """Raise what no handler should."""
    return 1 // 0


@mi.command
def never(ctx):
    """Promise an answer that never comes."""
    return AsyncResult()


@mi.command(input=False)
def whoami(ctx):
    """Answer with the pid of the child, and whether it still serves (2) or waits for its successor (3)."""
    server = ctx.server
    return mi.Reply(nodes=[mi.Node("pid", os.getpid()), mi.Node("state", server.processes.get(server.row, "state"))])
