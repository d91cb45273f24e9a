"""tm -- transactions: sends requests, replies, cancels, as OpenSIPS' module does.

No SIP is spoken here. What t_uac_dlg asks is answered by lab_answer of lab_sip, and transactions to reply to come from
lab_transaction. A transaction is a key of the store, so that any child can cancel what waits in another.
"""
from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE, ANSWERS = "tm", "tm_answers"  # spaces of the store: transactions, and answers of lab_answer
LOOK_S = 0.02  # between two looks whether another child cancelled what waits here, or the lab moved the clock
DEFAULT_CSEQ = "10"

PARAMS = [
    mi.Param("fr_timeout", 30, mi.integer(1), "how long t_uac_dlg waits for the answer to other requests, seconds"),
    mi.Param("fr_inv_timeout", 120, mi.integer(1), "how long t_uac_dlg waits for the answer to an INVITE, seconds"),
    mi.Param("fr_timer", 0, mi.integer(0), "the same as fr_timeout, as 1.8 spells it; 0: see fr_timeout"),
    mi.Param("fr_inv_timer", 0, mi.integer(0), "the same as fr_inv_timeout, as 1.8 spells it; 0: see fr_inv_timeout"),
    mi.Param("wt_timer", 5, mi.integer(1), "how long a transaction stays after its final reply, seconds"),
    *opensips.without_effect("""T1_timer T2_timer auto_100trying cluster_auto_cancel cluster_param delete_timer disable_6xx_block
        enable_stats fr_inv_timer_avp fr_timer_avp local_reply_route local_request_route minor_branch_flag onreply_avp_mode
        own_timer_proc pass_provisional_replies restart_fr_on_each_reply ruri_matching syn_branch timer_partitions
        tm_replication_cluster tw_append unix_tx_timeout via1_matching"""),
]


def figures(ctx):
    """The statistic that counts what there is."""
    return len(transactions(ctx))


STATS = [
    *opensips.SIP_STATS,
    *opensips.counters("received_replies relayed_replies local_replies", "replies"),
    *opensips.counters("UAS_transactions UAC_transactions", "transactions"),
    *opensips.counters("2xx_transactions 3xx_transactions 4xx_transactions 5xx_transactions 6xx_transactions",
                       "transactions by their final reply"),
    mi.Stat("inuse_transactions", "transactions that are open, or were wt_timer ago", read=figures),
    *opensips.counters("""cluster_reply_sent cluster_request_sent cluster_cancel_sent cluster_reply_recv cluster_request_recv
        cluster_cancel_recv retransmission_req_T1_1 retransmission_req_T1_2 retransmission_req_T1_3 retransmission_req_T2
        retransmission_rpl_T2""", "never counted here; of 3.4", dialect="jsonrpc"),
    *opensips.counters("timeout_finalresponse", "requests without an answer in time; of 3.4", dialect="jsonrpc"),
    *opensips.counters("timeout_finalresponse_inv", "the same of INVITE; of 3.4", dialect="jsonrpc"),
]

###############################################################################
# State
###############################################################################


class Transaction(NamedTuple):
    """A transaction as the store has it, by `INDEX:LABEL`; code: of its final reply, 0 if there is none yet."""

    callid: str
    cseq: str
    method: str
    is_ours: bool
    code: int = 0


def keep_transaction(view: dict, key: str, value: str | None) -> None:
    """Keep a transaction in a view."""
    view.pop(key, None)
    if value is not None:
        view[key] = Transaction(*json.loads(value))


def transactions(ctx) -> dict[str, Transaction]:
    """All transactions."""
    return ctx.view(SPACE, keep_transaction)


def end(ctx, key: str, code: int) -> bool:
    """Give a transaction its final reply, after which it stays for wt_timer; False if it has one, or is gone."""
    def step(value: str | None) -> str:
        one = Transaction(*json.loads(value)) if value is not None else None
        if one is None or one.code:
            raise LookupError(key)  # so that wt_timer does not begin anew
        return json.dumps(one._replace(code=code))

    try:
        ctx.store.change(SPACE, key, step, ctx.param("wt_timer"))
    except LookupError:
        return False
    ctx.count(f"{code // 100}xx_transactions")
    return True


