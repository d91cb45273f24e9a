"""Files of canned replies: cases that apply sometimes, templates, whole datagrams, statistics, events, and mistakes in them."""

import json
import re
import threading
import time

import pytest
from conftest import run, wait_for

import midatagram as mi

THREE = 'modparam("mi_datagram", "children_count", 3)\nloadmodule "mine.so"\n'
OK = b"200 OK\n\n"


def rpc(method, params=None, number=1):
    """A JSON-RPC request; one without a number is a notification."""
    request = {"jsonrpc": "2.0", "method": method, "id": number, "params": params}
    return json.dumps({name: value for name, value in request.items() if value is not None}).encode()


@pytest.fixture
def canned(start, tmp_path):
    """Start three children with a file of canned replies: canned(file, configuration)."""
    def start_one(file, configuration=""):
        (tmp_path / "mine.conf").write_text(file)
        return start(THREE + configuration, "-p", str(tmp_path))

    return start_one


###############################################################################
# Cases that apply sometimes
###############################################################################


def test_a_row_of_cases_is_a_sequence(canned):
    """Counted over all children, and anew after a reload."""
    server = canned("""
[seq]
    [[first]]
    times = 1
    reply = one
    [[then]]
    times = 2
    code = 404
    reason = Gone
    [[else]]
    reply = else
""")
    expected = [b"200 OK\none\n\n", b"404 Gone\n\n", b"404 Gone\n\n", b"200 OK\nelse\n\n", b"200 OK\nelse\n\n"]
    assert [server.ask(b":seq:\n") for _ in range(5)] == expected
    server.signal(1)
    server.wait_log("ready:", times=2)
    assert [server.ask(b":seq:\n") for _ in range(5)] == expected


@pytest.mark.parametrize("options, expected", [
    ("every = 3", [3, 6, 9]), ("after = 8", [9, 10]), ("every = 2\nafter = 3\ntimes = 2", [5, 7]), ("probability = 0", []),
    ("probability = 1", list(range(1, 11)))])
def test_when_a_case_applies(canned, options, expected):
    server = canned(f"[x]\nreply = usual\n[[rare]]\n{options}\nreply = rare\n")
    assert [nth for nth in range(1, 11) if server.ask(b":x:\n") == b"200 OK\nrare\n\n"] == expected


def test_probability_draws_the_same_in_every_run(canned, start):
    server = canned("[x]\nreply = usual\n[[rare]]\nprobability = 0.5\nreply = rare\n")
    runs = [[server.ask(b":x:\n") for _ in range(40)]]
    server.signal(1)
    server.wait_log("ready:", times=2)
    runs.append([server.ask(b":x:\n") for _ in range(40)])
    assert runs[0] == runs[1] and 8 < runs[0].count(b"200 OK\nrare\n\n") < 32


