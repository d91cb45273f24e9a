"""Events of a server behind the gateway: real servers in either dialect, killed and restarted."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket

import pytest
from conftest import free_port, wait_for
from test_recordings import asking
from test_translation import lines_of, raw
from test_upstream import TEXT_503, gateway_to

import midatagram as mi

translation = mi.shared("translation")
EVENT = "E_SPOKEN"
PLUG_IN = f'''"""speaker -- says what it is asked to."""
import midatagram as mi
EVENTS = [mi.Event("{EVENT}", "said: what, level"), mi.Event("E_OTHER", "nothing")]
'''


class Ear:
    """A subscriber at a UNIX path or a port of loopback."""

    def __init__(self, folder, kind="udp"):
        self.socket = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(f"{folder}/ear{os.urandom(4).hex()}" if kind == "unix" else ("127.0.0.1", 0))
        name = self.socket.getsockname()
        self.place = f"unix:{name}" if kind == "unix" else f"udp:127.0.0.1:{name[1]}"

    def subscribe(self, server, dialect="text", event=EVENT, expire=3600, **options):
        """Subscribe it; gives the reply."""
        return server.ask(asking("event_subscribe", event, self.place, expire) if dialect == "jsonrpc"
                          else f":event_subscribe:\n{event}\n{self.place}\n{expire}\n".encode(), **options)

    def hear(self, timeout_s=5.0):
        """The next event, None if there is none in time."""
        self.socket.settimeout(timeout_s)
        try:
            return self.socket.recv(1 << 17)
        except TimeoutError:
            return None

    def close(self):
        self.socket.close()


@pytest.fixture
def ear(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda kind="udp": stack.enter_context(contextlib.closing(Ear(tmp_path, kind)))


@pytest.fixture
def speaker(start, plug_in):
    """Start a server with events: speaker(dialect, place)."""
    folder = plug_in("speaker", PLUG_IN)
    return lambda dialect="auto", **options: start(
        f'loadmodule "speaker.so"\nmodparam("midatagram", "dialect", "{dialect}")\n', "-p", folder, **options)


def front_of(start, behind, *more, options="", lines=""):
    """A gateway that has its server's events sent to a port."""
    port = free_port()
    front = start(gateway_to(f"{behind.place};events=udp:127.0.0.1:{port}{options}", *more, more=lines))
    front.port = port
    return front


def say(behind, dialect, what="hello", level=7):
    """Have a server raise the event, asked in its dialect; its reply."""
    return behind.ask(asking("raise_event", EVENT, [what, level]) if dialect == "jsonrpc" else
                      f":raise_event:\n{EVENT}\nwhat::{what}\nlevel::{level}\n".encode())


def at_server(behind, dialect, event=EVENT):
    """Whom the server itself sends an event to, besides subscriptions that a client ended: [(place, seconds)]."""
    if dialect == "jsonrpc":
        rows = json.loads(behind.ask(asking("subscribers_list", event)))["result"]["Event"].get("Subscribers", [])
        return [(row["socket"], row["expire"]) for row in rows if row["expire"]]
    text = behind.ask(f":subscribers_list:\n{event}\n".encode()).decode()
    return [(place, int(expire)) for place, expire in re.findall(r"socket=(\S+) expire=(\d+)", text) if int(expire)]


TEXT = b"E_SPOKEN\nwhat::hello\nlevel::7\n\n"
SPOKEN = {"text": {"text": TEXT, "jsonrpc": b'{"jsonrpc":"2.0","method":"E_SPOKEN","params":{"what":"hello","level":"7"}}'},
          "jsonrpc": {"text": b"E_SPOKEN\nhello\n7\n\n",
                      "jsonrpc": b'{"jsonrpc":"2.0","method":"E_SPOKEN","params":["hello","7"]}'}}


@pytest.mark.parametrize("dialect", ["text", "jsonrpc"])
def test_an_event_comes_in_the_dialect_of_each_subscriber(start, speaker, ear, dialect):
    behind = speaker(dialect)
    front = front_of(start, behind, lines='modparam("mi_datagram", "children_count", 2)')
    ears = [(ear(kind), theirs) for kind in ("udp", "unix") for theirs in ("text", "jsonrpc")]
    for one, theirs in ears:
        assert one.subscribe(front, theirs) in (b"200 OK\n\n", b'{"jsonrpc":"2.0","result":"OK","id":1}')
    assert at_server(behind, dialect) == [(f"udp:127.0.0.1:{front.port}", 60)]  # once for all of them
    assert b"OK" in say(behind, dialect)
    for one, theirs in ears:
        assert one.hear() == SPOKEN[dialect][theirs]
    assert b"OK" in say(front, "text") and ears[0][0].hear()  # asked through the gateway
    assert front.statistic("main-events") == 2