class Answer(NamedTuple):
    """A reply of lab_answer; ms: how long after its request it comes; is_local: whether it comes from no peer."""

    code: int
    reason: str
    headers: str = ""
    body: str = ""
    ms: int = 0
    is_local: bool = False


CANCELLED, TIMEOUT = Answer(487, "Request Terminated"), Answer(408, "Request Timeout", is_local=True)


def keep_answer(view: dict, key: str, value: str | None) -> None:
    """Keep an answer in a view, the newest last."""
    view.pop(key, None)
    if value is not None:
        view[key] = Answer(*json.loads(value))


def answer_to(ctx, uac: Uac) -> Answer | None:
    """The newest answer for a request."""
    for key, answer in reversed(ctx.view(ANSWERS, keep_answer).items()):
        wanted = zip((uac.method, uac.ruri), key.split("\n", 1))
        if all(value == pattern or fnmatch.fnmatchcase(value, pattern) for value, pattern in wanted):
            return answer
    return None


###############################################################################
# Requests
###############################################################################


class Uac(NamedTuple):
    """A request that is sent: From and To as headers have them, Via without its branch."""

    method: str
    ruri: str
    from_: str
    to: str
    callid: str
    cseq: str
    via: str


HEADER = re.compile(r"([^\s:]+)[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)\r?\n")
EMPTY_LINE = re.compile(r"\r?\n")
COMPACT = {"f": "from", "t": "to", "i": "call-id", "c": "content-type", "l": "content-length", "m": "contact"}
NAME_ADDR = re.compile(r'(?:(?:"(?:[^"\\]|\\.)*")?[^<>"]*<([^<>]+)>|([^<>;,\s"]+))\s*(;.*)?', re.S)


def read_headers(text: str) -> list[tuple[str, str, str]]:
    """Headers up to an empty line: the name in lower case, the value, and both as written; mi.Error."""
    headers, at = [], 0
    while at < len(text) and not EMPTY_LINE.match(text, at):
        match = HEADER.match(text, at)
        if not match:
            raise mi.Error(400, "Bad headers")
        name = match[1].lower()
        headers.append((COMPACT.get(name, name), match[2].strip(), match[0].rstrip("\r\n")))
        at = match.end()
    return headers


def checked_headers(method: str, text: str, has_body: bool) -> dict[str, str]:
    """The headers of a request by their names in lower case; mi.Error for the first that OpenSIPS finds fault with."""
    headers = {name: value for name, value, _ in reversed(read_headers(text))}
    if not NAME_ADDR.fullmatch(headers.get("to", "sip:a")) or not re.fullmatch(r"\S+\s+\S+", headers.get("cseq", "1 A")):
        raise mi.Error(400, "Bad headers")
    number, cseq_method = headers["cseq"].split() if "cseq" in headers else ("1", method)
    faults = {
        "Content-Type missing": has_body and "content-type" not in headers,
        "Content-Length disallowed": has_body and "content-length" in headers,
        "To missing": "to" not in headers, "From missing": "from" not in headers,
        "Error in From": not NAME_ADDR.fullmatch(headers.get("from", "")),
        "Bad CSeq number": not (number.isascii() and number.isdigit()), "CSeq method mismatch": cseq_method != method}
    for fault, is_there in faults.items():
        if is_there:
            raise mi.Error(400, fault)
    return headers


SOCKET = re.compile(r"(?:(udp|tcp|tls|sctp|wss?):)?(\[[0-9a-f:.]+\]|[^\s:[\]]*)(?::(\d+))?", re.I | re.A)


def sockets_of(ctx) -> list[tuple]:
    """The sockets that the configuration has for SIP: protocol, host and port as text."""
    lines = [((line[1] or "udp").lower(), line[2], line[3]) for line in opensips.socket_lines(ctx) if line]
    ports = opensips.PORTS
    return [(protocol, host, port or f"{ports[protocol]}") for protocol, host, port in lines if protocol in ports]