def test_three_children_count_as_one(canned):
    server, met = canned("[x]\n[[few]]\ntimes = 10\nreply = few\n[[else]]\n"), []

    def ask():
        client = server.client()
        met.extend(client.ask(b":x:\n") for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met.count(b"200 OK\nfew\n\n") == 10 and met.count(OK) == 90


def test_no_case_applies(canned):
    server = canned("[x]\n[[one]]\narguments = 'a'\ntimes = 1\n")
    assert [server.ask(b":x:\na\n") for _ in range(2)] == [OK, b"500 No case applies\n\n"]
    assert server.ask(b":x:\nb\n") == b"400 Bad parameter\n\n"


@pytest.mark.parametrize("action, expected", [
    ("drop", [None]), ("delay\nms = 100..200", [b"200 OK\nhello\n\n"]), ("empty", [b""]), ("cut\nbytes = 5", [b"200 O"]),
    ("duplicate", [b"200 OK\nhello\n\n"] * 2), ("late\nms = 50", [b"200 OK\nhello\n\n"] * 2), ("stall", [None]), ("kill", [None]),
    ("error\ncode = 503\nreason = No", [b"503 No\nhello\n\n"])])
def test_actions(canned, action, expected):
    server = canned(f"[x]\nreply = hello\n[[odd]]\nreply = hello\ntimes = 1\naction = {action}\n")
    client = server.client()
    client.send(b":x:\n")
    assert [client.receive(2 if expected[0] is not None else 0.3) for _ in expected] == expected
    assert wait_for(lambda: server.ask(b":x:\n", 0.5)) == b"200 OK\nhello\n\n"


def test_garbage(canned):
    server = canned("[x]\nreply = hello\naction = garbage\n")
    one, two = server.ask(b":x:\n"), server.ask(b":x:\n")
    assert len(one) == len(two) == 14 and one != two


def test_delay_may_be_a_range(canned):
    server, times = canned("[x]\ndelay = 50..150\n"), []
    for _ in range(5):
        began_s = time.monotonic()
        assert server.ask(b":x:\n") == OK
        times.append(time.monotonic() - began_s)
    assert min(times) >= 0.05 and max(times) - min(times) > 0.005


def test_the_lab_and_canned_replies_together(canned):
    """Whichever is loaded first, the journal says what became of a reply; a seed and a reset hold for cases too."""
    server = canned("[x]\nreply = hello\naction = drop\n[y]\n[[one]]\ntimes = 1\n", 'loadmodule "lab.so"')
    assert server.ask(b":x:\n", 0.2) is None
    journal = json.loads(server.ask(rpc("lab_journal")))["result"]["requests"]
    assert [(one["command"], one["outcome"], one["code"]) for one in journal] == [("x", "drop", 200)]
    assert [server.ask(b":y:\n") for _ in range(2)] == [OK, b"500 No case applies\n\n"]
    assert server.ask(b":lab_reset:\n") == OK
    assert server.ask(b":y:\n") == OK


###############################################################################
# Templates, whole datagrams
###############################################################################


def test_templates(canned):
    server = canned("""
[t]
template = yes
names = table, aor
reason = "for ${aor}"
reply = '''
first:: ${1} ${table} ${3}.
count:: ${counter}
literal:: $${1} $x ${now}
in an hour:: ${now+3600}
date:: ${date}
random:: ${random 1..9}
'''
[plain]
reply = ${1} ${now} ${nothing at all}
""")
    for nth in (1, 2):
        reply = server.ask(b":t:\nlocation\nalice\n").decode()
        date = r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}"
        found = re.fullmatch(r"200 for alice\nfirst:: location location \.\ncount:: (\d)\nliteral:: \$\{1\} \$x (\d+)\n"
                             rf"in an hour:: (\d+)\ndate:: {date}\nrandom:: [1-9]\n\n", reply)
        assert found, reply
        assert int(found[1]) == nth and int(found[3]) - int(found[2]) == 3600 and abs(int(found[2]) - time.time()) < 5
    assert server.ask(b":plain:\n1\n") == b"200 OK\n${1} ${now} ${nothing at all}\n\n"


def test_templates_of_json(canned):
    server = canned("""
[t]
template = yes
json = '{"user": "${1}", "count": ${counter}, "named": "${who}"}'
""")
    tricky = 'a"b\\c\n'
    assert json.loads(server.ask(rpc("t", [tricky])))["result"] == {"user": tricky, "count": 1, "named": ""}
    assert json.loads(server.ask(rpc("t", ["x"])))["result"]["count"] == 2


def test_null_is_a_result(canned):
    server = canned("[n]\n[[x]]\narguments = x\ncode = 404\nreason = Gone\njson = null\n[[all]]\njson = null\n")
    assert server.ask(rpc("n")) == b'{"jsonrpc":"2.0","result":null,"id":1}'
    assert json.loads(server.ask(rpc("n", ["x"])))["error"] == {"code": 404, "message": "Gone"}
    assert server.ask(b":n:\n") == b"200 OK\n\n"


def test_arguments_by_name_fill_a_template(canned):
    server = canned("[t]\ntemplate = yes\nreply = hello ${who}\n")
    assert server.ask(b":t:\nwho::bob\n") == b"200 OK\nhello bob\n\n"


