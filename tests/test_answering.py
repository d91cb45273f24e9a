"""From bytes to bytes in one process: what is remembered must not show, the limit to the byte, and what errors become."""

import collections
import enum
import gc
import json
import logging
import time
import tracemalloc

import pytest

import midatagram as mi

SOURCE = '''
import midatagram as mi
from types import SimpleNamespace

@mi.command(pure=True)
def same(ctx, *values):
    "Depends on its arguments alone."
    return mi.Reply(200, "OK", [mi.Node("v", "|".join(values), (), [mi.Node("kid", len(values))])])

@mi.command(pure=True)
def percent(ctx, *values):
    "With what a template could take for its own."
    return mi.Reply(299, "100% of %s", [mi.Node("%d", "|".join(values), (("%(a)s", "%%"),))])

@mi.command
def size(ctx, bytes):
    "So many bytes, the empty line included."
    return mi.Reply(nodes=[mi.Node(None, "x" * (int(bytes) - 9))])

@mi.command(pure=True)
def pure_size(ctx, bytes):
    "The same, kept."
    return mi.Reply(nodes=[mi.Node(None, "x" * (int(bytes) - 9))])

numbers = iter(range(1000))

@mi.command
def ticks(ctx):
    "A live value."
    return mi.Reply(nodes=[mi.Node("tick", mi.LIVE)], live=lambda: (next(numbers),))

@mi.command(input=False)
def ticks_unread(ctx):
    "The same value each time, read each time."
    return mi.Reply(nodes=[mi.Node("tick", mi.LIVE)], live=lambda: (0,))

@mi.command
def grows(ctx):
    "A live value that becomes too long for a reply, and short again."
    return mi.Reply(nodes=[mi.Node(None, mi.LIVE)], live=lambda: ("x" * ctx.param("size"),))

counted = [0]

def count():
    counted[0] += 1
    return counted

@mi.command
def listed(ctx):
    "A live value in a list, which is always the same list."
    return mi.Reply(nodes=[mi.Node("tick", mi.LIVE)], live=count)

@mi.command
def nothing_live(ctx):
    "What should be live is not there."
    return mi.Reply(nodes=[mi.Node("tick", mi.LIVE)], live=lambda: None)

@mi.command
def wide(ctx, number):
    "Another live reply of 60,000 bytes each time."
    return mi.Reply(nodes=[mi.Node("x" * 60000, mi.LIVE)], live=lambda: (number,))

@mi.command(input=False)
def blind(ctx):
    "Reads nothing."
    return mi.Reply(nodes=[mi.Node("arguments", len(ctx.request.arguments))])

@mi.command(number=mi.integer(1, 9))
def bound(ctx, number, optional="none", *rest):
    "Show what came."
    return mi.Reply(nodes=[mi.Node(None, repr((number, optional, rest))), mi.Node(None, repr(ctx.request.arguments))])

@mi.command(json=mi.JsonForm(recipes=[("number",), ("number", "rest"), ("rest", "number", "optional")]), number=mi.integer())
def arranged(ctx, number, optional="none", *rest):
    "Show what came, by other recipes than the signature's."
    return mi.Reply(nodes=[mi.Node(None, repr((number, optional, rest)))])

@mi.command(json=mi.JsonForm(raw=("value",)))
def raw(ctx, value):
    "Show a JSON value as it is, and as text."
    return mi.Reply(result=[value, *ctx.request.values])

@mi.command
def pair(ctx, first, second, *rest):
    "Show what came: two, and what is more."
    return mi.Reply(nodes=[mi.Node(None, repr((first, second, rest)))])

@mi.command(rest=mi.integer())
def total(ctx, *rest):
    "Add numbers."
    return mi.Reply(nodes=[mi.Node(None, sum(rest))])

@mi.command
def refuses(ctx, code, reason):
    "Raise an Error."
    raise mi.Error(int(code), reason)

BUSY = mi.Error(486, "Busy")

@mi.command
def busy(ctx, *values):
    "Raise the same Error each time."
    raise BUSY

@mi.command
def refuses_alike(ctx):
    "Raise the same Error each time."
    raise mi.WRONG_COUNT

@mi.command
def handed_on(ctx):
    "Answer anew, and twice more without being called."
    left = [b"again", b"again"]
    return mi.Answer([(0, b"anew")], [], lambda data, caller, request_id: mi.Answer([(0, left.pop())], []) if left else None)

@mi.command
def later(ctx, what="Reply"):
    "Answer with something that has get()."
    def get():
        if what == "Reply":
            return mi.Reply(202, "Accepted")
        if what == "Error":
            raise mi.Error(480, "Not now")
        if what == "Failed":
            raise mi.Failed("no")
        return what
    return SimpleNamespace(get=get)

@mi.command
def exits(ctx):
    "Raise what no handler should."
    raise SystemExit(3)
'''
FAILED = b"500 command failed\n"