def local_socket(ctx, text: str) -> tuple:
    """The socket that a text names, or the first for none; mi.Error if there is none of these. In 2.4 a text without a protocol
    means UDP, one without a port the usual one; in 3.4 any."""
    match, is_text = SOCKET.fullmatch(text), ctx.request.dialect == "text"
    if text and not match:
        raise mi.Error(404, "Invalid local socket" if is_text else "Local socket not found")
    protocol, host, port = match.groups() if match and text else (None, None, None)
    number = opensips.uint(port) % 2**16 if port else 0
    if text and is_text:
        protocol, number = protocol or "udp", number or (5061 if (protocol or "").lower() == "tls" else 5060)
    wanted = protocol, host, f"{number or ''}"
    ours = protocol or "udp", host or "127.0.0.1", wanted[2] or "5060"  # where the configuration has none
    for one in sockets_of(ctx) or [ours]:
        if all(not part or part.lower() == mine.lower() for part, mine in zip(wanted, one)):
            return one
    raise mi.Error(404, "Local socket not found")


def crc(data: bytes) -> int:
    """The CRC of X.25, which From tags end with."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x8408 if value & 1 else 0)
    return value ^ 0xFFFF


def from_tag(ctx, callid: str) -> str:
    """The tag that OpenSIPS gives to a request: one part is of its first socket, the other of the Call-ID."""
    _, host, port = local_socket(ctx, "")
    server = hashlib.md5(mi.encode(f"Long live SER server{host}{port}"), usedforsecurity=False).hexdigest()
    return f"{server}-{f'{crc(mi.encode(callid)):04x}'[::-1]}"


def has_tag(header: str) -> bool:
    """Whether a From or To has a tag."""
    match = NAME_ADDR.fullmatch(header)
    return bool(match and re.search(r";\s*tag\s*=", match[3] or ""))


def made_request(ctx, method: str, ruri: str, headers: dict[str, str], socket: tuple) -> Uac:
    """The request that is sent, with what its headers lack."""
    protocol, host, port = socket
    callid = headers.get("call-id") or f"{random.getrandbits(64):016x}-{os.getpid()}@{host}"
    sender, to = headers["from"], headers["to"]
    if not has_tag(sender):
        sender += f";tag={from_tag(ctx, callid)}"
    if ctx.request.dialect == "text":  # 2.4 writes a lone URI without brackets
        to = re.sub(r"^\s*<([^>]*)>", r"\1", to)
    cseq = headers.get("cseq", DEFAULT_CSEQ).split()[0]
    return Uac(method, ruri, sender, to, callid, cseq, f"SIP/2.0/{protocol.upper()} {host}:{port}")


###############################################################################
# Replies
###############################################################################
# The peers of the recordings give these tags, and have their headers in this order.

PEERS = {"text": ("uastag", ("From", "To", "Call-ID", "CSeq")), "jsonrpc": ("uas1", ("To", "From", "CSeq", "Call-ID"))}
PHRASES = """100 Trying;180 Ringing;181 Call Is Being Forwarded;182 Queued;183 Session Progress;200 OK;202 Accepted;
300 Multiple Choices;301 Moved Permanently;302 Moved Temporarily;305 Use Proxy;400 Bad Request;401 Unauthorized;
402 Payment Required;403 Forbidden;404 Not Found;405 Method Not Allowed;406 Not Acceptable;407 Proxy Authentication Required;
408 Request Timeout;410 Gone;413 Request Entity Too Large;415 Unsupported Media Type;420 Bad Extension;423 Interval Too Brief;
477 Send failed;480 Temporarily Unavailable;481 Call/Transaction Does Not Exist;482 Loop Detected;483 Too Many Hops;
484 Address Incomplete;486 Busy Here;487 Request Terminated;488 Not Acceptable Here;489 Bad Event;491 Request Pending;
500 Server Internal Error;501 Not Implemented;502 Bad Gateway;503 Service Unavailable;504 Server Time-out;600 Busy Everywhere;
603 Decline;604 Does Not Exist Anywhere;606 Not Acceptable"""


def phrase(code: int) -> str:
    """The reason phrase that SIP has for a code."""
    match = re.search(rf"\b{code} ([^;]+)", PHRASES)
    return match[1] if match else "Unknown"


def reply_headers(text: str) -> list[tuple[str, str, str]]:
    """The headers of an answer, whose last line may lack its end."""
    return read_headers(text.rstrip("\r\n") + "\r\n") if text else []


def written_reply(ctx, uac: Uac, answer: Answer) -> str:
    """The SIP reply from its first header on; what the answer says of a header stands in the place of what its peer would."""
    tag, order = PEERS[ctx.request.dialect]
    own = {"From": uac.from_, "To": uac.to if has_tag(uac.to) else f"{uac.to};tag={tag}", "Call-ID": uac.callid,
           "CSeq": f"{uac.cseq} {uac.method}"}
    headers = reply_headers(answer.headers)
    given = {name for name, _, _ in headers}
    branch = f"z9hG4bK{random.getrandbits(16):x}.{random.getrandbits(31):x}.0"
    lines = [f"Via: {uac.via};branch={branch}", *[f"{name}: {own[name]}" for name in order if name.lower() not in given],
             *[written for _, _, written in headers]]
    if "content-length" not in given:
        lines.append(f"Content-Length: {len(mi.encode(answer.body))}")
    return "\r\n".join([*lines, "", answer.body])


def uri_in(header: str) -> str:
    """The URI of a To or Contact; empty for none."""
    match = NAME_ADDR.match(header)
    return (match[1] or match[2]) if match else ""


def target(uac: Uac, headers: list) -> dict:
    """Where a further request of the dialog would go that a 2xx makes."""
    contact = next((uri_in(value) for name, value, _ in headers if name == "contact"), "") or uri_in(uac.to)
    routes = [route.strip() for name, value, _ in headers if name == "record-route"
              for route in re.findall(r"<[^>]*>[^,]*", value)][::-1]
    if not routes:
        return {"RURI": contact, "Next-hop": contact}
    first = uri_in(routes[0])
    if re.search(r";lr\b", first):
        return {"RURI": contact, "Next-hop": first, "Routes": routes}
    return {"RURI": first, "Next-hop": first, "Routes": [*routes[1:], f"<{contact}>"]}  # a strict router


def send(ctx, uac: Uac) -> tuple[str, Answer]:
    """Send a request; returns the key of its transaction, and the final reply that is going to come."""
    timeouts = ("fr_inv_timer", "fr_inv_timeout") if uac.method == "INVITE" else ("fr_timer", "fr_timeout")
    timeout_s = next(filter(None, map(ctx.param, timeouts)))
    answer = answer_to(ctx, uac) or TIMEOUT
    if answer.code < 200:  # it rings, and no more
        ctx.count("received_replies")
        ctx.count("rcv_replies")
    if answer is TIMEOUT or answer.code < 200 or answer.ms > 1000 * timeout_s:
        answer = TIMEOUT._replace(ms=1000 * timeout_s)
    key, one = f"{random.getrandbits(16)}:{random.getrandbits(31)}", Transaction(uac.callid, uac.cseq, uac.method, True)
    ctx.store.put(SPACE, key, json.dumps(one), timeout_s + ctx.param("wt_timer"))
    ctx.count("UAC_transactions")
    return key, answer


def outcome(ctx, uac: Uac, key: str, answer: Answer) -> mi.Reply:
    """What t_uac_dlg replies now that the final reply of a request is there, or was cancelled before."""
    if not end(ctx, key, answer.code):
        answer = CANCELLED if key in transactions(ctx) else TIMEOUT
    status = {"Status": f"{answer.code} {answer.reason}"}
    ctx.count("local_replies" if answer.is_local else "relayed_replies")
    if answer.is_local:
        ctx.count("timeout_finalresponse_inv" if uac.method == "INVITE" else "timeout_finalresponse")
        return opensips.reply(ctx, status)
    ctx.count("received_replies")
    ctx.count("rcv_replies")
    further = target(uac, reply_headers(answer.headers)) if answer.code // 100 == 2 else {}
    return opensips.reply(ctx, {**status, **further, "Message": written_reply(ctx, uac, answer)})


###############################################################################
# Waiting for replies
###############################################################################
# No greenlet of the pool waits for the final reply of a request; one of the child's own looks after all of them.


class Pending(NamedTuple):
    """A request that waits: when its reply is due by the store's clock, what makes it, and done(reply), which sends it."""

    due_s: float
    ctx: Any
    make: Callable[[], mi.Reply]
    done: Callable[[Any], None]

    def conclude(self) -> None:
        """Have the reply sent."""
        try:
            reply: Any = self.make()
        except mi.Error as error:  # the store fails
            reply = mi.Reply(error.code, error.reason)
        except Exception:  # a mistake here costs one reply, not all that wait
            self.ctx.log.exception("t_uac_dlg has no reply")
            reply = mi.COMMAND_FAILED
        self.done(reply)