def test_the_clock_of_the_lab_moves_templates(canned):
    server = canned("[t]\ntemplate = yes\nreply = ${now}\n", 'loadmodule "lab.so"')
    server.ask(b":lab_clock:\n86400\n")
    assert abs(int(server.ask(b":t:\n").split()[2]) - time.time() - 86400) < 5


def test_raw_is_the_whole_datagram(canned):
    server = canned(r"""
[bytes]
raw = '200 OK\r\n\x00\xff\\x41\tend'
[nothing]
raw = ''
[json]
template = yes
raw = '{"jsonrpc": "2.0", "id": ${id}, "result": "${1}", }'
[several]
raw = '''200 OK
a:: b
'''
""")
    for _ in range(3):
        assert server.ask(b":bytes:\n") == b"200 OK\r\n\x00\xff\\x41\tend"
        assert server.ask(rpc("bytes")) == b"200 OK\r\n\x00\xff\\x41\tend"
        assert server.ask(b":nothing:\n") == b""
        assert server.ask(b":several:\n") == b"200 OK\na:: b\n"
        assert server.ask(rpc("json", ['"'], "x")) == b'{"jsonrpc": "2.0", "id": "x", "result": "\\"", }'
    assert server.ask(rpc("bytes", number=None), 0.2) is None


###############################################################################
# Arguments and errors
###############################################################################


def test_codes_may_be_negative_and_errors_stay_errors(canned):
    server = canned("""
[minus]
code = -32099
reason = Odd
[error]
code = 404
reason = "Not found, sorry"
json = '{"why": "gone"}'
reply = text
""")
    assert json.loads(server.ask(rpc("minus")))["error"] == {"code": -32099, "message": "Odd"}
    assert json.loads(server.ask(rpc("error")))["error"] == {"code": 404, "message": "Not found, sorry", "data": {"why": "gone"}}
    assert server.ask(b":error:\n") == b"404 Not found, sorry\ntext\n\n"


def test_named_parameters_match_by_name(canned):
    server = canned("[show]\nhelp = Shows.\nnames = table, aor\n[[alice]]\narguments = 'location', 'alice'\nreply = alice\n"
                    "[[all]]\narguments = 'location'\nreply = all\n")
    alice = b"200 OK\nalice\n\n"
    assert json.loads(server.ask(rpc("show", {"aor": "alice", "table": "location"})))["result"] == ["alice"]
    assert json.loads(server.ask(rpc("show", ["location", "alice"])))["result"] == ["alice"]
    assert json.loads(server.ask(rpc("show", {"table": "location"})))["result"] == ["all"]
    assert json.loads(server.ask(rpc("show", {"aor": "alice"})))["error"]["code"] == -32602
    assert json.loads(server.ask(rpc("show", {"user": "alice", "table": "location"})))["error"]["code"] == -32602
    assert server.ask(b":show:\naor::alice\ntable::location\n") == server.ask(b":show:\nlocation\nalice\n") == alice
    assert server.ask(b":show:\nlocation\n") == b"200 OK\nall\n\n"
    assert server.ask(b":help:\nshow\n").startswith(b"200 OK\nHelp:: show [TABLE] [AOR] - Shows.\n")


def test_no_arguments_has_a_form_of_its_own(canned):
    server = canned("[x]\n[[none]]\nno_arguments = yes\nreply = none\n[[one]]\narguments = '.*'\nreply = one\n")
    assert server.ask(b":x:\n") == b"200 OK\nnone\n\n"
    assert server.ask(b':x:\n""\n') == b"200 OK\none\n\n"


def test_a_command_of_the_core_is_replaced_if_that_is_meant(canned, start, tmp_path):
    server = canned("[version]\nreplace = yes\nreply = Server:: OpenSIPS (2.4.11 (x86_64/linux))\n[hello]\nreplace = yes\n"
                    "reply = mine\n", 'loadmodule "hello.so"')
    assert server.ask(b":version:\n") == b"200 OK\nServer:: OpenSIPS (2.4.11 (x86_64/linux))\n\n"
    assert json.loads(server.ask(rpc("version")))["result"] == {"Server": "OpenSIPS (2.4.11 (x86_64/linux))"}
    assert server.ask(b":hello:\n") == b"200 OK\nmine\n\n"  # though its module is loaded later
    (tmp_path / "mine.conf").write_text("[version]\nreply = x\n")
    done = run("-c", "-f", server.config_path, "-p", tmp_path)
    assert done.returncode == 78 and 'command "version" is there already' in done.stderr


