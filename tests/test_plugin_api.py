"""The plug-in API: what docs/plugins.md shows, and what carries a lab, stateful modules and a gateway."""

import json
import re
import threading
import time
import tracemalloc

import pytest
from conftest import ROOT, run, wait_for

import midatagram as mi

PAGE = (ROOT / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
SOURCES = {re.match(r'"""(\w+) --', block)[1]: block for block in BLOCKS if block.startswith('"""')}


@pytest.fixture
def folder(tmp_path):
    """A folder with the plug-ins of the page."""
    path = tmp_path / "plug-ins"
    path.mkdir()
    for name, source in SOURCES.items():
        (path / f"{name}.py").write_text(source)
    return path


@pytest.fixture
def trial(folder):
    """Make trials: trial(lines, **sources of further plug-ins); they are closed in the end."""
    made = []

    def make(lines, **sources):
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(f"import midatagram as mi\n{source}")
        made.append(mi.Trial(lines, str(folder)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def rpc(method, params=None, number=1):
    """A JSON-RPC request."""
    request = {"jsonrpc": "2.0", "method": method, "id": number, **({"params": params} if params is not None else {})}
    return json.dumps(request).encode()


###############################################################################
# The page
###############################################################################


def test_the_page_has_the_plug_ins_that_are_tested_here():
    assert set(SOURCES) == {"greet", "contacts", "relay", "faults"}


def test_the_first_plug_in(trial):
    one = trial('loadmodule "greet.so"\nmodparam("greet", "greeting", "Hi")')
    assert one.ask(b":greet:\nBob\n2\n") == b"200 OK\ngreeting:: Hi Bob\ngreeting:: Hi Bob\n\n"
    assert json.loads(one.ask(rpc("greet", {"name": "Bob"})))["result"] == {"greeting": "Hi Bob"}
    assert one.ask(b":get_statistics:\ngreetings\n") == b"200 OK\ngreet:greetings:: 3\n\n"


def test_the_test_of_the_page_passes():
    exec(next(block for block in BLOCKS if "mi.Trial" in block), {})


def test_the_registry_of_the_page(trial):
    one = trial('loadmodule "contacts.so"')
    assert one.ask(b":contact_show:\nalice\n") == b"404 AOR not found\n\n"
    for contact in (b"sip:1", b"sip:2", b"sip:1"):
        assert one.ask(b":contact_add:\nalice\n" + contact) == b"200 OK\n\n"
    for _ in range(4):
        assert one.ask(b":contact_show:\nalice\n") == b"200 OK\nContact:: sip:1\nContact:: sip:2\n\n"
    assert one.ask(b":contact_dump:\n") == b"200 OK\nAOR:: alice\n\tContact:: sip:1\n\tContact:: sip:2\n\n"
    assert one.ask(b":get_statistics:\ncontacts\n") == b"200 OK\ncontacts:contacts:: 2\n\n"
    one.ask(b":contact_add:\nbob\nsip:3\n")
    assert one.ask(b":contact_dump:\n").endswith(b"AOR:: bob\n\tContact:: sip:3\n\n")


###############################################################################
# State
###############################################################################


def test_three_children_lose_no_contact_and_show_all_of_them(start, folder):
    server = start('modparam("mi_datagram", "children_count", 3)\nloadmodule "contacts.so"', "-p", str(folder))

    def add(first):
        client = server.client()
        for number in range(first, first + 60):
            assert client.ask(b":contact_add:\nalice\nsip:%d\n" % number) == b"200 OK\n\n"
            client.ask(b":contact_dump:\n")

    threads = [threading.Thread(target=add, args=(first,)) for first in range(0, 360, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(20):  # whichever child answers
        shown = server.ask(b":contact_show:\nalice\n").decode()
        assert sorted(int(number) for number in re.findall(r"sip:(\d+)", shown)) == list(range(360))
    assert server.statistic("contacts") == 360


COUNTED = '''
STATS = [mi.Stat("calls", "calls")]

@mi.command
def note(ctx, key, value):
    """Keep a value."""
    ctx.store.put("notes", key, value)
    return mi.Reply()

@mi.command
def notes(ctx):
    """Show all notes."""
    ctx.count("calls")
    view = ctx.view("notes", lambda view, key, value: view.update({key: value}) if value else view.pop(key, None))
    return mi.Reply(nodes=[mi.Node(*item) for item in sorted(view.items())], depends=("notes",))

@mi.command
def brief(ctx):
    """Show the time, and again for 0.3 s."""
    import time
    ctx.count("calls")
    return {"now": str(time.monotonic())} if ctx.request.dialect == "none" else mi.Reply(
        nodes=[mi.Node("now", time.monotonic())], depends=("notes",), until_s=time.monotonic() + 0.3)
'''


@pytest.mark.parametrize("ask", [b":notes:\n", rpc("notes")])
def test_a_reply_that_depends_is_sent_again_until_its_space_changes(trial, ask):
    one = trial('loadmodule "counted.so"', counted=COUNTED)

    def calls():
        return int(one.ask(b":get_statistics:\ncalls\n").split()[-1])
    one.ask(b":note:\na\n1\n")
    replies = {one.ask(ask) for _ in range(20)}
    assert len(replies) == 1 and calls() == 2  # it is cached from its second time on
    one.ask(b":note:\nb\n2\n")
    assert one.ask(ask) not in replies and calls() == 3
    assert [one.ask(ask).count(b"2") for _ in range(5)] and calls() == 3


@pytest.mark.parametrize("ask", [b":notes:\n", rpc("notes")])
def test_a_child_keeps_it_after_a_change_too(start, tmp_path, ask):
    (tmp_path / "counted.py").write_text(f"import midatagram as mi\n{COUNTED}")
    server = start('loadmodule "counted.so"', "-p", str(tmp_path))
    client = server.client()
    for value in (1, 2, 3):
        client.ask(b":note:\na\n%d\n" % value)
        assert len({client.ask(ask) for _ in range(30)}) == 1
    assert server.statistic("calls") <= 6


def test_a_view_is_made_anew_after_apply_raised(trial):
    one = trial('loadmodule "picky.so"', picky='''
def take(view, key, value):
    view[key] = int(value)

@mi.command
def shown(ctx):
    """Show the view."""
    return dict(ctx.view("numbers", take))
''')
    for key, value in (("a", "1"), ("b", "bad"), ("c", "3")):
        one.server.store.put("numbers", key, value)
    assert one.ask(b":shown:\n") == one.ask(b":shown:\n") == b"500 command failed\n"
    one.server.store.put("numbers", "b", "2")
    assert json.loads(one.ask(rpc("shown")))["result"] == {"a": 1, "b": 2, "c": 3}


def test_a_reply_that_depends_lasts_until_its_time(trial):
    one = trial('loadmodule "counted.so"', counted=COUNTED)
    one.ask(b":brief:\n")
    first = one.ask(b":brief:\n")
    assert one.ask(b":brief:\n") == first
    wait_for(lambda: one.ask(b":brief:\n") != first, 5, "another reply")


def test_a_change_in_one_child_is_seen_in_all(start, tmp_path):
    (tmp_path / "counted.py").write_text(f"import midatagram as mi\n{COUNTED}")
    server = start('modparam("mi_datagram", "children_count", 3)\nloadmodule "counted.so"', "-p", str(tmp_path))
    clients = [server.client() for _ in range(6)]
    for number in range(30):
        assert clients[number % 6].ask(b":note:\nn\n%d\n" % number) == b"200 OK\n\n"
        assert {client.ask(b":notes:\n") for client in clients} == {b"200 OK\nn:: %d\n\n" % number}


def test_a_view_takes_in_only_what_changed(trial):
    one = trial('loadmodule "seen.so"', seen='''
TAKEN = []

def take(view, key, value):
    TAKEN.append(key)
    view[key] = value

@mi.command
def change(ctx, key, value=""):
    """Change a key; an empty value removes it."""
    ctx.store.change("s", key, lambda old: value or None)
    return mi.Reply()

@mi.command
def taken(ctx):
    """Show which keys were taken in since last time."""
    view = ctx.view("s", take)
    keys, TAKEN[:] = sorted(TAKEN), []
    return {"taken": " ".join(keys), **{key: str(view[key]) for key in sorted(view)}}
''')
    for number in range(5):
        one.ask(b":change:\nk%d\nv\n" % number)
    assert one.ask(b":taken:\n").startswith(b"200 OK\ntaken:: k0 k1 k2 k3 k4\n")
    one.ask(b":change:\nk2\nw\n")
    one.ask(b":change:\nk3\n")
    assert json.loads(one.ask(rpc("taken")))["result"] == {
        "taken": "k2 k3", "k0": "v", "k1": "v", "k2": "w", "k3": "None", "k4": "v"}
    assert one.ask(b":taken:\n").startswith(b"200 OK\ntaken:: \n")


def test_a_view_forgets_what_expires(trial):
    one = trial('loadmodule "counted.so"', counted=COUNTED)
    one.server.store.put("notes", "short", "1", 0.2)
    one.server.store.put("notes", "long", "1", 60)
    assert b"short" in one.ask(b":notes:\n")
    wait_for(lambda: b"short" not in one.ask(b":notes:\n" + b"\n" * (time.monotonic_ns() % 99)), 5, "the end of a key")
    assert b"long" in one.ask(b":notes:\n")


def test_load_fills_the_store_once_before_children_serve(start, tmp_path):
    (tmp_path / "table.py").write_text('''"""table"""
import midatagram as mi

def load(ctx):
    """Read the table."""
    count = int(ctx.store.get("table", "loads") or 0)
    ctx.store.put("table", "loads", str(count + 1))

@mi.command
def loads(ctx):
    """Show how often the table was read."""
    return {"loads": ctx.store.get("table", "loads")}
''')
    server = start('modparam("mi_datagram", "children_count", 3)\nloadmodule "table.so"', "-p", str(tmp_path))
    assert {server.ask(b":loads:\n") for _ in range(9)} == {b"200 OK\nloads:: 1\n\n"}
    server.signal(1)
    server.wait_log("reloaded")
    assert {server.ask(b":loads:\n") for _ in range(9)} == {b"200 OK\nloads:: 2\n\n"}


###############################################################################
# Forwarding
###############################################################################


def test_a_catch_all_forwards_what_no_command_answers(start, folder, tmp_path):
    there = start('loadmodule "hello.so"')
    here = start(f'loadmodule "relay.so"\nmodparam("relay", "server", "{there.place}")', "-p", str(folder))
    assert here.ask(b":hello:\nAlice\n") == there.ask(b":hello:\nAlice\n") == b"200 OK\ngreeting:: Hello Alice\n\n"
    assert here.ask(b":nosuch:\n") == b"500 command not available\n\n"  # the other's words, as a tree
    assert b"mi_datagram:requests:: " in here.ask(b":get_statistics:\nrequests\n")
    there.stop()
    assert here.ask(b":hello:\nAlice\n") == b"503 server is not reachable\n\n"


CATCH = '''
@mi.command("*")
def %s(ctx, *values):
    """Answer some names."""
    if ctx.request.name.startswith("%s"):
        return {"by": "%s", "name": ctx.request.name, "values": "|".join(str(value) for value in values)}
'''


def test_another_server_is_asked_in_either_dialect(start):
    server = start()
    assert mi.ask(server.place, b":which:\n", 5).startswith(b"200 OK\nget_statistics\n")
    assert json.loads(mi.ask(mi.Address(server.place), rpc("which"), 5))["result"][0] == "get_statistics"
    server.stop()
    with pytest.raises(OSError):
        mi.ask(server.place, b":which:\n", 0.2)


def test_catch_alls_are_asked_in_load_order_and_pass_on(trial):
    one = trial('loadmodule "one.so"\nloadmodule "two.so"', one=CATCH % ("first", "a", "one"), two=CATCH % ("second", "", "two"))
    assert one.ask(b":abc:\nx\ny\n") == b"200 OK\nby:: one\nname:: abc\nvalues:: x|y\n\n"
    assert one.ask(b":xyz:\nn::v\n") == b"200 OK\nby:: two\nname:: xyz\nvalues:: v\n\n"
    assert json.loads(one.ask(rpc("abc", {"k": [1, 2]})))["result"] == {"by": "one", "name": "abc", "values": "[1,2]"}
    assert one.answer(b":abc:\n").exchanges[0].command == "abc"
    assert one.ask(b':abc:\n"') == b"400 parse_error\n"
    assert one.ask(b"abc") == b"500 command not available\n" and one.ask(b"::\n") == b"200 OK\nby:: two\nname:: \nvalues:: \n\n"
    assert b"abc" not in one.ask(b":which:\n") and b"*" not in one.ask(b":which:\n")


def test_names_of_any_length_fill_no_memory_of_a_catch_all(trial):
    one = trial('loadmodule "one.so"\nmodparam("midatagram", "disable", "kill")', one=CATCH % ("first", "a", "one"))
    one.ask(b":b:\n")
    tracemalloc.start()
    try:
        for number in range(300):
            one.ask(f":{chr(0x1F600)}{number:060000}:\n".encode())
        assert tracemalloc.get_traced_memory()[0] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_catch_all_that_passes_leaves_the_error_as_it_was(trial):
    one = trial('loadmodule "one.so"', one=CATCH % ("first", "a", "one"))
    assert one.ask(b":b:\n") == b"500 command not available\n"
    assert json.loads(one.ask(rpc("b")))["error"]["code"] == -32601
    assert one.answer(b":b:\n").exchanges[0].command == ""


###############################################################################
# Around
###############################################################################


def test_the_faults_of_the_page(start, folder):
    server = start('loadmodule "faults.so"\nloadmodule "hello.so"', "-p", str(folder))
    client = server.client()
    requests = [b":hello:\nA\n", b"malformed", rpc("hello", ["A"]), b"[" + rpc("hello", ["A"]) + b"," + rpc("nosuch") + b"]"]
    counts = []
    for request in requests * 3:
        client.send(request)
        counts.append(client.receive(0.15) is not None)
    assert counts == [True, True, False] * 4
    client.send(b":which:\n")  # number 13
    assert client.receive() == client.receive(1.0) is not None


SPY = '''
CALLS = []

@mi.around
def spy(ctx, request, proceed):
    answer = proceed()
    CALLS.append((request.name, ctx.data, len(answer.exchanges), ctx.caller))
    return answer

@mi.command
def calls(ctx):
    """Show what came by."""
    return [f"{name} {data[:9]!r} {count}" for name, data, count, _ in CALLS]
'''


def test_what_is_around_sees_each_datagram_once(trial):
    one = trial('loadmodule "spy.so"', spy=SPY)
    for data in (b":uptime:\n", b":uptime:\n", b":uptime:\n", b"bad", b"{", rpc("uptime"),
                 b"[" + rpc("pwd") + b"," + rpc("nosuch") + b",1]", b"x" * 70000, b":version:\nx\n"):
        one.ask(data)
    shown = one.ask(b":calls:\n").decode().splitlines()[1:-1]
    assert [line.split(" ")[0] for line in shown] == ["uptime", "uptime", "uptime", "", "", "uptime", "", "", "version"]
    assert [line[-1] for line in shown] == list("111111311")


def test_what_is_around_may_answer_by_itself(trial):
    one = trial('loadmodule "raw.so"', raw='''
@mi.around("uptime")
def raw(ctx, request, proceed):
    if b"x" in ctx.data:
        return mi.Answer([(0, b"raw")], [])
    return proceed()

@mi.around("pwd")
def breaks(ctx, request, proceed):
    return proceed() if "x" in request.values else 1 / 0

@mi.around("which")
def nothing(ctx, request, proceed):
    proceed()
''')
    assert one.ask(b":uptime:\nx\n") == b"raw" and one.ask(b":uptime:\n").startswith(b"200 OK\nNow")
    assert one.ask(b":pwd:\n") == one.ask(b":which:\n") == b"500 command failed\n"
    assert json.loads(one.ask(rpc("which")))["error"]["code"] == -32000


def test_what_is_not_wrapped_keeps_the_quick_path(trial):
    one = trial('loadmodule "only.so"', only='''
@mi.around("pwd")
def only(ctx, request, proceed):
    return proceed()
''')
    for _ in range(3):
        for data in (b":uptime:\n", b":which:\n", b":pwd:\n", b":events_list:\n"):
            one.ask(data)
    young = one.answers.cache.young
    assert young[b":uptime:\n"].now() and young[b":which:\n"].now()
    two = trial('loadmodule "spy.so"', spy=SPY)
    for _ in range(3):
        two.ask(b":which:\n")
    assert two.answers.cache.young[b":which:\n"].now() is None


def test_the_first_loaded_is_the_outermost(trial):
    source = '''
@mi.around
def mark(ctx, request, proceed):
    answer = proceed()
    return answer._replace(datagrams=[(delay, data + b"%s") for delay, data in answer.datagrams])
'''
    one = trial('loadmodule "inner.so"\nloadmodule "outer.so"'.replace("inner", "p1").replace("outer", "p2"),
                p1=source % "1", p2=source % "2")
    assert one.ask(b"x") == b"500 command not available\n21"


###############################################################################
# Contexts, replies, statistics
###############################################################################


def test_what_a_context_has(start, tmp_path):
    (tmp_path / "other.py").write_text('"""other"""\n\ndef double(number):\n    return 2 * number\n')
    (tmp_path / "all.py").write_text('''"""all"""
import midatagram as mi

PARAMS = [mi.Param("size", 7, mi.integer())]
STATS = [mi.Stat("level", "a level", resettable=False),
         mi.Stat("figure", "reads a parameter", read=lambda ctx: ctx.param("size"))]

@mi.command
def show(ctx, level):
    """Show what a Context has."""
    ctx.set("level", int(level))
    endpoint, client = ctx.caller
    return {"data": ctx.data.decode(), "double": ctx.module("other").double(4), "unix": endpoint.unix,
            "client": client[-2:]}
''')
    server = start('modparam("mi_datagram", "children_count", 2)\nloadmodule "other.so"\nloadmodule "all.so"',
                   "-p", str(tmp_path))
    client = server.client()
    reply = json.loads(client.ask(rpc("show", ["5"])))["result"]
    assert (reply["double"], reply["unix"], reply["client"]) == (8, True, client.path[-2:])
    assert json.loads(reply["data"])["method"] == "show"
    for level in (9, 3):
        for _ in range(5):
            server.ask(b":show:\n%d\n" % level)
        assert {server.statistic("level") for _ in range(6)} == {level}
    assert server.statistic("figure") == 7


@pytest.mark.parametrize("value, text", [
    ({"a": 1, "b": {"c": "x", "d": []}}, b"a:: 1\nb:: \n\tc:: x\n"),
    ({"List": [{"id": 1}, {"id": 2}]}, b"List:: \n\tid:: 1\nList:: \n\tid:: 2\n"),
    (["a", "b"], b"a\nb\n"), ({"t": True, "f": 1.5, "n": None}, b"t:: true\nf:: 1.500000\nn:: \n"), ({}, b""), ([], b""),
])
def test_a_handler_may_return_json(trial, value, text):
    one = trial('loadmodule "gives.so"', gives=f'@mi.command\ndef gives(ctx):\n    """Give."""\n    return {value!r}\n')
    assert one.ask(b":gives:\n") == b"200 OK\n" + text + b"\n"
    assert json.loads(one.ask(rpc("gives")))["result"] == value


def test_an_answer_may_come_later(start, tmp_path):
    (tmp_path / "later.py").write_text('''"""later"""
import gevent
import midatagram as mi

@mi.command
def later(ctx):
    """Answer in 50 ms."""
    result = mi.AsyncResult()
    gevent.spawn_later(0.05, result.set, mi.Reply(202, "Accepted"))
    return result

@mi.command(timed=False)
def patient(ctx):
    """Answer after handler_timeout."""
    gevent.sleep(1)
    return mi.Reply(200, "Patience")

@mi.command
def late(ctx):
    """Be too late."""
    gevent.sleep(1)
    return mi.Reply()
''')
    server = start('loadmodule "later.so"\nmodparam("midatagram", "handler_timeout", 200)', "-p", str(tmp_path))
    assert server.ask(b":later:\n") == b"202 Accepted\n\n"
    assert server.ask(b":late:\n") == b"500 command timed out\n"
    assert server.ask(b":patient:\n") == b"200 Patience\n\n"


def test_trees_go_there_and_back():
    tree = {"AOR": [{"Contact": "sip:1"}, {"Contact": "sip:2"}], "Total": 2}
    assert mi.json_tree(mi.json_nodes(tree), mi.JsonForm()) == tree
    text = mi.write_text(mi.Reply(nodes=mi.json_nodes(tree))).partition("\n")[2].removesuffix("\n\n")
    assert mi.json_tree(mi.read_tree(text), mi.JsonForm())["AOR"] == tree["AOR"]


def test_a_trial_tells_what_is_wrong_with_a_plug_in(trial):
    with pytest.raises(mi.ConfigError, match="needs a docstring"):
        trial('loadmodule "bad.so"', bad="@mi.command\ndef bad(ctx):\n    pass\n")


@pytest.mark.parametrize("written, meant", [("int", "integer"), ("str", "string"), ("bool", "boolean"), ("Trials", "Trial")])
def test_a_name_that_midatagram_lacks_is_put_right(tmp_path, written, meant):
    path = tmp_path / "wrong.py"
    path.write_text(f"import midatagram as mi\n\nX = mi.{written}\n")
    done = run("-c", "-s", tmp_path / "mi.sock", "-p", tmp_path)
    assert (done.returncode, done.stderr) == (
        78, f'midatagram: {path}:3: AttributeError: midatagram has no {written}; did you mean "{meant}"?\n')


###############################################################################
# Options, replies sent otherwise, commands replaced
###############################################################################

OPTIONS = '''
@mi.command(limit=mi.integer(1, 9))
def dump(ctx, table, *users, limit=5, deep=None):
    """Dump."""
    return {"table": table, "users": list(users), "limit": limit, "deep": deep}
'''


@pytest.mark.parametrize("text, params, expected", [
    (b"t\n", {"table": "t"}, {"limit": 5, "deep": None}), (b"t\nlimit::7\n", {"table": "t", "limit": 7}, {"limit": 7}),
    (b"deep::x\nt\nlimit:: 7\na\nb\n", {"users": ["a", "b"], "limit": "7", "table": "t", "deep": "x"},
     {"users": ["a", "b"], "limit": 7, "deep": "x"}), (b"table::t\n", ["t"], {"limit": 5}),
    (b"t\ndeep::1\n", {"deep": 1, "table": "t"}, {"deep": "1"})])
def test_options_are_given_by_name_in_both_dialects(trial, text, params, expected):
    one = trial('loadmodule "options.so"', options=OPTIONS)
    whole = {"table": "t", "users": [], "limit": 5, "deep": None, **expected}
    assert json.loads(one.ask(rpc("dump", params)))["result"] == whole
    assert one.ask(b":dump:\n" + text) == mi.encode(mi.write_text(mi.Reply(nodes=mi.json_nodes(whole))))


def test_a_trial_logs_what_a_start_warns_of(caplog):
    with mi.Trial('loadmodule "helo.so"'):
        assert 'trial:1: module helo has no plug-in here, passed over; did you mean "hello"?' in caplog.text


def test_a_file_that_is_not_shared_is_named():
    with pytest.raises(mi.ConfigError, match=r'^shared\("nope"\): nope.py is needed in .*plugins$'):
        mi.shared("nope")


@pytest.mark.parametrize("text, params, wrong", [
    (b"t\nlimit::10\n", {"table": "t", "limit": 10}, "400 limit takes an integer from 1 to 9"),
    (b"limit::7\n", {"limit": 7}, None),
    (b"t\nlimi::7\n", None, '400 no option "limi"; did you mean "limit"?')])
def test_options_that_are_wrong(trial, text, params, wrong):
    one = trial('loadmodule "options.so"', options=OPTIONS)
    assert one.ask(b":dump:\n" + text) == f"{wrong or '400 Too few or too many arguments'}\n\n".encode()
    if params:
        error = json.loads(one.ask(rpc("dump", params)))["error"]
        assert (f"{error['code']} {error['message']}" == wrong) if wrong else error["code"] == -32602
    assert b"dump TABLE [USERS...] [limit=LIMIT] [deep=DEEP]" in one.ask(b":help:\ndump\n")


SENT = '''
@mi.command(pure=True)
def twice(ctx):
    """Reply twice."""
    return mi.Reply(nodes=[mi.Node("a", "b")], send=lambda written: [(0, written), (0.5, written[:6])])

@mi.command
def fails(ctx):
    """Fail while it is sent."""
    return mi.Reply(send=lambda written: 1 / 0)

@mi.around("uptime", "nothing")
def instead(ctx, request, proceed):
    return mi.Reply(486, "Busy")
'''


def test_a_reply_may_be_sent_otherwise(trial):
    one = trial('loadmodule "sent.so"', sent=SENT)
    for _ in range(4):  # it is not cached
        assert one.answer(b":twice:\n").datagrams == [(0, b"200 OK\na:: b\n\n"), (0.5, b"200 OK")]
    assert one.ask(b":fails:\n") == b"500 command failed\n"
    assert one.answer(b'{"jsonrpc":"2.0","method":"twice"}').datagrams == []
    assert json.loads(one.ask(b"[%b,%b]" % (rpc("twice"), rpc("pwd"))))[0]["result"] == {"a": "b"}


def test_a_function_around_may_return_a_reply(trial):
    one = trial('loadmodule "sent.so"', sent=SENT)
    for _ in range(3):
        assert one.ask(b":uptime:\n") == b"486 Busy\n\n"
        assert json.loads(one.ask(rpc("uptime")))["error"] == {"code": 486, "message": "Busy"}
    assert one.answer(b":uptime:\n").exchanges[0].code == 486
    assert one.answer(b'{"jsonrpc":"2.0","method":"uptime"}').datagrams == []


WITHIN = '''
@mi.around("%s")
def instead(ctx, request, proceed):
    return mi.Reply(486, "Busy")
'''


@pytest.mark.parametrize("imitated", ["midatagram", "3.4", "4.0"])
@pytest.mark.parametrize("named", ["ul_dump", "usrloc:dump"])
@pytest.mark.parametrize("asked", ["ul_dump", "usrloc:dump"])
def test_a_function_around_holds_under_all_names_of_a_command(trial, imitated, named, asked):
    one = trial(f'modparam("midatagram", "imitate", "{imitated}")\nloadmodule "usrloc.so"\nloadmodule "within.so"',
                within=WITHIN % named)
    for _ in range(3):
        assert json.loads(one.ask(rpc(asked)))["error"]["code"] == 486
    assert "result" in json.loads(one.ask(rpc("version")))


REPLACING = '''
@mi.command("uptime", replace=True)
def other(ctx):
    """Ours."""
    return mi.Reply(200, "Ours")
'''


def test_a_command_may_replace_one_but_not_two(trial):
    assert trial('loadmodule "one.so"', one=REPLACING).ask(b":uptime:\n") == b"200 Ours\n\n"
    with pytest.raises(mi.ConfigError, match="is there already"):
        trial('loadmodule "one.so"\nloadmodule "two.so"', one=REPLACING, two=REPLACING)


CACHED = '''
def note(ctx, trace):
    """Count; every third is not to be sent as it is."""
    count = ctx.store.change("noted", "count", lambda count: str(int(count or 0) + 1))
    assert trace.exchange.reply and trace.requested_s <= trace.replied_s and trace.client
    return int(count) % 3 != 0

@mi.around("get_statistics", cached=note)
def hide(ctx, request, proceed):
    """Say so where it is asked."""
    return proceed()._replace(datagrams=[(0, b"asked")])
'''


def test_cached_replies_pass_a_function_that_lets_them(start, folder):
    (folder / "cached.py").write_text(f"import midatagram as mi\n{CACHED}")
    server = start('loadmodule "cached.so"', "-p", str(folder))
    client, request = server.client(), b":get_statistics:\nrequests\n"
    replies = [client.ask(request)[:5] for _ in range(12)]
    assert replies[:2] == [b"asked"] * 2 and replies[3:].count(b"asked") == 3 and replies[3:].count(b"200 O") == 6, replies
    assert client.ask(b":pwd:\n").startswith(b"200 OK\n")


WAITS = '''
import gevent.event

@mi.around("uptime")
def wait(ctx, request, proceed):
    """Send when `go` says so."""
    return proceed()._replace(datagrams=[(GO.wait, b"now")])

GO = gevent.event.Event()

@mi.command
def go(ctx):
    """Let them go."""
    GO.set()
    return mi.Reply()
'''


def test_a_reply_may_wait_without_a_worker(start, folder):
    (folder / "waits.py").write_text(f"import midatagram as mi\n{WAITS}")
    server = start('modparam("midatagram", "pool_size", 2)\nloadmodule "waits.so"', "-p", str(folder))
    clients = [server.client() for _ in range(8)]
    for client in clients:
        client.send(b":uptime:\n")
    assert clients[0].receive(0.2) is None
    assert server.ask(b":go:\n") == b"200 OK\n\n"
    assert [client.receive() for client in clients] == [b"now"] * 8


def test_the_clocks_of_the_store_can_be_moved(trial):
    store = trial("").server.store
    now_s, time_s = store.now_s(), store.time_s()
    store.put("space", "key", "value", 60)
    store.move_clock(59)
    assert store.get("space", "key") == "value" and 59 <= store.now_s() - now_s < 60 and 59 <= store.time_s() - time_s < 60
    store.move_clock(60)
    assert store.get("space", "key") is None and store.items("space") == []
    assert store.spaces() == ["space"]
