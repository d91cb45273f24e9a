"""bench_stats -- what the measurements ask for: 22 statistics, an event, echoes, waits, requests and replies of any size."""

import itertools

import gevent

import midatagram as mi

NAMES = (
    "rcv_requests", "rcv_replies", "fwd_requests", "fwd_replies", "drop_requests", "drop_replies", "err_requests",
    "err_replies", "bad_URIs_rcvd", "unsupported_methods", "bad_msg_hdr", "received_replies", "relayed_replies",
    "local_replies", "UAS_transactions", "UAC_transactions", "2xx_transactions", "3xx_transactions",
    "4xx_transactions", "5xx_transactions", "6xx_transactions", "inuse_transactions",
)
MOVING = NAMES[:4]  # these grow all the time, as those of a server with traffic do
numbers = itertools.count()

STATS = [mi.Stat(name, "a statistic to ask for") for name in NAMES] + [
    mi.Stat("never_the_same", "another number for each who asks", group="bench_moving", read=lambda: next(numbers)),
]
EVENTS = [mi.Event("E_BENCH", "an event to raise")]
LINE = mi.Node("contact", "sip:7001@192.0.2.1:5060", (("expires", 3600), ("q", "0.5")))  # as written:
LINE_BYTES = len("contact:: sip:7001@192.0.2.1:5060 expires=3600 q=0.5\n")


@mi.every(0.01, where="one")
def traffic(ctx):
    """Let some of the statistics grow a hundred times a second."""
    for name in MOVING:
        ctx.count(name)


def size(text):
    """Bytes of an argument's name or value; an absent one has none."""
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def described(name, value):
    """The node that shows one argument: name and value as received, their lengths, whether they were there."""
    return mi.Node("?" if name is None and value is None else name, value, (
        ("len_name", size(name)), ("len_value", size(value)),
        ("null_name", int(name is None)), ("null_value", int(value is None))))


@mi.command
def echo(ctx, *arguments):
    """Answer with the arguments."""
    return mi.Reply(nodes=mi.leaves(ctx.request.values, ctx.request.names))


@mi.command
def describe(ctx, *arguments):
    """Answer with the arguments, each with what is to be said about it."""
    return mi.Reply(nodes=[described(name, value) for name, value in ctx.request.arguments])


@mi.command(pure=True)
def pure_echo(ctx, *arguments):
    """Answer as echo does, and declare that nothing but the request decides the reply."""
    return echo(ctx)


@mi.command
def count(ctx, *arguments):
    """Answer with the number of arguments."""
    return mi.Reply(nodes=[mi.Node("arguments", len(arguments))])


@mi.command(ms=mi.integer(0, 60000))
def wait(ctx, ms):
    """Answer after MS milliseconds."""
    gevent.sleep(ms / 1000)
    return mi.Reply(nodes=[mi.Node("waited", ms)])


@mi.command(bytes=mi.integer(0, 70000))
def big(ctx, bytes):
    """Answer with a tree of at most BYTES bytes, written anew for each request."""
    return mi.Reply(nodes=[LINE] * (bytes // LINE_BYTES))


def take_in(view, key, value):
    """Keep a key in a view."""
    view[key] = value


@mi.command
def kept(ctx):
    """Answer with one node, until a key changes."""
    return mi.Reply(nodes=[mi.Node("keys", len(ctx.view("bench", take_in)))], depends=("bench",))


@mi.command
def change(ctx):
    """Change one of 10,000 keys, of which the first requests make 1,000 each, and look at the view of them."""
    count = len(ctx.view("bench_keys", take_in))
    for number in range(count, min(count + 1000, 10000)):
        ctx.store.put("bench_keys", str(number), "x" * 100)
    key = str(next(numbers) % 1000)
    ctx.store.change("bench_keys", key, lambda value: value[1:] + value[:1])
    return mi.Reply(nodes=[mi.Node("keys", len(ctx.view("bench_keys", take_in)))])
