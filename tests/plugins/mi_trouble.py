"""mi_trouble -- a handler that blocks its whole child, one that raises, and one that tells which child it runs in."""

import os

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


@mi.command(input=False)
def whoami(ctx):
    """Answer with the pid of the child, and whether it still serves (2) or waits for its successor (3)."""
    server = ctx.server
    return mi.Reply(nodes=[mi.Node("pid", os.getpid()), mi.Node("state", server.processes.get(server.row, "state"))])