@pytest.fixture
def answer(tmp_path):
    """A function that answers bytes from the commands above, as one child would."""
    path = tmp_path / "answering.py"
    path.write_text(SOURCE)
    errors = []
    answers = mi.Answers(mi.Registry([mi.load_plugin(str(path))]), logging.getLogger("test"), failed=lambda: errors.append(1))

    def answer(data):
        cached = answers.cache.young.get(data)
        cached, reply = (cached, cached.now()) if cached else answers.at_once(data)
        return b"".join(written for _, written in answers.answer(data, None, cached).datagrams) if reply is None else reply

    answer.answers, answer.errors = answers, errors
    return answer


@pytest.mark.parametrize("request_, reply", [
    (b"", b"500 command not available\n"), (b"no MI", b"500 command not available\n"),
    (b":same:", b"500 command not available\n"),
    (b":Same:\n", b"500 command not available\n"), (b":same:\n\"", b"400 parse_error\n"),
    (b":nosuch:\n\"", b"500 command not available\n"),
    (b":blind:\n\"", b"200 OK\narguments:: 0\n\n"), (b":blind:\na\n", b"200 OK\narguments:: 0\n\n"),
    (b":bound:\n", b"400 Too few or too many arguments\n\n"), (b":bound:\nx\n", b"400 Bad parameter\n\n"),
    (b":bound:\n\"x\n", b"400 parse_error\n"),
    (b":bound:\nname::7\n", b"200 OK\n(7, 'none', ())\n(('name', '7'),)\n\n"),
    (b":bound:\n0x9\nn::\nr::s\n\"\"", b"200 OK\n(9, '', ('s', ''))\n((None, '0x9'), ('n', None), ('r', 's'), (None, ''))\n\n"),
    (b":total:\n1\n0x10\n-3\n", b"200 OK\n14\n\n"), (b":total:\n1\nx\n", b"400 Bad parameter\n\n"),
    (b":total:\n", b"200 OK\n0\n\n"),
    (b":refuses:\n404\nAOR not found\n", b"404 AOR not found\n\n"), (b":refuses:\n600\n\"\"\n", b"600 \n\n"),
    (b":later:\n", b"202 Accepted\n\n"), (b":later:\nError\n", b"480 Not now\n\n"), (b":later:\nFailed\n", FAILED),
    (b":later:\nnonsense\n", FAILED), (b":exits:\n", FAILED),
    (b":percent:\n%s\n%\n", b"299 100% of %s\n%d:: %s|% %(a)s=%%\n\n"),
])
def test_answers(answer, request_, reply):
    """Four times: new, remembered, from memory, from memory."""
    assert [answer(request_) for _ in range(4)] == [reply] * 4
    assert len(answer.errors) == (4 if reply.count(b"\n") == 1 else 0)


def test_the_same_is_answered_when_remembered(answer):
    requests = [b":same:\n", b":same:\na\n", b":same:\na\nb\n", b":same:\n a \nb", b':same:\n"%s"\n', b":same:\n%d\n"]
    first = [answer(data) for data in requests]
    assert first[1] == b"200 OK\nv:: a\n\tkid:: 1\n\n" and first[4] == b"200 OK\nv:: %s\n\tkid:: 1\n\n"
    for _ in range(4):
        assert [answer(data) for data in requests] == first
    assert len(answer.answers.cache) == len(requests)


@pytest.mark.parametrize("command", [b"ticks", b"listed"])
def test_live_values_are_read_each_time(answer, command):
    found = [int(answer(b":%s:\n" % command).split()[-1]) for _ in range(6)]
    assert found == sorted(set(found))


def test_a_kept_poll_shows_what_processes_count_that_come_later():
    counters = mi.Counters()
    places = [counters.column(group, name) for group, name in (("one", "first"), ("other", "x"), ("one", "last"))]
    live = mi.Reader(counters, (places[0], places[2]))
    shapes = [mi.Shape(mi.Reply(live=live), f"{name} %d %d") for name in "ab"]
    for row, sums in ((2, b"1 2"), (9, b"2 4"), (3, b"3 6")):
        counted = counters.use(row)
        assert [counted[place] for place in places] == [0, 0, 0]
        for place, by in zip(places, (1, 70, 2)):
            counted[place] += by
        assert [shape.now() for shape in shapes for _ in range(2)] == [b"a " + sums] * 2 + [b"b " + sums] * 2
    counters.reset(places[2])
    assert shapes[0].now() == b"a 3 0" and live() == (3, 0)


