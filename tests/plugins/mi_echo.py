"""mi_echo -- the commands behind the recordings of the text dialect: echoes, trees and replies of any size and code."""

import re

import gevent
from gevent.event import AsyncResult

import midatagram as mi


def atoi(text, default):
    """A number as C's atoi reads it: blanks, a sign, digits, whatever follows; `default` for a missing one.

    As in glibc it is a 64-bit number that stops at its limits, of which the lowest 32 bits are taken.
    """
    if not text:
        return default
    match = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]+)", text)
    number = max(-2**63, min(2**63 - 1, int(match.group(1)))) if match else 0
    return (number + 2**31) % 2**32 - 2**31


def size(text):
    """Bytes of a text; an absent one has none."""
    return len(mi.encode(text or ""))


@mi.command
def echo(ctx, *arguments):
    """Answer with a node per argument: name and value as received, their lengths, whether they were absent."""
    return mi.Reply(nodes=[
        mi.Node("?" if name is None and value is None else name, value, (
            ("len_name", size(name)), ("len_value", size(value)),
            ("null_name", int(name is None)), ("null_value", int(value is None))))
        for name, value in ctx.request.arguments])


@mi.command
def count(ctx, *arguments):
    """Answer with sums over the arguments and a checksum (32-bit FNV-1a of each name, then value)."""
    checksum, names, values = 0x811C9DC5, 0, 0
    for name, value in ctx.request.arguments:
        names, values = names + size(name), values + size(value)
        for byte in mi.encode((name or "") + (value or "")):
            checksum = (checksum ^ byte) * 0x01000193 & 0xFFFFFFFF
    return mi.Reply(nodes=[mi.Node("args", len(ctx.request.arguments)), mi.Node("name_bytes", names),
                           mi.Node("value_bytes", values), mi.Node("fnv1a", f"{checksum:08x}")])


@mi.command
def tree(ctx):
    """Answer with every form a node can have."""
    node = mi.Node
    return mi.Reply(nodes=[
        node("name", "value"), node("only_name"), node(None, "only_value"),
        node("n", "v", (("a1", "v1"), ("a2", "v2"))),
        node("only_name_attr", None, (("a1", "v1"),)), node(None, "only_value_attr", (("a1", "v1"),)),
        node("attr_forms", "v", (("noval", None), (None, "noname"), ("k", "v w"), ("eq", "=="))),
        node("L0", 0, (("lvl", 0),), [
            node("L1a", 1, (("lvl", 1),), [
                node("L2", 2, (("lvl", 2),), [node("L3", 3, (("lvl", 3),)), node(None, "3b")]),
                node("L2b")]),
            node("L1b", 1), node(None, "1c")]),
        node("newline", "line1\nline2"), node("colons", "a::b:c"), node("quote", 'say "hi"'),
        node("space", "  both  "), node("cr", "x\r"), node("tab", "\tx"), node("hi", mi.decode(b"\xc3\xa9\xff")),
        node("n:n::n", "v", (), [node("kid")]), node(None, "lead")])


@mi.command
def deep(ctx, depth="", *ignored):
    """Answer with a chain of nodes, each the child of the one before."""
    chain = ()
    for number in range(atoi(depth, 3) - 1, -1, -1):
        chain = (mi.Node("d", number, (), chain),)
    return mi.Reply(nodes=chain)


PLACES = {
    "value": lambda text, number: [mi.Node(None, text)],
    "name": lambda text, number: [mi.Node(text)],
    "attr": lambda text, number: [mi.Node("n", "v", (("a", text),))],
    "attrname": lambda text, number: [mi.Node("n", "v", ((text, None),))],
    "kid": lambda text, number: [mi.Node("n", "v", (), [mi.Node(None, text)])],
    "lines": lambda text, number: [mi.Node(None, "x" * 9)] * number,
    "reason": lambda text, number: [],
}


@mi.command
def big(ctx, number="", place="value", *ignored):
    """Answer with so many `x` in one place: value, name, attr, attrname, kid, lines or reason."""
    wanted = atoi(number, 10)
    text = "x" * wanted
    return mi.Reply(200, text if place == "reason" else "OK", PLACES.get(place, PLACES["value"])(text, wanted))


@mi.command
def code(ctx, number="", reason="", *value):
    """Answer with that code and reason, and a node with the value if there is one."""
    return mi.Reply(atoi(number, 200), reason, [mi.Node(None, text) for text in value[:1]])


@mi.command(help="")
def empty(ctx, *ignored):
    return mi.Reply()


@mi.command(help="A name of one letter.")
def a(ctx, *ignored):
    return mi.Reply()


@mi.command("with space", help="A name with a blank.")
def with_space(ctx, *ignored):
    return mi.Reply()


@mi.command("Upper_Case", help="")
def upper_case(ctx, *ignored):
    return mi.Reply()


@mi.command("dash-dot.x", help="A name with marks.")
def dash_dot(ctx, *ignored):
    return mi.Reply()


@mi.command
def fail(ctx, *ignored):
    """Fail."""
    raise mi.Failed("on request")


@mi.command(input=False)
def fail_noinput(ctx):
    """Fail, and take no arguments."""
    raise mi.Failed("on request")


@mi.command(input=False)
def noinput(ctx):
    """Take no arguments."""
    return mi.Reply(nodes=[mi.Node("cmd", "NULL")])


FINAL = mi.Reply(202, "Accepted", [mi.Node("step", "final")])


@mi.command("async")
def answer_later(ctx, *ignored):
    """Answer later, from elsewhere."""
    result = AsyncResult()
    gevent.spawn_later(0.02, result.set, FINAL)
    return result


@mi.command
def async_sync(ctx, *ignored):
    """Answer at once, though it might have been later."""
    return FINAL


@mi.command
def async_fail(ctx, *ignored):
    """Fail later."""
    result = AsyncResult()
    gevent.spawn_later(0.02, result.set_exception, mi.Failed("on request"))
    return result


@mi.command
def msleep(ctx, milliseconds="", *ignored):
    """Answer after some milliseconds."""
    wanted = atoi(milliseconds, 100)
    gevent.sleep(wanted / 1000)
    return mi.Reply(nodes=[mi.Node("slept", wanted)])