class Waiting:
    """The requests of a child that wait, by the keys of their transactions."""

    def __init__(self) -> None:
        import gevent.event

        self.requests: dict[str, Pending] = {}
        self.version = -1  # of the transactions, when they were last looked at
        self.woken, self.is_looking = gevent.event.Event(), False

    def add(self, key: str, request: Pending) -> None:
        """Conclude a request when it is time."""
        import gevent

        self.requests[key] = request
        self.version = -1
        self.woken.set()
        if not self.is_looking:
            self.is_looking = True
            gevent.spawn(self.look_after, request.ctx)

    def look_after(self, ctx) -> None:
        """Conclude all requests, each when it is time."""
        try:
            while self.requests:
                self.woken.clear()
                for key in self.ready(ctx):
                    self.requests.pop(key).conclude()
                next_s = min([one.due_s for one in self.requests.values()], default=0.0) - ctx.store.now_s()
                self.woken.wait(max(0.0, min(LOOK_S, next_s)))
        finally:
            self.is_looking = False

    def ready(self, ctx) -> list[str]:
        """The requests whose replies are due, and those whose transactions have ended, or are gone."""
        now_s, version = ctx.store.now_s(), ctx.store.version(SPACE)
        due = dict.fromkeys(key for key, one in self.requests.items() if one.due_s <= now_s)
        with contextlib.suppress(mi.StoreError):  # look again
            if version != self.version:
                known, self.version = transactions(ctx), version
                due.update(dict.fromkeys(key for key in self.requests if key not in known or known[key].code))
        return [*due]