###############################################################################
# Statistics and events
###############################################################################

STATISTICS = """
[dlg_list]
reply = '''
dialog:: 1
	state:: 4
dialog:: 2
dialog:: 3
'''
[:statistics]
dialog:active_dialogs = 42
dialog:early_dialogs = count dlg_list
dialog:processed_dialogs = rate 1000
load:walking = walk 10..20
own = -7
"""


def test_statistics(canned):
    server = canned(STATISTICS)
    assert server.statistic("active_dialogs") == 42
    assert server.statistic("early_dialogs") == 3 and server.statistic("own") == -7
    values = {server.statistic("walking") for _ in range(20)}
    assert values and all(10 <= value <= 20 for value in values)
    first = wait_for(lambda: server.statistic("processed_dialogs"))
    wait_for(lambda: server.statistic("processed_dialogs") >= first + 300)
    assert server.ask(b":reset_statistics:\nprocessed_dialogs\nactive_dialogs\n") == OK
    assert server.statistic("processed_dialogs") < first + 300 and server.statistic("active_dialogs") == 42
    listed = server.ask(b":list_statistics:\ndialog:\n").decode()
    assert "dialog:processed_dialogs:: incremental\n" in listed and "dialog:active_dialogs:: non-incremental\n" in listed
    shown = json.loads(server.ask(rpc("get_statistics", [["dialog:"]])))["result"]
    assert shown["dialog:active_dialogs"] == 42 and shown["dialog:early_dialogs"] == 3
    assert b"mine:own:: -7\n" in server.ask(b":get_statistics:\nall\n")


def test_events(canned):
    server = canned("""
[x]
[:events]
E_TICK = "number=1", "text=a b"
every = 0.2
    [[after x]]
    E_X = "done=yes"
    E_PLAIN = ""
    on = x, pwd
""")
    ticks, others = server.client(), server.client()
    for client, event in ((ticks, "E_TICK"), (others, "E_X"), (others, "E_PLAIN")):
        assert server.ask(f":event_subscribe:\n{event}\nunix:{client.path}\n".encode()) == OK
    assert ticks.receive() == ticks.receive() == mi.write_event("E_TICK", {"number": "1", "text": "a b"}, "text")
    for request in (b":x:\n", b":pwd:\n", rpc("x")):
        server.ask(request)
        assert {others.receive(), others.receive()} == {
            mi.write_event("E_X", {"done": "yes"}, "text"), mi.write_event("E_PLAIN", {}, "text")}
    server.ask(b":version:\n")
    assert others.receive(0.3) is None
    assert b"E_TICK" in server.ask(b":events_list:\n")


###############################################################################
# Mistakes
###############################################################################


