"""mi_turns -- replies that change, and odd ones, for the tests of recordings."""

import itertools

import midatagram as mi

COUNTS = itertools.count(1)


@mi.command
def turn(ctx, most="9"):
    """Count."""
    return mi.Reply(nodes=[mi.Node("turn", min(next(COUNTS), int(most))), mi.Node("same", "x")])


@mi.command
def slow_turn(ctx):
    """Count, four times as slowly."""
    return mi.Reply(nodes=[mi.Node("turn", next(COUNTS) // 4), mi.Node("same", "x")])


@mi.command
def pair(ctx, first, second):
    """Show two arguments."""
    return mi.Reply(nodes=[mi.Node("first", first), mi.Node("second", second)])


@mi.command
def odd(ctx, what):
    """Answer oddly."""
    return {
        "quotes": mi.Reply(200, "O'K", [mi.Node("a", "''' and " + '"' * 3), mi.Node("b", "$x ${y} %s")]),
        "quotes in reason": mi.Reply(200, "'a' " + '"b"'),
        "bytes": mi.Reply(200, "OK", [mi.Node("a", "\r\0\x7f\u00e9\udcff"), mi.Node("b", "\\n")]),
        "blank": mi.Reply(200, "OK", [mi.Node(None, "")]),
        "lines": mi.Reply(200, "OK", [mi.Node(None, "\n a \n\n"), mi.Node("x", "# [y]\n[[z]]\nw = 1")]),
        "code": mi.Reply(404, ""), "two": mi.Reply(299, "Fine"),
        "null": mi.Reply(result={"a": [None, 1.5, "x'''", {}]}),
        "data": mi.Reply(500, "no", result=mi.Error(500, "no", "because ${id} it's so")),
        "negative": mi.Reply(400, "no", result=mi.Error(-32602, "Invalid params")),
        "200": mi.Reply(200, "Already", result=mi.Error(200, "Already ${id} $${now} $$${x y}")),
    }[what]