@functools.cache
def waiting_of(server: Any) -> Waiting:
    """What waits in this child."""
    return Waiting()


def later(ctx, key: str, after_s: float, make: Callable[[], mi.Reply]) -> Any:
    """Reply by make() after a time, or when a transaction ends before; returns what the command returns meanwhile."""
    child, due_s = ctx.server.child, ctx.store.now_s() + after_s
    is_batch = ctx.data.lstrip(mi.JSON_BLANKS)[:1] == b"["
    if child is None or ctx.server.registry.wrappers or is_batch:  # what is around it wants the reply
        result = mi.AsyncResult()
        waiting_of(ctx.server).add(key, Pending(due_s, ctx, make, result.set))
        return result
    ctx.server.later += 1
    asked_s = time.time() if child.is_tracing else 0.0
    waiting_of(ctx.server).add(key, Pending(due_s, ctx, make, functools.partial(conclude, ctx, child, asked_s)))
    return mi.LATER


def conclude(ctx, child: Any, asked_s: float, reply: Any) -> None:
    """Send the reply to a request that was answered with LATER."""
    ctx.server.later -= 1
    call = child.answers.dialect_of(ctx.data).read(ctx.data)
    child.conclude(asked_s, *ctx.caller, child.answers.finish(ctx.data, call._replace(refusal=reply), ctx.caller))
    if child.traces:
        child.settle()


###############################################################################
# Commands
###############################################################################


def optional(ctx, name: str, value) -> str | None:
    """An argument that a request in JSON may lack, and one in text has a dot for."""
    if ctx.request.dialect == "jsonrpc":
        return opensips.text(ctx, name, value) if name in (ctx.request.names or ()) else None
    return None if value == "." else value or ""


@opensips.command(timed=False)
def t_uac_dlg(ctx, method, ruri, headers, next_hop=None, socket=None, body=None):
    """Send a request to RURI, and reply when lab_answer answers it, or after fr_timeout; a dot: nothing."""
    method, ruri = opensips.text(ctx, "method", method), opensips.text(ctx, "ruri", ruri)
    if not opensips.is_uri(ruri, opensips.most_port(ctx)):
        raise mi.Error(400, "Invalid RURI")
    next_hop = optional(ctx, "next_hop", next_hop)
    if next_hop is not None and not opensips.is_uri(next_hop, opensips.most_port(ctx)):
        raise mi.Error(400, "Invalid NEXTHOP")
    named = optional(ctx, "socket", socket)
    place = local_socket(ctx, "" if named is None else named or ":" * (ctx.request.dialect == "text"))
    headers = optional(ctx, "headers", headers) or ""
    body = opensips.text(ctx, "body", body) if body is not None else ""
    known = checked_headers(method, headers, bool(body))
    uac = made_request(ctx, method, ruri, known, place)
    key, answer = send(ctx, uac)
    make = functools.partial(outcome, ctx, uac, key, answer)
    return later(ctx, key, answer.ms / 1000, make) if answer.ms else make()