def test_a_plugins_live_object_may_have_any_attributes():
    class Odd:
        look = sums = None

        def __call__(self):
            return (7,)

    assert mi.Shape(mi.Reply(live=Odd()), "%d").now() == b"7"


@pytest.mark.parametrize("request_, reply", [
    (b":nothing_live:\n", b"500 command failed\n"), (b'{"jsonrpc":"2.0","method":"nothing_live","id":1}', b"returned null"),
])
def test_a_live_reply_without_values_is_refused(answer, request_, reply):
    assert all(reply in answer(request_) for _ in range(4))


def test_a_kept_reply_that_grows_too_long_is_refused_until_it_fits(answer):
    sizes = []
    for size in (10, 65448, 65449, 65449, 10):
        answer.answers.commands["grows"].module.settings["size"] = size
        sizes.append(len(answer(b":grows:\n")))
    refusal = len(b"500 reply of 65458 bytes exceeds 65457\n")
    assert sizes == [19, mi.LIMIT, refusal, refusal, 19]


@pytest.mark.parametrize("command", [b"size", b"pure_size"])
def test_the_limit_to_the_byte(answer, command):
    for _ in range(4):
        assert len(answer(b":%s:\n%d\n" % (command, mi.LIMIT))) == mi.LIMIT == 65457
        assert answer(b":%s:\n%d\n" % (command, mi.LIMIT + 1)) == b"500 reply of 65458 bytes exceeds 65457\n"


@pytest.mark.parametrize("request_of", [
    lambda number: b":same:\n%d\n" % number, lambda number: b":same:\n" + b"%d\n" % number * 800,
    lambda number: b":wide:\n%d\n" % number, lambda number: (JSON % ("wide", f'["{number}"]', 1)).encode(),
    lambda number: (JSON % ("same", json.dumps({"values": [str(number)] * 700}), 7)).encode(),
])
@pytest.mark.parametrize("times", [1, 3])
def test_what_is_cached_is_bounded_in_bytes(answer, request_of, times):
    """Whatever is asked for once or several times, and never again."""
    tracemalloc.start()
    try:
        for number in range(600):
            for _ in range(times):
                answer(request_of(number))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] <= mi.CACHE_BYTES + mi.SEEN_BYTES
    finally:
        tracemalloc.stop()
    assert len(answer.answers.seen) and (times == 1 or len(answer.answers.cache))


@pytest.mark.parametrize("command, reply", [
    (b"size", b"400 Too few or too many arguments\n\n"), (b"total", b"400 Bad parameter\n\n"), (b"busy", b"486 Busy\n\n")])
def test_refusals_leave_nothing_behind(answer, command, reply):
    """Though the same Error is raised each time."""
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(2):
            assert {answer(b":%b:\n%b" % (command, b"x\n" * 1000)) for _ in range(1000)} == {reply}
            sizes.append(tracemalloc.get_traced_memory()[0])
        assert sizes[1] - sizes[0] < 100000
    finally:
        tracemalloc.stop()