@pytest.mark.parametrize("dialect", ["text", "jsonrpc"])
def test_a_server_that_is_killed_and_started_again_is_subscribed_to_again(start, speaker, ear, dialect):
    """Though nobody asks the gateway for anything meanwhile."""
    behind = speaker(dialect)
    front, one = front_of(start, behind), ear()
    one.subscribe(front)
    behind.signal(signal.SIGKILL)
    behind.process.wait(5)
    wait_for(lambda: say_nothing_to(behind), what="the end of its children")
    os.unlink(behind.place)
    behind = speaker(dialect, place=behind.place)
    assert at_server(behind, dialect) == []
    wait_for(lambda: at_server(behind, dialect), what="the subscription")
    say(behind, dialect)
    assert one.hear() == SPOKEN[dialect]["text"]
    assert b"state=up" in front.ask(b":upstream_list:\n")


def say_nothing_to(server):
    """Whether nobody listens at a place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(server.place) != 0


def test_a_server_of_another_dialect_is_subscribed_to_as_well(start, speaker, ear):
    behind = speaker("text")
    front, one = front_of(start, behind), ear()
    one.subscribe(front, "jsonrpc")
    listed = front.ask(b":events_list:\n")
    assert b"Event:: E_SPOKEN id=" in listed
    behind.stop()
    assert front.ask(b":events_list:\n") == listed
    assert one.subscribe(front, "jsonrpc") == b'{"jsonrpc":"2.0","result":"OK","id":1}'  # it is kept here
    assert ear().subscribe(front, event="E_OTHER") == TEXT_503  # which the server does not know of
    assert b"E_OTHER" not in front.ask(b":subscribers_list:\n")
    behind = speaker("jsonrpc", place=behind.place)
    wait_for(lambda: at_server(behind, "jsonrpc"), what="the subscription")
    say(behind, "jsonrpc")
    assert one.hear() == SPOKEN["jsonrpc"]["jsonrpc"]


@pytest.mark.parametrize("dialect", ["text", "jsonrpc"])
def test_the_last_subscriber_that_leaves_ends_the_subscription_at_the_server(start, speaker, ear, dialect):
    behind = speaker(dialect)
    front, first, second = front_of(start, behind), ear(), ear("unix")
    first.subscribe(front, "text")
    second.subscribe(front, "jsonrpc")
    first.subscribe(front, "text", expire=0)
    say(behind, dialect)
    assert second.hear() == SPOKEN[dialect]["jsonrpc"]
    assert len(at_server(behind, dialect)) == 1
    second.subscribe(front, "jsonrpc", expire=0)
    wait_for(lambda: not at_server(behind, dialect), what="the end of the subscription")
    first.subscribe(front, dialect, expire=1)
    assert len(at_server(behind, dialect)) == 1
    wait_for(lambda: not at_server(behind, dialect), what="the end of the subscription")


def test_a_subscription_is_renewed_before_it_ends(start, speaker, ear):
    behind = speaker("jsonrpc")
    front, one = front_of(start, behind), ear()
    one.subscribe(front)

    def left():
        """How long the server sends events."""
        event = json.loads(behind.ask(asking("subscribers_list", EVENT)))["result"]["Event"]
        return event["Subscribers"][0]["ttl"]

    wait_for(lambda: left() < 60, what="time to pass")
    wait_for(lambda: left() == 60, what="the renewal")


# What clients see.


def test_subscribers_are_listed_here_and_events_as_the_server_has_them(start, speaker, ear):
    behind = speaker()
    front, one = front_of(start, behind), ear()
    for request in (b":events_list:\n", asking("events_list"), b":subscribers_list:\n", b":subscribers_list:\nE_NONE\n",
                    asking("subscribers_list", "E_NONE"), asking("event_subscribe", "E_NONE", one.place),
                    b":event_subscribe:\nE_NONE\nudp:127.0.0.1:5\n", b":event_subscribe:\nE_SPOKEN\n",
                    asking("event_subscribe", EVENT), b":event_subscribe:\nE_SPOKEN\nx\n"):
        assert front.ask(request) == behind.ask(request), request
    assert at_server(behind, "text") in ([], [(f"udp:127.0.0.1:{front.port}", 60)])  # of the last one, and not for long
    assert one.subscribe(front, expire=77) == b"200 OK\n\n"
    row = re.search(rb'Event:: E_SPOKEN id=\d+\n', behind.ask(b":events_list:\n"))[0]
    listed = b"200 OK\n%b\tSubscriber::  socket=%b expire=77\n\n" % (row, one.place.encode())
    for request in (b":subscribers_list:\n", b":evi:subscribers:\n", b":subscribers_list:\nE_SPOKEN\n"):
        assert front.ask(request) == listed
    assert json.loads(front.ask(b"[%b]" % asking("subscribers_list", EVENT)))[0]["result"]["Event"]["Subscribers"] == [
        {"socket": one.place, "expire": 77, "ttl": 77}]
    assert b"evi:subscribe" not in front.ask(b":which:\n")


def test_a_server_that_refuses_a_subscription_says_so(start, ear):
    behind = start('modparam("midatagram", "max_subscribers", 0)\nmodparam("midatagram", "dialect", "jsonrpc")\n')
    front, one = front_of(start, behind), ear()
    assert one.subscribe(front, event="E_MI_STOP") == b"500 Too many subscribers\n\n"
    reply = json.loads(one.subscribe(front, "jsonrpc", event="E_MI_STOP"))
    assert (reply["error"]["code"], reply["error"]["message"]) == (500, "Too many subscribers")
    assert front.ask(b":subscribers_list:\n") == b"200 OK\n\n"


def test_limits_hold(start, speaker, ear):
    behind, udp = speaker(), f"udp:127.0.0.1:{free_port()}"
    front = front_of(start, behind, lines='modparam("midatagram", "max_subscribers", 2)\n'
                     'modparam("midatagram", "event_targets", "192.0.2.0/24")\n'
                     f'modparam("midatagram", "listen", "{udp}")')
    assert front.ask(b":event_subscribe:\nE_SPOKEN\nudp:192.0.2.1:5000\n", place=udp) == b"200 OK\n\n"
    assert front.ask(b":event_subscribe:\nE_SPOKEN\nudp:198.51.100.1:5000\n", place=udp) == b"403 Forbidden\n\n"
    assert ear("unix").subscribe(front, place=udp) == b"403 Forbidden\n\n"
    assert [ear().subscribe(front)[:3] for _ in range(2)] == [b"200", b"500"]
    assert front.ask(b":subscribers_list:\n").count(b"Subscriber::") == 2
    assert front.statistic("forbidden", place=udp) >= 0


def test_each_server_has_subscribers_of_its_own(start, speaker, ear):
    behinds, ports = [speaker("text"), speaker("jsonrpc")], [free_port(), free_port()]
    ways = [f"{behind.place};events=udp:127.0.0.1:{port}" for behind, port in zip(behinds, ports)]
    front = start("")
    second = f"{front.folder}/second.sock"
    front.stop()
    front = start(gateway_to(*ways, more=f'modparam("midatagram", "listen", "{second};upstream=other")'))
    of_both, of_second = ear(), ear()
    for place in (front.place, second):
        of_both.subscribe(front, place=place)
    of_second.subscribe(front, place=second)
    say(behinds[0], "text")
    assert of_both.hear() == SPOKEN["text"]["text"]
    say(behinds[1], "jsonrpc")
    assert of_both.hear() == of_second.hear() == SPOKEN["jsonrpc"]["text"]
    assert front.ask(b":subscribers_list:\n").count(b"Subscriber::") == 1


def test_a_reload_and_the_end_of_a_child_lose_no_subscription(start, speaker, ear):
    behind = speaker("text")
    lines = 'modparam("mi_datagram", "children_count", 2)\nmodparam("upstream", "keep", "ps")'
    front, one = front_of(start, behind, lines=lines), ear()
    one.subscribe(front)
    child = front.children()[0]
    front.signal(signal.SIGHUP)
    wait_for(lambda: said(behind, one) and not os.path.exists(f"/proc/{child}"), what="a child of the next generation")
    assert said(behind, one)
    os.kill(front.children()[0], signal.SIGKILL)
    say(behind, "text")
    wait_for(lambda: one.hear(0.05) or not say(behind, "text"), what="an event")


def said(behind, one, numbers=itertools.count()):  # noqa: B008
    """Whether an event gets through, which none may fail to do."""
    number = next(numbers)
    say(behind, "text", f"{number}")
    assert one.hear() == b"E_SPOKEN\nwhat::%d\nlevel::7\n\n" % number
    return True


# What the server sends.


def test_every_recorded_event_gets_through(start, speaker, ear):
    """In the dialect that it came in as it is, in the other one translated."""
    behind, events = speaker(), lines_of("event_pairs.jsonl")
    names = {event.partition("\n")[0] for row in events for event in row["events24"]}
    front, ears = front_of(start, behind), {dialect: ear() for dialect in ("text", "jsonrpc")}
    lines = "".join(f'EVENTS.append(mi.Event("{name}", "as recorded"))\n' for name in sorted(names))
    speak = behind.folder.parent / "plug-ins" / "speaker.py"
    speak.write_text(speak.read_text() + lines)
    behind.reload()
    for dialect, one in ears.items():
        for name in names:
            assert b"OK" in one.subscribe(front, dialect, name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.connect(("127.0.0.1", front.port))
        count = 0
        for dialect, made in (("text", translation.event_to_jsonrpc), ("jsonrpc", translation.event_to_text)):
            for event in [raw(event) for row in events for event in row["events24" if dialect == "text" else "events34"]]:
                server.send(event)
                assert ears[dialect].hear() == event
                assert ears["jsonrpc" if dialect == "text" else "text"].hear() == made(event)
                count += 1
    assert count == 77


GARBAGE = b"", b"{}", b"{", b"[1]", b'{"method":5}', b'{"method":["E_SPOKEN"]}', b"\xff\x00", b"E_SPOKEN\n\"\n", \
    b'{"method":"E_SPOKEN","params":5}', b'{"method":"E_SPOKEN","params":{"db_id":[1]}}', b"E_SPOKEN\nhash_entry::x\n\n"


def test_what_is_no_event_harms_nobody(start, speaker, ear):
    behind = speaker("text")
    front, one, other = front_of(start, behind), ear(), ear()
    one.subscribe(front, "text")
    other.subscribe(front, "jsonrpc")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        for garbage in GARBAGE:
            server.sendto(garbage, ("127.0.0.1", front.port))
    say(behind, "text")
    wait_for(lambda: one.hear() == SPOKEN["text"]["text"], what="the event")
    wait_for(lambda: other.hear() == SPOKEN["text"]["jsonrpc"], what="the event")
    assert "upstream main sent what is no event: " in front.log


def test_events_are_taken_from_the_host_of_the_server_alone():
    places = (("[main]/tmp/x", "127.0.0.1", ""),
              ("[main]udp:192.0.2.7:5000", "198.51.100.1", ";senders=203.0.113.0/24, 2001:db8::/32"))
    hosts = "127.0.0.9", "192.0.2.7", "198.51.100.1", "203.0.113.5", "2001:db8::1", "192.0.2.8", "::ffff:192.0.2.7"
    wanted = [True, False, False, False, False, False, False], [True, True, True, True, True, False, True]
    for (place, host, more), believed in zip(places, wanted):
        lines = f'loadmodule "upstream.so"\nmodparam("upstream", "server", "{place};events=udp:{host}:{free_port()}{more}")'
        with mi.Trial(lines) as front:
            gateway = front.server.registry.modules_by_name["upstream"].namespace.gateway_of(front.server)
            assert [*map(gateway.default.relay.is_believed, hosts)] == believed


@pytest.mark.parametrize("events", ["/tmp/x", "udp:*:5000", "udp:localhost:5000", "udp:0.0.0.0:5000"])
def test_events_need_an_address_that_the_server_can_send_to(events):
    with pytest.raises(mi.ConfigError, match="events takes an address of this host"):
        mi.Trial(gateway_to(f"/tmp/x;events={events}"))


def test_an_address_that_another_has_is_named(start, speaker, ear):
    behind = speaker("text")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"udp:127.0.0.1:{taken.getsockname()[1]}"
        front, one = start(gateway_to(f"{behind.place};events={place}")), ear()
        front.wait_log(f"events of upstream main: {place}: Address already in use")
    one.subscribe(front)
    say(behind, "text")
    wait_for(lambda: one.hear(0.05) or not say(behind, "text"), what="an event, once the address is free")