@opensips.command
def t_uac_cancel(ctx, callid, cseq):
    """Cancel the INVITE of a CALLID and the number CSEQ."""
    wanted = opensips.text(ctx, "callid", callid), opensips.text(ctx, "cseq", cseq), "INVITE"
    found = [(key, one) for key, one in transactions(ctx).items() if one[:3] == wanted]
    if not found:
        raise mi.Error(481, "No such transaction")
    for key, one in found:
        if end(ctx, key, CANCELLED.code) and not one.is_ours:
            ctx.count("relayed_replies")
    waiting_of(ctx.server).woken.set()
    return mi.Reply()


@opensips.command
def t_hash(ctx):
    """Show the table of transactions, which is always too large for a reply."""
    if ctx.request.dialect == "jsonrpc":
        raise mi.TooLong(mi.LIMIT + 1)
    raise mi.Error(500, "Server Internal Error")


@opensips.command
def t_reply(ctx, code, reason, trans_id, to_tag, new_headers=None, body=None):
    """Reply CODE and REASON to the transaction TRANS_ID, `INDEX:LABEL`."""
    number = reply_code(ctx, code)
    opensips.text(ctx, "reason", reason)
    key = transaction_key(ctx, trans_id)
    opensips.text(ctx, "to_tag", to_tag)
    one = transactions(ctx).get(key)
    if one is None:
        raise mi.Error(404, "Transaction not found")
    if one.is_ours or one.code or (number >= 200 and not end(ctx, key, number)):
        raise mi.Error(500, "Reply failed")
    ctx.count("local_replies")
    return mi.Reply()


def reply_code(ctx, code) -> int:
    """The code of t_reply; mi.Error."""
    try:
        number = mi.json_int(code, "code") if ctx.request.dialect == "jsonrpc" else opensips.uint(code)
    except ValueError:
        number = 700
    if number >= 700:
        raise mi.Error(400, "Invalid reply code")
    return number


def transaction_key(ctx, trans_id) -> str:
    """The key of the transaction that `INDEX:LABEL` names, or in 3.4 `LABEL.INDEX` in reversed hexadecimal; mi.Error."""
    index, colon, label = opensips.text(ctx, "trans_id", trans_id).partition(":")
    if not colon and "." in index and ctx.request.dialect == "jsonrpc":
        halves = index.partition(".")[::2]
        for half, problem in zip(halves, ("Invalid label", "Invalid label in trans_id")):
            if not re.fullmatch("[0-9a-fA-F]*", half):
                raise mi.Error(400, problem)
        index, label = (str(int(half[::-1] or "0", 16)) for half in halves[::-1])
    elif not colon:
        raise mi.Error(400, "Invalid trans_id")
    for part, text in (("index", index), ("label", label)):
        if not (text.isascii() and text.isdigit()):
            raise mi.Error(400, f"Invalid {part} in trans_id")
    return f"{opensips.uint(index)}:{opensips.uint(label)}"


###############################################################################
# For lab commands
###############################################################################


def add_answer(ctx, method: str, uri_pattern: str, code: int, reason: str | None, headers: str, body: str, ms: int) -> None:
    """Answer requests that fit; the headers may have `\\r\\n` written out. mi.Error if they are none."""
    headers = headers.replace("\\r", "").replace("\\n", "\n")
    reply_headers(headers)
    answer = Answer(code, phrase(code) if reason is None else reason, headers, body, ms)
    ctx.store.put(ANSWERS, f"{method}\n{uri_pattern}", json.dumps(answer))


def begin(ctx, index: int, label: int, callid: str, cseq: str, method: str) -> None:
    """Have a transaction that was received."""
    own = opensips.context_of(ctx, "tm")
    own.store.put(SPACE, f"{index}:{label}", json.dumps(Transaction(callid, cseq, method, False)))
    own.count("UAS_transactions")
    own.count("rcv_requests")