def test_what_is_asked_for_again_is_not_forgotten(answer):
    """When the cache is full of requests that came twice and never again, a poller's is still in it."""
    for number in range(30000):
        answer(b":same:\n%d\n" % (number // 2))
        if not number % 100:
            answer(b":pure_size:\n5\n")
    assert answer.answers.cache.get(b":pure_size:\n5\n").shape and len(answer.answers.cache) < 15000


def test_a_memo_gives_bytes_back():
    memo = mi.Memo(64 * mi.ENTRY_BYTES)
    assert memo.keep("large", 1, 64 * mi.ENTRY_BYTES) == 1 and memo.get("large") is None
    for _ in range(1000):
        memo.keep("a", 1, 100)
        memo.forget("a")
    memo.forget("a")
    assert (memo.bytes, len(memo)) == (0, 0)
    for number in range(1000):
        memo.keep(number, number + 1, 0)
        assert len(memo) <= 64 and memo.get(0) == 1
    assert memo.get(999) == 1000 and memo.get(500) is None
    for number in range(1000):
        memo.forget(number)
    assert (memo.bytes, len(memo), memo.sizes) == (0, 0, {})


HARD = [  # datagrams that a pattern or a loop could go back in, or copy again and again: what is repeated between two ends
    (b':same:\n"', b'\\"', b""), (b':same:\n"', b'\\"', b'"'), (b":same:\n", b'"a\\"b"\n', b""), (b":same:\n", b'""\n', b""),
    (b":same:\n", b" ", b""), (b":same:\n", b" ", b"x"), (b":same:\n", b"\n", b""), (b":same:\n", b" \t\n", b"x"),
    (b":same:\n", b":", b""), (b":same:\nn", b"::", b""), (b":same:\n", b"a::", b""), (b":same:\n", b"n::v\n", b""),
    (b":same:\n", b"a\n", b""), (b":same:\n", b'n:: "v"\n', b""), (b":same:\n", b"n ", b'"'), (b":", b":", b""),
    (b":", b"\n:", b""), (b"", b"[", b""), (b"", b"[", b"0"), (b"", b'{"a":', b""), (b"[", b"{},", b"1]"), (b"[", b" ", b"]"),
    (b'["', b"\\u0041", b'"]'), (b'["', b"\\ud83d\\ude00", b""), (b'["', b"\\", b""), (b'{"id":"', b"x", b'"}'),
    (b"{", b'"id":"x', b""), (b"{", b'"id" ', b""), (b'{"id":', b" ", b"1}"), (b"{", b'"a":1,', b'"a":2}'), (b"[", b"9", b"]"),
    (b"\x01", b" ", b"[]"), (b'{"jsonrpc":"2.0","id":1,"method":"same","params":[', b'"a",', b'"b"]}'),
    (b'{"jsonrpc":"2.0","id":1,"method":"same","params":["\x01', b'\\"', b'"]}'),
    (b'{"jsonrpc":"2.0","id":1,"method":"same","params":["\\ud83d\\ude00",', b'"",', b'""]}'),
    (b'{"jsonrpc":"2.0","id":1,"method":"same","x":{"y":"\\ud83d\\ude00",', b'"":0,', b'"":0}}'),
]


@pytest.mark.parametrize("head, repeated, tail", HARD)
def test_a_request_twice_as_long_takes_about_twice_the_time(answer, head, repeated, tail):
    """Up to the largest; where the time grew with the square of the length it would be four times."""
    most = (mi.LIMIT - len(head) - len(tail)) // len(repeated)
    requests = [head + repeated * times + tail for times in (most // 2, most)]

    def cost_s(request):
        began_s = time.process_time()
        answer(request)
        return time.process_time() - began_s

    gc.disable()  # where the collector of a whole test run falls is not what is measured
    try:
        rounds = [list(map(cost_s, requests)) for _ in range(3)]
        while len(rounds) < 30 and ratio(rounds) >= 3:  # the least of many, since other work makes each of them longer
            rounds.append(list(map(cost_s, requests)))
    finally:
        gc.enable()
    assert ratio(rounds) < 3


def ratio(rounds):
    """How many times the least of the first figures the least of the second is."""
    short, long = map(min, zip(*rounds))
    return long / short


HALF = b"x" * (mi.KEPT_REQUEST // 2)


@pytest.mark.parametrize("request_of", [
    lambda number: b":handed_on:\n", lambda number: (JSON % ("handed_on", "[]", number)).encode()])
def test_what_a_command_gives_for_requests_like_the_last_one_is_replaced_when_it_holds_no_more(answer, request_of):
    replies = [answer(request_of(number)) for number in range(9)]
    assert replies == [b"anew", *[b"anew", b"again", b"again"] * 2, b"anew", b"again"]


def test_an_error_that_is_raised_again_and_again_does_not_grow(answer):
    """A traceback would have an entry for each time, with all that its frames refer to."""
    wrong = [b":size:\n", b'{"jsonrpc": "2.0", "method": "size", "id": 1}', b":refuses_alike:\n"]
    for request_ in wrong * 3:
        assert b"Too few or too many" in answer(request_)
        assert mi.WRONG_COUNT.__traceback__ is None


@pytest.mark.parametrize("data", [
    b":same:\n%b%b" % (HALF, HALF), b'{"jsonrpc":"2.0","method":"same","x":"%b","id":1,"y":"%b"}' % (HALF, HALF)])
def test_long_requests_are_not_remembered(answer, data):
    assert answer(data) == answer(data) == answer(data)
    assert not len(answer.answers.cache)


@pytest.mark.parametrize("kind, line", [
    ('command', '@mi.command\ndef same(ctx):\n    "Same."\n    return {}\n'),
    ('statistic', 'STATS = [mi.Stat("same", "Same.", group="both")]'),
    ('event', 'EVENTS = [mi.Event("E_SAME", "Same.")]'),
])
def test_a_name_used_twice_is_refused(tmp_path, kind, line):
    first, second = tmp_path / "one.py", tmp_path / "two.py"
    for path in (first, second):
        path.write_text(f"import midatagram as mi\n\n{line}\n")
    with pytest.raises(mi.ConfigError) as caught:
        mi.Registry([mi.load_plugin(str(first)), mi.load_plugin(str(second))])
    assert (caught.value.path, caught.value.line) == (str(second), 3 if kind == "command" else 0)
    assert f"{kind} " in caught.value.message and "is there already" in caught.value.message
    assert kind != "command" or f"{first}:3" in caught.value.message


JSON = '{"jsonrpc":"2.0","method":"%s","params":%s,"id":%s}'


def failed(code, message, data=""):
    """The member of a JSON-RPC reply that says what is wrong."""
    more = f',"data":"{data}"' if data else ""
    return f'"error":{{"code":{code},"message":"{message}"{more}}}'


def bad_params(data):
    """The member that says what is wrong with the params."""
    return failed(-32602, "Invalid params", data)


NULL = failed(-32000, "Server error", "Command handler returned null")
BY_NAME, BAD_REST = '{"number":5,"optional":"a","rest":%s}', "Bad type for parameter 'rest'"


@pytest.mark.parametrize("method, params, outcome", [
    ("same", '{"values":["a"]}', '"result":{"v":{"v":"a","kid":1}}'), ("same", "[]", '"result":{"v":{"v":"","kid":0}}'),
    ("percent", '["%s"]', '"result":{"%d":{"%d":"%s","%(a)s":"%%"}}'), ("ticks_unread", "[]", '"result":{"tick":0}'),
    ("bound", "[]", bad_params("Too few or too many parameters")), ("bound", "{}", bad_params("Too few or too many parameters")),
    ("bound", "[5]", """"result":["(5, 'none', ())","(('number', '5'),)"]"""),
    ("bound", '["9","a"]', """"result":["(9, 'a', ())","(('number', '9'), ('optional', 'a'))"]"""),
    ("bound", '[1.9,"a","b",7]', """"result":["(1, 'a', ('b', '7'))","""
     """"(('number', '1.900000'), ('optional', 'a'), (None, 'b'), (None, '7'))"]"""),
    ("bound", '{"number":5}', """"result":["(5, 'none', ())","(('number', '5'),)"]"""),
    ("bound", '{"optional":"a","number":5}', """"result":["(5, 'a', ())","(('number', '5'), ('optional', 'a'))"]"""),
    ("bound", BY_NAME % '["b",1]', r""""result":["(5, 'a', ('b', '1'))","""
     r""""(('number', '5'), ('optional', 'a'), ('rest', '[\"b\",1]'))"]"""),
    ("bound", '{"number":5,"rest":["b"]}', bad_params("Named parameters do not match")),
    ("bound", '{"number":5,"x":1}', bad_params("Named parameters do not match")),
    ("bound", '{"number":5,"number":6}', bad_params("Named parameters do not match")),
    ("bound", BY_NAME % "[]", bad_params("Empty array in parameter 'rest'")), ("bound", BY_NAME % '"b"', bad_params(BAD_REST)),
    ("bound", BY_NAME % "[true]", bad_params("Bad type for array item in parameter 'rest'")),
    *(("bound", text, bad_params("Bad type for parameter 'number'")) for text in ("[10]", "[0]", '["x"]', "[true]", "[null]")),
    ("bound", "[5,null]", bad_params("Bad type for parameter 'optional'")),
    *(("raw", f"[{text}]", f'"result":[{text},{shown}]') for text, shown in (
        ("null", "null"), ("true", '"true"'), ('"a"', '"a"'), ('{"a":[1]}', r'"{\"a\":[1]}"'))),
    ("pair", '["a"]', bad_params("Too few or too many parameters")), ("pair", '["a","b"]', """"result":["('a', 'b', ())"]"""),
    ("pair", '["a","b","c"]', """"result":["('a', 'b', ('c',))"]"""), ("pair", '{"first":"a"}', bad_params(
        "Too few or too many parameters")),
    ("arranged", "[1]", """"result":["(1, 'none', ())"]"""), ("arranged", '[1,["a"]]', """"result":["(1, 'none', ('a',))"]"""),
    ("arranged", '{"rest":["a","b"],"number":1}', """"result":["(1, 'none', ('a', 'b'))"]"""),
    ("arranged", '[["a"],1,"o"]', """"result":["(1, 'o', ('a',))"]"""),
    ("arranged", '{"number":1,"optional":"o"}', bad_params("Named parameters do not match")),
    ("arranged", '[1,"a"]', bad_params(BAD_REST)), ("arranged", "[1,2,3,4]", bad_params("Too few or too many parameters")),
    ("total", "[]", '"result":[0]'), ("total", '[1,2.9,"-8"]', '"result":[-5]'), ("total", '{"rest":[1,"2"]}', '"result":[3]'),
    *(("total", params, bad_params(BAD_REST)) for params in ("[[1]]", '["1","x"]', '{"rest":1}', "[null]")),
    ("total", '{"rest":[1,"x"]}', bad_params("Bad type for array item in parameter 'rest'")),
    ("refuses", '["404","no"]', failed(404, "no")), ("refuses", '["600",""]', failed(600, "")),
    ("later", "[]", '"result":"OK"'), ("later", '["Error"]', failed(480, "Not now")),
    ("later", '["Failed"]', NULL), ("later", '["x"]', NULL), ("exits", "[]", NULL), ("nothing_live", "[]", NULL),
    ("blind", "[]", '"result":{"arguments":0}'), ("blind", '["a"]', bad_params("Too few or too many parameters")),
    ("nosuch", "[]", failed(-32601, "Method not found")), ("", "[]", failed(-32601, "Method not found")),
    ("same", "5", failed(-32600, "Invalid Request")), ("same", "null", failed(-32600, "Invalid Request")),
])
def test_answers_to_json(answer, method, params, outcome):
    """Four times, as those to text; and what the server itself refuses counts as an error."""
    for number in range(4):
        written = answer((JSON % (method, params, number)).encode()).decode()
        assert written == f'{{"jsonrpc":"2.0",{outcome},"id":{number}}}'
    refused = outcome == NULL or "Method not found" in outcome or "Invalid Request" in outcome
    assert len(answer.errors) == (4 if refused else 0)


@pytest.mark.parametrize("written, shown", [
    *((same, same) for same in ("7", "-7", "0", "null", "1.500000", "0.123456789", "1000000001.5", "1.000000e-07", "1.000000e+70",
                                '""', '"a"', "123456789012345678901234567890")),
    ("1e5", "100000"), ("-0.0", "0"), ("1.0", "1"), ("0.1", "0.100000"), ("1e-6", "0.000001"), ("0.0000001", "1.000000e-07"),
    ("1e9", "1000000000"), ("1.5e10", "15000000000"), ("1e59", str(int(1e59))), ("1e60", "1.000000e+60"), ("1e400", "null"),
    ("-1e400", "null"), ('"\\u00e9\\n\\u0001\\/"', '"é\\n\\u0001/"'), ("true", None), ("[]", None), ("{}", None),
])
def test_an_id_is_written_as_opensips_writes_it(answer, written, shown):
    wanted = f'"result":"OK","id":{shown}}}' if shown else failed(-32600, "Invalid Request") + ',"id":null}'
    for _ in range(3):
        assert answer((JSON % ("later", "[]", written)).encode()).decode() == '{"jsonrpc":"2.0",' + wanted


N, PLURAL = mi.Node, {"plurals": {"P": ("Ps", "name")}}


@pytest.mark.parametrize("nodes, form, result", [
    ([], {}, '"OK"'), ([N("a")], {}, '{"a":""}'), ([N("a", 1), N("b", "x")], {}, '{"a":1,"b":"x"}'),
    ([N(None, "x"), N("", 2), N(None, None)], {}, '["x",2,null]'), ([N("a", 1), N(None, "x")], {}, '{"a":1,"values":["x"]}'),
    ([N("a", None, (("k", 1),))], {}, '{"a":{"k":1}}'),
    ([N("a", 0, (("k", None), (None, "x")))], {}, '{"a":{"a":0,"k":"","value":"x"}}'),
    ([N("a", "v", (), [N("b", 1), N("b")])], {}, '{"a":{"a":"v","b":[1,""]}}'),
    ([N("a", None, (), [N("b")])], {}, '{"a":{"b":""}}'),
    ([N("a", None, (), [N(None, "x")])], {}, '{"a":{"values":["x"]}}'),
    ([N("a", 1, (), (N("b", 2, (), (N("c", 3),)),))], {}, '{"a":{"a":1,"b":{"b":2,"c":3}}}'),
    ([N("a", 1), N("b", 2), N("a", 3), N("a", 4)], {}, '{"a":[1,3,4],"b":2}'),
    ([N("a", 1), N("a", None, (("k", 2),)), N("b", 3)], {}, '{"a":[{"a":1},{"k":2}],"b":3}'),
    ([N("a", None, (("k", 1),)), N("a", None, (("k", 2),))], {}, '{"a":[{"k":1},{"k":2}]}'),
    ([], PLURAL, '{"Ps":[]}'), ([N("a", 1)], PLURAL, '{"a":1}'), ([N("P", 1)], PLURAL, '{"Ps":[1]}'),
    ([N("P", 1, (("k", 2),)), N("P", 3)], PLURAL, '{"Ps":[{"name":1,"k":2},3]}'),
    ([N("a", 1, (), [N("P", 2)])], PLURAL, '{"a":{"a":1,"Ps":[2]}}'),
    ([N("a", 1, (("k", 2),), ())], PLURAL, '{"a":{"a":1,"k":2}}'),
    ([N("New a", 1), N("b", 2)], {"renamed": {"New a": "a"}}, '{"a":1,"b":2}'),
    ([N("a", 1), N(None, 2)], {"listing": True}, "[1,2]"), ([], {"listing": True}, "[]"),
])
def test_trees_as_json(nodes, form, result):
    """Names are members, a name that comes again is an array, values alone are an array."""
    wanted = f'{{"jsonrpc":"2.0","result":{result},"id":1}}'
    for live in (None, mi.CONSTANT):
        assert asked_json(mi.Reply(nodes=nodes, live=live), **form) == [wanted] * 4


def asked_json(reply, **form):
    """What a JSON-RPC client gets that asks four times for a reply."""
    @mi.command(json=mi.JsonForm(**form))
    def shown(ctx):
        "Give the reply."
        return reply

    answers = mi.Answers(mi.Registry([mi.Module("shows", {"shown": shown})]), logging.getLogger("test"))
    data = (JSON % ("shown", "[]", 1)).encode()
    return [mi.decode(answers.answer(data).datagrams[0][1]) for _ in range(4)]


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize("reply, form, outcome", [
    (mi.Reply(result=[Colour.RED, True, None, (1.5, "x"), {}, collections.OrderedDict(a=[])]), {},
     '"result":[1,true,null,[1.500000,"x"],{},{"a":[]}]'),
    (mi.Reply(result=[[], [[]], {"a": {"b": [{}, 1]}, "c": 2}, ()]), {}, '"result":[[],[[]],{"a":{"b":[{},1]},"c":2},[]]'),
    (mi.Reply(result=0), {}, '"result":0'), (mi.Reply(result="\udcff\0\x7f%s"), {}, '"result":"\udcff\\u0000\x7f%s"'),
    (mi.Reply(404, "No", result=["all the same"]), {}, '"result":["all the same"]'), (mi.Reply(299, "x"), {}, '"result":"OK"'),
    (mi.Reply(300, "x", [N("a", 1)]), {}, failed(300, "x")), (mi.Reply(199, "x"), {}, failed(199, "x")),
    (mi.Reply(404, "No"), {"errors": {"No": mi.Error(1, "Yes", "why")}}, failed(1, "Yes", "why")),
    (mi.Reply(200, "No"), {"errors": {"No": mi.Error(1, "Yes")}}, '"result":"OK"'),
    (mi.Reply(result=mi.Error(7, "x", "y")), {}, failed(7, "x", "y")),
    (mi.Reply(result={1, 2}), {}, NULL), (mi.Reply(nodes=[N("a", object())]), {}, NULL), (mi.Reply(result={1: 2}), {}, NULL),
])
def test_results_and_errors_as_json(reply, form, outcome):
    wanted = f'{{"jsonrpc":"2.0",{outcome},"id":1}}'
    assert asked_json(reply, **form) == [wanted] * 4
    if reply.code == 200:
        assert asked_json(reply._replace(live=mi.CONSTANT), **form) == [wanted] * 4


@pytest.mark.parametrize("command, params",
                         [("same", '["a"]'), ("same", "{}"), ("percent", '["%s"]'), ("ticks", "[]"), ("bound", "[5]"),
                                             ("pure_size", "[100]"), ("refuses", '["404","no"]')])
@pytest.mark.parametrize("written",
                         ["0", "1", "-7", "123456789", '"a"', '"?"', '""', '"id"', "1234567890123", "1.5", "null", '"\\u0041"',
                          '"é"', "-0"])
def test_an_id_comes_back_whatever_was_kept(answer, command, params, written):
    """The reply to a request is the same as if nothing had been kept, but for its id."""
    for other in ("1", "2", '"b"', "3"):
        answer((JSON % (command, params, other)).encode())
    found, fresh = json.loads(answer((JSON % (command, params, written)).encode())), json.loads(written)
    assert found.pop("id") == fresh and type(fresh) is type(json.loads(written))
    reference = json.loads(answer((JSON % (command, params, written)).replace('"jsonrpc"', ' "jsonrpc"').encode()))
    reference.pop("id")
    assert found == reference or command == "ticks"


@pytest.mark.parametrize("template", [
    '{"jsonrpc":"2.0","method":"same","params":{"values":["x"]},"id":%s}', '{"id": %s, "jsonrpc":"2.0","method":"same"}',
    '{"jsonrpc":"2.0","id"\t:\n%s ,"method":"same","params":["a","b"]}', '{"jsonrpc":"2.0","id":%s,"id":5,"method":"same"}',
])
def test_requests_are_remembered_without_their_id(answer, template):
    for number in range(5):
        assert json.loads(answer((template % number).encode()))["id"] == number
    assert [cached.shape is not None for cached in answer.answers.cache.young.values()] == [True]


@pytest.mark.parametrize("template", [
    '{"params":{"id":%s},"jsonrpc":"2.0","method":"bound","id":7}', '{"ID":7,"jsonrpc":"2.0","method":"same","id":%s}',
    '{"jsonrpc":"2.0","method":"same","params":["a", {"id":%s}],"id":7}',
    '{"jsonrpc":"2.0","id":7.0,"method":"same","params":[{"id":%s}]}',
])
def test_another_id_is_not_taken_for_the_requests(answer, template):
    answers = [json.loads(answer((template % number).encode())) for number in (7, 7, 7, 8, 9)]
    assert [found["id"] for found in answers] == [7] * 5
    assert not len(answer.answers.cache)


@pytest.mark.parametrize("number, most", [
    ("0", mi.LIMIT - 1), ("null", mi.LIMIT - 1), ('""', mi.LIMIT - 1), ('"long as an id"', mi.LIMIT - 1), ("1", mi.LIMIT - 19),
    ("-1", mi.LIMIT - 18), ("12345", mi.LIMIT - 15), ("1.5", mi.LIMIT - 12), ("123456789012345678901234567890", mi.LIMIT - 1),
])
def test_the_limit_of_a_kept_json_reply_is_that_of_a_new_one(answer, number, most):
    """To the byte, which depends on the id: OpenSIPS wants room for 21 before it prints a number but 0."""
    lengths = set()
    for size in range(mi.LIMIT - 90, mi.LIMIT - 20):
        request = (JSON % ("pure_size", f"[{size}]", number)).encode()
        found = [answer(request) for _ in range(4)]
        assert len(set(found)) == 1 and (found[0] == b"500 Internal error" or json.loads(found[0]))
        lengths.add(len(found[0]))
    assert max(lengths) == most and min(lengths) == len(b"500 Internal error")


def test_the_same_bytes_with_the_same_id_are_one_datagram(answer):
    """Of a reply that lasts, whatever its id holds; the reply to another id is not it."""
    for written in ('"%s"', "7", '"%s"', '"%s"', '"%s"', "7", "7", "7"):
        request = (JSON % ("same", '["%d"]', written)).encode()
        reply = answer(request)
        assert reply == (b'{"jsonrpc":"2.0","result":{"v":{"v":"%%d","kid":1}},"id":%b}' % written.encode())
    assert answer(request) is answer(request)


def test_what_a_command_does_not_read_does_not_matter(answer):
    """Neither to the reply nor to what is remembered."""
    assert {answer(b":ticks_unread:\n%d\n\"" % number)[:15] for number in range(9)} == {b"200 OK\ntick:: 0"}
    assert list(answer.answers.cache.young) == [b":ticks_unread:\n"]
    assert answer(b":ticks_unread:") == answer(b":ticks_unread: \n") == b"500 command not available\n"
    assert answer(b":same:\na\n") != answer(b":same:\nb\n") != answer(b":same:\na\n")