@pytest.mark.parametrize("file, line, wrong", [
    ("[x]\nreason = Not found, sorry\n", 2, "a value with a comma stands in quotes"),
    ("[x]\nhelp = One, two\n", 2, "a value with a comma stands in quotes"),
    ("[x]\ntimes = 0\n", 2, "x: times takes an integer of at least 1"), ("[x]\nevery = x\n", 2, "every takes an integer"),
    ("[x]\nprobability = 1.5\n", 2, "probability takes a number from 0 to 1"),
    ("[x]\naction = dorp\n", 2, 'action takes one of .*; did you mean "drop"?'),
    ("[x]\naction = cut\n", 2, "action cut needs bytes"),
    ("[x]\naction = late\n", 2, "action late needs ms"), ("[x]\ndelay = 5..1\n", 2, "delay takes an integer"),
    ("[x]\ndelay = soon\n", 2, "delay takes an integer"), ("[x]\ncode = 1.5\n", 2, "the form is code = NUMBER"),
    ("[x]\ntemplate = yes\nreply = ${random 1}\n", 3, r"reply has \$\{random 1\}, which is none of"),
    ("[x]\ntemplate = maybe\n", 2, "template"), ("[x]\ntemplate = yes\njson = '{${1}'\n", 3, "not JSON"),
    ("[x]\nnames = a b\n", 2, "names: "), ("[x]\n[[case]]\nnames = a\n", 3, '"names" is no key of a section'),
    ("[:statistic]\nx = 1\n", 1, '":statistic" is none of :statistics, :events'),
    ("[:statistics]\nx = many\n", 2, "x: the form is a number, or"),
    ("[:statistics]\nx = rate -1\n", 2, "takes a number above 0"),
    ("[:statistics]\nx = walk 5..1\n", 2, "x: takes an integer"), ("[:events]\nE_X = a=1\n", 2, "need either every"),
    ("[:events]\nE_X = a=1\nevery = 1\non = x\n", 2, "need either every"),
    ("[:events]\nE_X = a\nevery = 1\n", 2, "the form is E_NAME"),
    ("[:events]\nevery = 0\nE_X = a=1\n", 2, "every takes a number above 0"),
    ("[:events]\nevery = 1\nX = a=1\n", 3, "the form is E_NAME")])
def test_mistakes(tmp_path, file, line, wrong):
    (tmp_path / "mine.conf").write_text(file)
    (tmp_path / "test.conf").write_text('loadmodule "mine.so"\n')
    done = run("-c", "-f", tmp_path / "test.conf", "-s", tmp_path / "x.sock", "-p", tmp_path)
    assert done.returncode == 78
    assert re.match(rf"midatagram: {tmp_path}/mine.conf:{line}: .*{wrong}", done.stderr), done.stderr


@pytest.mark.parametrize("order", ["mine other", "other mine"])
def test_a_file_may_give_way_to_other_modules(tmp_path, order):
    """Of commands, statistics and events that both have theirs stay, whatever order they are loaded in."""
    (tmp_path / "mine.conf").write_text("gives_way = yes\n[both]\nreply = canned\n[alone]\nreply = canned\n[:statistics]\n"
                                        "sip:calls = rate 10000\nsip:users = 7\nsip:other = rate 10000\n"
                                        '[:events]\n[[e]]\nevery = 100\nE_BOTH = "a=1"\n')
    (tmp_path / "other.py").write_text("""
import midatagram as mi
STATS = [mi.Stat("calls", "calls", "sip"), mi.Stat("users", "users", "sip", read=lambda: 3)]
EVENTS = [mi.Event("E_BOTH", "both")]
@mi.command
def both(ctx):
    "Both."
    return ["ours"]
""")
    lines = "".join(f'loadmodule "{name}.so"\n' for name in order.split())
    with mi.Trial(lines, str(tmp_path)) as trial:
        assert trial.ask(b":both:\n") == b"200 OK\nours\n\n" and trial.ask(b":alone:\n") == b"200 OK\ncanned\n\n"
        module = trial.server.registry.modules_by_name["mine"]
        count_up = next(job for job in module.every if job.__name__ == "count_up")
        count_up(mi.Context(module))
        time.sleep(0.01)
        count_up(mi.Context(module))
        counted = json.loads(trial.ask(rpc("get_statistics", [["sip:"]])))["result"]
        assert (counted["sip:calls"], counted["sip:users"]) == (0, 3) and counted["sip:other"] > 0
        assert list(trial.server.registry.events).count("E_BOTH") == 1


def test_a_file_that_does_not_give_way_may_not_have_what_others_have(tmp_path):
    (tmp_path / "mine.conf").write_text("gives_way = no\n[pwd]\nreply = canned\n")
    with pytest.raises(mi.ConfigError, match="is there already"):
        mi.Trial('loadmodule "mine.so"', str(tmp_path))
    (tmp_path / "mine.conf").write_text("gives_way = perhaps\n[a]\nreply = canned\n")
    with pytest.raises(mi.ConfigError, match="gives_way takes yes or no"):
        mi.Trial('loadmodule "mine.so"', str(tmp_path))
