"""bench_around -- a plug-in around all commands that does nothing."""

import midatagram as mi


@mi.around
def nothing(ctx, request, proceed):
    """Answer as usual."""
    return proceed()
