"""translation -- requests, replies and events of OpenSIPS 2.4's text dialect as JSON-RPC of 3.x, 4.x and Kamailio, and back.

Another plug-in loads it with mi.shared("translation"). It has no commands, no state and does no I/O: bytes in, bytes out. What
cannot be translated raises mi.Error with the code and the reason that a client of its dialect knows.

The forms of plugins/opensips_forms.py say what a command takes and gives. A command without a form is translated by one rule:

    arguments, text to JSON   by name where each has a name, else by the one recipe with that many names; to Kamailio by
                              position, digits as a number, and what follows `s:` as a text
    arguments, JSON to text   by position, in the order in which they come; an array is an argument for each item
    reply, JSON to text       a member is `name:: value`, an object its members as children, an array a node for each item
                              under the singular of its name; a text alone is a line
    reply, text to JSON       a node is a member with a text, or an object of its attributes and children; a name that
                              comes again is an array; lines alone are an array; no nodes are "OK"
"""
from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import midatagram as mi

forms = mi.shared("opensips_forms")
core = mi.shared("_core_commands")


def within_bounds(function: Callable) -> Callable:
    """Make what is nested too deep or too long to be translated an mi.Error."""

    @functools.wraps(function)
    def bounded(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except RecursionError:
            raise mi.Error(500, "nested too deep to be translated") from None
        except mi.TooLong as error:
            raise mi.Error(500, mi.reply_too_long(error.args[0]).reason) from None

    return bounded


###############################################################################
# Names
###############################################################################
# A server is asked by a name that it has: the client's, or another that the same command has in another release.

ONLY_24 = "OpenSIPS has it up to 2.4"
SINCE_30 = """add_blacklist_rule check_blacklist check_blacklists del_blacklist_rule dlg_push_var dlg_send_sequential
    dr_enable_probing ds_push_script_attrs log_level_filter log_mute_state mem_pkg_dump mem_rpm_dump mem_shm_dump raise_event
    reg_disable reg_enable reload_routes reset_all_statistics rl_dump_pipe shm_check sr_get_status sr_list_identifiers
    sr_list_reports sr_list_status trace_start trace_stop ua_session_client_start ua_session_list ua_session_reply
    ua_session_terminate ua_session_update xlog_level"""
SINCE_40 = """cache_fetch_chunk config_flush config_list config_push config_push_bulk config_reload core:profiling_proc
    dlg_set_profile dlg_unset_profile mq_fetch mq_get_size mq_get_sizes reg_delete reg_force_register reg_upsert regex_match
    regex_match_group sockets_list sockets_reload tcp:close trie_number_delete trie_number_upsert trie_reload
    trie_reload_status trie_search"""
REASONS = {  # command -> why a server does not have it
    "rl_bin_status": ONLY_24, "dlg_list_sharing_tags": f"{ONLY_24}, then clusterer_list_shtags",
    "dlg_set_sharing_tag_active": f"{ONLY_24}, then clusterer_shtag_set_active",
    **dict.fromkeys(SINCE_30.split(), "OpenSIPS has it since 3.0"),
    **dict.fromkeys(SINCE_40.split(), "OpenSIPS has it since 4.0"),
}
MUTE = "t_hash"  # 3.x does not answer it, and then no request at all


def name_on(name: str, names: Iterable[str] | None, dialect: str = "text") -> str:
    """The name by which a server that has `names` knows a command; the command's own where they are not known (None).

    mi.Error, in the client's dialect, if the server has none of its names.
    """
    for known in names_of(name):
        if names is None or known in names:
            return known
    raise not_there(name, dialect)


def names_of(name: str) -> tuple:
    """The names of a command in all releases, the given one first."""
    return (name, *forms.NAMES.get(name, ()))


def not_there(name: str, dialect: str) -> mi.Error:
    """The refusal of a command that a server does not have, with the reason if it is known."""
    reason = next((REASONS[known] for known in names_of(name) if known in REASONS), "")
    if dialect == "jsonrpc":
        return mi.Error(-32601, "Method not found", reason or None)
    return mi.Error(500, f"command not available: {reason}" if reason else "command not available")


def flat(name: str) -> str:
    """The name that the form of a command has, whatever release a name is of."""
    return next((known for known in names_of(name) if known in forms.FORMS), name)


def form_of(name: str) -> Any:
    """The form of a command by any of its names, or None."""
    return forms.FORMS.get(flat(name))


def renamed(request: bytes, name: str) -> bytes:
    """A request of either dialect with another command's name and nothing else changed; mi.Error."""
    if request.startswith(b":"):
        return mi.encode(f":{name}:\n") + request[len(mi.read_first_line(request)):]
    value = mi.read_json(request)
    return mi.encode(mi.json_text({key: name if key.lower() == "method" else item for key, item in value.items()}))


def needs_recipes(name: str) -> bool:
    """Whether to_jsonrpc() wants the recipes that the server tells for a command, in its reply to `which COMMAND`."""
    return form_of(name) is None


def recipes_in(reply: bytes) -> tuple | None:
    """The recipes in a JSON-RPC reply to `which COMMAND`, each a text of names; None if it has none."""
    try:
        return tuple(" ".join(map(mi.string, recipe)) for recipe in mi.read_json(reply)["result"])
    except (mi.ParseError, KeyError, TypeError, ValueError):
        return None


def names_in(reply: bytes) -> list[str]:
    """The names of commands in a reply to `which`, in either dialect; mi.Error if it is none."""
    try:
        names = mi.decode(reply).split("\n")[1:-2] if reply.startswith(b"200 OK\n") else mi.read_json(reply)["result"]
        return [mi.string(name) for name in names]
    except (mi.ParseError, KeyError, TypeError, ValueError):
        raise mi.Error(500, f"the server does not list its commands: {mi.decode(reply[:60])!r}") from None


###############################################################################
# Requests: text to JSON-RPC
###############################################################################


def read_text(request: bytes) -> mi.Request:
    """The command of a text request, and its arguments if it reads them; mi.Error."""
    line = mi.read_first_line(request)
    name = mi.decode(line[1:-2])
    form = form_of(name)
    if form and form.text is None:
        return mi.Request(name)
    try:
        return mi.Request(name, *mi.read_arguments(request[len(line):]))
    except mi.ParseError:
        raise mi.Error(400, "parse_error") from None


@within_bounds
def to_jsonrpc(request: bytes, name: str = "", recipes: tuple | None = None, kamailio: bool = False) -> bytes:
    """The JSON-RPC request, with the id 1, for a text request; mi.Error.

    name: the command's on the server; recipes: those that the server tells, each a text of names, where needs_recipes().
    """
    asked = read_text(request)
    if flat(asked.name) == MUTE and not kamailio:
        raise mi.Error(500, "command not available: OpenSIPS 3.x is mute after it")
    if any("\0" in (value or "") for value in asked.values):  # which 3.x takes for no JSON
        raise mi.BAD_PARAMETER
    params = by_position(asked.values) if kamailio else params_of(asked, recipes)
    members = {"jsonrpc": "2.0", "method": name or asked.name, **({"params": params} if params else {}), "id": 1}
    return mi.encode(mi.json_text(members))


def by_position(values: tuple) -> list:
    """The params for Kamailio: digits are numbers, `s:` makes a text of what follows, as kamcmd has it."""
    return [int(value) if re.fullmatch(r"-?[0-9]{1,9}", value or "") else (value or "").removeprefix("s:") for value in values]


def params_of(asked: mi.Request, recipes: tuple | None) -> Any:
    """The params that the arguments of a text request are: texts, by name wherever names are known. mi.Error."""
    form, values = form_of(asked.name), [value or "" for value in asked.values]
    check_as_24(flat(asked.name), asked)
    if form:
        read = READERS.get(flat(asked.name))
        return with_numbers(form, flat(asked.name), read(values, asked) if read else placed(form.text or "", values))
    if asked.names and all(asked.names):
        return dict(zip(asked.names, values))
    if recipes is None:
        return values
    fitting = [recipe.split() for recipe in recipes if len(recipe.split()) == len(values)]
    if len(fitting) > 1:
        raise mi.Error(400, f"Ambiguous call, give names, as {fitting[0][0]}::VALUE: {' or '.join(map(' '.join, fitting))}")
    if not fitting:
        raise mi.WRONG_COUNT
    return dict(zip(fitting[0], values))


MOST = {"list_all_profiles": 0, **dict.fromkeys(
    ("dlg_list", "dlg_list_ctx", "profile_end_dlgs", "profile_get_size", "profile_list_dlgs", "lb_status"), 2)}
NO_PROFILE = (mi.WRONG_COUNT, mi.BAD_PARAMETER)
NO_CALL_ID = (mi.Error(400, "Invalid Call-ID specified"),)
WITHOUT = {  # command -> what 2.4 says to a value that is NULL or empty, by its place
    **dict.fromkeys(("profile_end_dlgs", "profile_get_size", "profile_get_values", "profile_list_dlgs"), NO_PROFILE),
    "dlg_list": NO_CALL_ID, "dlg_list_ctx": NO_CALL_ID, "dlg_end_dlg": (mi.BAD_PARAMETER,),
    "ds_set_state": (mi.Error(500, "Bad state value"), mi.Error(500, "group not found"), mi.Error(500, "address not found")),
}
BINDERS = {command.mi_command.name: command.mi_command.bind for command in (
    mi.cache_store, mi.cache_fetch, mi.cache_remove, core.cache_remove_chunk, mi.event_subscribe, mi.log_level)}


def check_as_24(name: str, asked: mi.Request) -> None:
    """Refuse what 2.4 would, where 3.x has other words for it or takes it; mi.Error."""
    if name in BINDERS:
        BINDERS[name](asked)
    if len(asked.values) > MOST.get(name, len(asked.values)):
        raise mi.Error(401, mi.WRONG_COUNT.reason) if name == "list_all_profiles" else mi.WRONG_COUNT
    for value, error in zip(asked.values, WITHOUT.get(name, ())):
        if not value:
            raise error


HEXADECIMAL = ("nh_enable_ping", "rtpproxy_enable")  # commands of 2.4 that take 0x1 for a number
SIGNED = ("log_level", "xlog_level")  # that look at their numbers in another way


def with_numbers(form: Any, name: str, params: dict) -> dict:
    """Params whose numbers are such for 2.4, digits alone; mi.Error."""
    for key in form.numbers.split() if name not in SIGNED else ():
        value = params.get(key, "0")
        if name in HEXADECIMAL and re.fullmatch("0[xX][0-9a-fA-F]{1,8}", value):
            params = {**params, key: f"{int(value, 16)}"}
        elif not (value.isascii() and value.isdigit()) and name not in BINDERS:
            raise mi.Error(400, "Invalid reply code") if name == "t_reply" else mi.BAD_PARAMETER
    return params


def placed(text: str, values: list[str]) -> dict:
    """Values by the names of their places, as Form.text has them; mi.Error for a wrong count."""
    words = text.removesuffix("...").split()
    least = sum(not word.startswith("[") for word in words)
    if len(values) < least or len(values) > len(words) and not text.endswith("..."):
        raise mi.WRONG_COUNT
    left_out = len(words) - len(values)  # of those that may be, the last ones
    for word in reversed(words):
        if left_out > 0 and word.startswith("["):
            words.remove(word)
            left_out -= 1
    return {word.strip("[]"): value for word, value in zip(words, values) if word != "-"}


def read_statistics(values: list, asked: mi.Request) -> dict:
    """Each value is the name of a statistic or of a group."""
    return {"statistics": values} if values else {}


def read_dump(values: list, asked: mi.Request) -> dict:
    """`brief`, or another word."""
    if len(values) > 1:
        raise mi.WRONG_COUNT
    return {"brief": "1"} if values and values[0].lower() == "brief" else {}


def read_sets(values: list, asked: mi.Request) -> dict:
    """`[PARTITION] [full]`; what follows is ignored."""
    params = {} if values[:1] in ([], ["full"]) else {"partition": values[0] or "default"}
    last = values[len(params):][:1]
    if last not in ([], ["full"]):
        raise mi.BAD_PARAMETER
    return {**params, "full": "1"} if last else params


def read_dialogs(values: list, asked: mi.Request) -> dict:
    """`INDEX COUNTER`, or `[CALLID] [FROM_TAG]`."""
    names = ("index", "counter") if len(values) > 1 and all(map(str.isdigit, values[:2])) else ("callid", "from_tag")
    return {name: value for name, value in zip(names, values) if value}


def read_dialog(values: list, asked: mi.Request) -> dict:
    """An ID as 2.4 shows it, or a Call-ID, and headers."""
    params = placed(forms.FORMS["dlg_end_dlg"].text, values)
    if params["dialog_id"].isascii() and params["dialog_id"].isdigit():
        params["dialog_id"] = forms.dialog_id(params["dialog_id"])
    return params


def read_trace(values: list, asked: mi.Request) -> dict:
    """`[ID] [on|off]`."""
    if len(values) > 2:
        raise mi.BAD_PARAMETER
    return dict(zip(("mode",) if len(values) == 1 and values[0].lower() in ("on", "off") else ("id", "mode"), values))


def read_event(values: list, asked: mi.Request) -> dict:
    """The event and its attributes: texts, or `NAME::VALUE` each."""
    names = (asked.names or [None] * len(values))[1:]
    params: Any = dict(zip(names, values[1:])) if any(names) else values[1:]
    if not values:
        raise mi.WRONG_COUNT
    return {"event": values[0], **({"params": params if isinstance(params, list) else mi.json_text(params)} if params else {})}


def read_status(name: str, values: list, asked: mi.Request) -> dict:
    """`[PARTITION] ID STATUS`, or `[ID]`."""
    if len(values) > 3 or len(values) == 3 and not values[2].isdigit():
        raise mi.WRONG_COUNT
    return dict(zip(("partition_name", name, "status") if len(values) == 3 else (name, "status"), values))


def without_dots(name: str, values: list, asked: mi.Request) -> dict:
    """Values by their places, a `.` for one that is left out."""
    return {name: value for name, value in placed(forms.FORMS[name].text, values).items() if value != "."}


READERS: dict = {  # command -> reads its values where their places depend on what they are
    "get_statistics": read_statistics, "list_statistics": read_statistics, "reset_statistics": read_statistics,
    "ul_dump": read_dump, "ds_list": read_sets, "dlg_list": read_dialogs, "dlg_list_ctx": read_dialogs,
    "dlg_end_dlg": read_dialog, "trace": read_trace, "sip_trace": read_trace, "raise_event": read_event,
    "dr_reload_status": lambda values, asked: {"partition_name": values[0]} if values else {},
    "profile_get_values": lambda values, asked: {"profile": values[0]} if values else {},
    "dr_gw_status": functools.partial(read_status, "gw_id"), "dr_carrier_status": functools.partial(read_status, "carrier_id"),
    **{name: functools.partial(without_dots, name) for name in ("t_uac_dlg", "t_reply")},
}

###############################################################################
# Requests: JSON-RPC to text
###############################################################################


def read_jsonrpc(request: bytes) -> tuple[mi.Request, Any]:
    """A JSON-RPC request and its params, {} for none; mi.Error."""
    try:
        asked, params = mi.read_envelope(mi.read_json(request))
    except mi.ParseError:
        raise mi.Error(400, "Parse_error") from None
    if isinstance(params, mi.Refusal):
        raise mi.Error(-32600, "Invalid Request")
    return asked, {} if params is None else params


@within_bounds
def to_text(request: bytes, name: str = "") -> bytes:
    """The text request for a JSON-RPC request; mi.Error. name: the command's on the server."""
    asked, params = read_jsonrpc(request)
    values = values_of(asked.name, params)
    try:
        return mi.write_request(name or asked.name, [empty_or_not(*((None, value) if isinstance(value, str) else value))
                                                     for value in values])
    except ValueError as error:
        raise mi.Error(400, "Bad parameter value", f"{error}") from None


def empty_or_not(name: str | None, value: str) -> tuple:
    """An argument as 2.4 can read it: an empty value with a name, because `""` is a parse error there."""
    return (name, value) if value else (name or "x", None)


def values_of(name: str, params: Any) -> list:
    """The values of a text request, or their names and them, for the params of a command, checked as 3.x does; mi.Error."""
    form = form_of(name)
    if form is None:
        items = params.values() if isinstance(params, dict) else params
        return [text_of(item) for value in items for item in (value if isinstance(value, list) else [value])]
    given = bound(form, params)
    checked: dict[str, Any] = {key: unsigned(flat(name), key, mi.json_int(given[key], key)) if key in form.numbers.split() else
               mi.json_array(given[key], key) if key == "statistics" else
               core.event_params(given[key]) if key == "params" else mi.json_string(given[key], key) for key in given}
    if "expire" in form.numbers or flat(name).startswith("cache_"):
        mi.check_cache({**checked, "expire": int(checked.get("expire", 0))})
    for key, error in EMPTY_PARAMS.get(flat(name), {}).items():
        if checked.get(key) == "" and isinstance(error, mi.Error):
            raise error
        if checked.get(key) == "":
            checked[key] = error
    write = WRITERS.get(flat(name))
    return write(checked) if write else in_places(form.text if flat(name) not in WHOLE else None, checked)


def unsigned(name: str, key: str, number: int) -> str:
    """A number as 2.4 takes it: without a minus sign, which is no loss where it wraps around as in 3.x."""
    return f"{number if name in SIGNED or key == 'expire' else number % 2**32}"


NO_PARTITIONS = "'partition_name' supported only when 'use_partitions' is set"
EMPTY_PARAMS: dict = {  # command -> what 3.4 says to an empty text, or what is one for 2.4
    "allow_uri": dict.fromkeys(("basename", "uri", "contact"), mi.Error(404, "Basename is empty")),
    "dlg_end_dlg": {"dialog_id": mi.Error(404, "Requested Dialog not found")},
    "ds_set_state": {"state": mi.Error(500, "Bad state value"), "group": mi.Error(500, "bad group value"),
                     "address": mi.Error(404, "destination not found")},
    **dict.fromkeys(("profile_end_dlgs", "profile_get_size", "profile_get_values", "profile_list_dlgs"),
                    {"profile": mi.Error(404, "Profile not found")}),
    # 2.4 ends when it gets one of these empty.
    **dict.fromkeys(("ul_add", "ul_rm", "ul_rm_contact", "ul_show_contact"), {"aor": "@"}),
    "rl_reset_pipe": {"pipe": mi.Error(500, "Internal error")},
    **dict.fromkeys(("trace", "sip_trace"), {"id": mi.Error(400, "Bad trace id value")}),
    "t_uac_cancel": dict.fromkeys(("callid", "cseq"), mi.Error(481, "No such transaction")),
}
WHOLE = ("reg_list", "reg_reload")  # of which 2.4 takes no value and does all: the record that was asked for is in the reply


def text_of(value: Any) -> str:
    """A JSON value as an argument of a command without a form."""
    return value if isinstance(value, str) else mi.json_text(value)


def bound(form: Any, params: Any) -> dict:
    """Params by the names of the recipe that fits them; mi.Error as 3.x has it."""
    recipes = [recipe.split() for recipe in form.recipes if len(recipe.split()) == len(params)]
    if isinstance(params, list) and params and form.named:
        raise mi.invalid_params("Command only supports named parameters")
    if not recipes:
        raise mi.invalid_params("Too few or too many parameters")
    if isinstance(params, dict):
        recipes = [recipe for recipe in recipes if set(recipe) == set(params)]
        if not recipes:
            raise mi.invalid_params("Named parameters do not match")
        return {name: params[name] for name in recipes[0]}
    if len(recipes) > 1:
        raise mi.invalid_params("Ambiguous call, use named parameters instead")
    return dict(zip(recipes[0], params))


def in_places(text: str | None, params: dict, missing: str = "") -> list[str]:
    """Params in their places, as Form.text has them; mi.Error for one that 2.4 lacks."""
    words = (text or "").removesuffix("...").split()
    places = [word.strip("[]") for word in words]
    lacking = [name for name in params if name not in places]
    if lacking and text is not None:
        detail = NO_PARTITIONS if lacking == ["partition_name"] else "OpenSIPS 2.4 has no such parameter"
        raise mi.Error(400, f"Invalid parameter: '{lacking[0]}'", detail)
    optional = [place for place, word in zip(places, words) if word.startswith("[")]
    given = max([at for at, place in enumerate(optional, 1) if place in params], default=0)  # 2.4 fills them from the left
    return [params.get(place, "0" if place == "-" else missing) for place in places if place not in optional[given:]]


def write_dialog(params: dict) -> list[str]:
    """The ID of a dialog as 2.4 has it, or a Call-ID."""
    halves = re.fullmatch(r"([0-9a-f]{1,8})\.([0-9a-f]{1,8})", params["dialog_id"])
    number = f"{forms.dialog_number(params['dialog_id'])}" if halves else params["dialog_id"]
    return [number, *[params[name] for name in params if name != "dialog_id"]]


def write_event(params: dict) -> list:
    """The event and its attributes, with their names if they have any."""
    given = params.get("params", [])
    return [params["event"], *([(name, f"{value}") for name, value in given.items()] if isinstance(given, dict) else given)]


WRITERS: dict = {  # command -> the values of its params where Form.text does not say it
    **dict.fromkeys(("get_statistics", "list_statistics", "reset_statistics"), lambda params: params.get("statistics", [])),
    "ul_dump": lambda params: ["brief"] if params.get("brief", "0") != "0" else [],
    "ds_list": lambda params: [*[params[name] for name in ("partition",) if name in params],
                               *["full" for name in ("full",) if params.get(name, "0") != "0"]],
    **dict.fromkeys(("dlg_list", "dlg_list_ctx", "trace", "sip_trace"), lambda params: [*params.values()]),
    "dlg_end_dlg": write_dialog, "raise_event": write_event,
    **{name: functools.partial(lambda name, params: in_places(forms.FORMS[name].text, params, "."), name)
       for name in ("t_uac_dlg", "t_reply")},
}

###############################################################################
# Replies: JSON-RPC to text
###############################################################################

IN_TEXT = {  # message of 3.x -> first line of 2.4
    "Method not found": "500 command not available", "Invalid params": "400 Bad parameter",
    "Server error": "500 command failed", "Internal error": "500 Server Internal Error",
    "Internal Error": "500 Server Internal Error", "Bad parameter value": "400 Bad parameter",
    "Invalid ruri": "400 Invalid RURI", "Invalid next_hop": "400 Invalid NEXTHOP",
    "Invalid index in old trans_id": "400 Invalid index in trans_id",
    "Invalid label in old trans_id": "400 Invalid label in trans_id",
}
NO_PARTITION = "Invalid parameter: 'partition_name'"
OF_COMMANDS = {  # the same for single commands
    ("rl_list", "Pipe Not Found"): "500 command failed", ("rl_reset_pipe", "Internal error"): "400 Bad parameter",
    ("ds_list", "ERROR Unknown partition"): "400 Bad parameter", ("rtpproxy_enable", "Empty url"): "400 Bad parameter",
    ("allow_uri", "Basename is empty"): "403 Forbidden",
    **dict.fromkeys((("dr_gw_status", NO_PARTITION), ("dr_carrier_status", NO_PARTITION)), "400 Too few or too many arguments"),
    ("dr_reload_status", NO_PARTITION):
        "400 Too many arguments (use_partitions is 0 so no parameter should be supplied to the MI function)",
    ("rtpproxy_reload", "Dynamic loading not enabled"): "400 Bad parameter",
    ("t_reply", "Invalid params"): "400 Invalid reply code",
    **{(name, "Bad trace id value"): "400 Bad parameter" for name in ("trace", "sip_trace")},
    **{("tcp_trace", message): "500 Server Internal Error" for message in ("Invalid params", "Bad parameter value")},
}
INDENT = "\t"
BAD_PARAMS = -32602
BARE = ("500 command not available", "500 command failed", "400 parse_error")  # without an empty line behind them
COUNT = re.compile("Too few or too many|Named parameters do not match|only supports named|Ambiguous|Empty array")
EMPTY: dict = {  # command -> result of 3.x that has nothing, and the reply of 2.4
    "get_statistics": ({}, "404 Statistics Not Found\n\n"), "list_statistics": ({}, "404 Statistics Not Found\n\n"),
    "subscribers_list": ({"Event": {}}, "200 OK\n\n"),
}
PLAIN = re.compile(rb"[0-9]{3} [^\n]*\n?")
UNLIKE = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # a reply that has not the form of its command


@within_bounds
def reply_to_text(request: bytes, reply: bytes) -> bytes:
    """The text reply to a text request for the JSON-RPC reply of a server; mi.Error if that is none."""
    name = flat(mi.decode(mi.read_first_line(request)[1:-2]))
    try:
        members = mi.read_json(reply)
    except mi.ParseError:
        members = None
    if PLAIN.fullmatch(reply):  # as 3.x refuses what it cannot read, and what does not fit
        return reply.rstrip(b"\n") + b"\n\n"
    if not isinstance(members, dict) or not ("result" in members or "error" in members):
        raise mi.Error(500, f"the server answered what is no reply: {mi.decode(reply[:60])!r}")
    if name == "get_statistics":
        members = with_twins(reply, members)
    if members.get("error") is not None:
        return mi.encode(error_in_text(name, members["error"]))
    return mi.encode(result_in_text(name, members.get("result")))


def with_twins(reply: bytes, members: dict) -> dict:
    """The members of a reply; if the object of its result has some of its own more than once, with all of these."""
    result = members.get("result")
    if isinstance(result, dict) and reply.count(b'":') != len(members) + len(result):
        with contextlib.suppress(ValueError):
            return json.JSONDecoder(object_pairs_hook=forms.Twice).raw_decode(mi.decode(reply).lstrip())[0]
    return members


def error_in_text(name: str, error: Any) -> str:
    """The reply of 2.4 for an error of 3.x."""
    error = error if isinstance(error, dict) else {"message": error}
    code, message, data = error.get("code"), text_of(error.get("message") or ""), error.get("data")
    message = message or ("Invalid params" if code == BAD_PARAMS else "Server error")
    if (name, message) == ("cache_fetch", "Value not found"):
        return "200 OK\nValue not found\n\n"
    line = OF_COMMANDS.get((name, message)) or IN_TEXT.get(message)
    if message == "Invalid params" and name != "tcp_trace" and COUNT.search(f"{data}"):
        line = f"{401 if name == 'list_all_profiles' else 400} Too few or too many arguments"
    if not line:
        own = isinstance(code, int) and 100 <= code <= 999  # not one of JSON-RPC's
        status, detail = code if own else 400 if code == BAD_PARAMS else 500, f": {data}" if data and not own else ""
        line = f"{status} {message}{detail}".replace("\n", " ")
    return f"{line}\n" if line in BARE else f"{line}\n\n"


def result_in_text(name: str, result: Any) -> str:
    """The reply of 2.4 for a result of 3.x."""
    form, (nothing, line) = forms.FORMS.get(name), EMPTY.get(name, ("OK", "200 OK\n\n"))
    if result in ("OK", None, nothing, form and form.nothing):
        return line if result == nothing else "200 OK\n\n"
    if name == "help" and isinstance(result, str):
        result = dict([result.split(": ", 1)])
    try:
        in_form = form and form.tree and isinstance(result, (dict, list))
        nodes: list = forms.to_nodes(form.tree, result) if in_form else nodes_of(result)
        return f"200 OK\n{''.join(mi.node_lines(nodes, INDENT))}\n"
    except UNLIKE:  # another release's
        return f"200 OK\n{''.join(mi.node_lines(nodes_of(result), INDENT))}\n"


def nodes_of(value: Any, name: str | None = None) -> list:
    """The nodes of a result without a form, or of one of its members, by the rule at the top of this file."""
    if isinstance(value, dict) and name:
        return [(name, "", (), nodes_of(value))]
    if isinstance(value, dict):
        return [node for key, item in value.items() for node in nodes_of(item, key)]
    if isinstance(value, list):
        return [node for item in value for node in nodes_of(item, singular(name) if name else
                                                            "item" if isinstance(item, (dict, list)) else None)]
    return [(name, "" if value is None else value if isinstance(value, str) else mi.json_text(value), (), ())]


def singular(name: str) -> str:
    """What one of several is called: entry of entries, Process of Processes, AOR of AORs."""
    for plural, single in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ss", "ss"), ("us", "us"), ("s", "")):
        if name.lower().endswith(plural) and len(name) > len(plural) + 1:
            return name[:-len(plural)] + single
    return name


###############################################################################
# Replies: text to JSON-RPC
###############################################################################

IN_JSON = {  # first line of 2.4 -> error of 3.x
    "500 command not available": (-32601, "Method not found"),
    "500 command failed": (-32000, "Server error", "Command handler returned null"),
    "500 Server Internal Error": (500, "Internal error"), "400 Bad parameter": (400, "Bad parameter value"),
    **dict.fromkeys(("400 Too few or too many arguments", "401 Too few or too many arguments"),
                    (-32602, "Invalid params", "Too few or too many parameters")),
}
NOT_NAMES = {"index", "counter", "brief", "full", "profile", "value", "filter", "filter_out"}  # params that do not name one thing
SETTING = {"status", "new_status", "mode", "trace_mode", "enable"}  # params without which a command shows something
LAST = {"cache_fetch": "value", "t_uac_dlg": "Message"}  # command -> node whose value may have lines of its own


@within_bounds
def reply_to_jsonrpc(request: bytes, reply: bytes) -> bytes:
    """The JSON-RPC reply to a JSON-RPC request for the text reply of a server; mi.Error if that is none."""
    asked, params = read_jsonrpc(request)
    first, _, rest = mi.decode(reply).partition("\n")
    if not re.match(r"[0-9]{3,10} ", first):
        raise mi.Error(500, "Internal error", f"the server answered what is no reply: {first[:60]!r}")
    body = rest.removesuffix("\n").removesuffix("\n")
    try:
        return written(asked, outcome(flat(asked.name), params, first, body))
    except UNLIKE:  # another release's
        return written(asked, by_rule(mi.read_tree(body)))


def written(asked: mi.Request, result: Any) -> bytes:
    """The JSON-RPC reply with a result or an mi.Error."""
    return mi.encode(mi.write_jsonrpc(mi.Reply(result=result), asked, mi.JsonForm()))


def outcome(name: str, params: Any, first: str, body: str) -> Any:
    """The result, or the mi.Error, for the first line and the tree of a text reply; one of UNLIKE."""
    form = forms.FORMS.get(name)
    code, _, reason = first.partition(" ")
    if first == "404 Statistics Not Found" and name in ("get_statistics", "list_statistics"):
        return {}
    if code != "200" or reason != "OK":
        known = form.errors.get(reason) if form else None
        return mi.Error(*(known or IN_JSON.get(first) or (int(code), reason)))
    if (name, body) == ("cache_fetch", "Value not found"):
        return mi.Error(400, body)
    nodes = read_nodes(name, body)
    return result_of(name, form, bound(form, params) if params else {}, nodes) if form else by_rule(nodes)


def by_rule(nodes: list) -> Any:
    """The result for a tree without a form, by the rule at the top of this file."""
    return mi.json_tree(nodes, mi.JsonForm(), "OK")


def result_of(name: str, form: Any, given: dict, nodes: list) -> Any:
    """The result of 3.x for the tree of a command with a form."""
    if not nodes and form.nothing:
        return form.nothing
    has_rows = any(not isinstance(part, str) for part in form.tree)
    if not nodes and (not has_rows or SETTING & given.keys()):
        return "OK"
    if nodes and nodes[0][0] == "Usage":
        return f"Usage: {nodes[0][1]}"
    if not form.tree:
        return by_rule(nodes)
    if name in SHAPES and given:
        return SHAPES[name](forms.to_json(form.tree, nodes), given)
    return forms.to_json(form.tree, nodes, any(given[key] != "" for key in given.keys() - NOT_NAMES))


def shape_subscribers(result: dict, given: dict) -> dict:
    """The subscribers of one event, or one subscriber."""
    event = result["Events"][0] if result["Events"] else {}
    if event and "socket" in given:
        *members, (_, subscribers) = event.items()
        event = dict([*members, ("Subscriber", subscribers[0])])
    return {"Event": event}


def shape_records(result: dict, given: dict) -> Any:
    """The record that was asked for, of which 2.4 knows nothing."""
    wanted = given["aor"], given["contact"], given["registrar"]
    known = {(one["AOR"], one["binding"], one["registrar"]): one for one in result["Records"]}
    return {"Registrant": known[wanted]} if wanted in known else mi.Error(404, "No such registrant")


def shape_lists(result: dict, given: dict) -> Any:
    """The list that was asked for, of which 2.4 knows nothing."""
    known = {one["name"]: one for one in result["Lists"]}
    return known.get(given["name"]) or mi.Error(404, "Unknown name")


def shape_recipes(result: list, given: dict) -> Any:
    """The recipes of a command, of which 2.4 knows nothing."""
    form = form_of(given["command"])
    if not {*names_of(given["command"])} & {*result}:
        return mi.Error(404, "unknown MI command")
    return [recipe.split() for recipe in form.recipes] if form else [[]]


def shape_prefix(result: dict, given: dict) -> dict:
    """The prefix, of which 2.4 shows the length alone: it stands for a part of the memory behind it."""
    length = len(result["Matched Prefix"])
    return {**result, "Matched Prefix": mi.json_string(given["number"], "number")[:length]}


SHAPES: dict = {  # command -> what its result is, by what was asked
    "subscribers_list": shape_subscribers, "list_blacklists": shape_lists, "which": shape_recipes,
    "reg_list": shape_records, "dr_number_routing": shape_prefix,
}


def read_nodes(name: str, body: str) -> list:
    """The nodes of a text reply, whose last one may have lines of its own."""
    if name in LAST:
        head, mark, value = body.partition(f"\n{LAST[name]}:: ")
        return [*mi.read_tree(head), *([mi.Node(LAST[name], value)] if mark else [])]
    if "\t" in body or "::  " in body or not body:
        return mi.read_tree(body)
    parts = [line.partition(":: ") for line in body.split("\n")]  # no levels and no attributes, as of statistics
    return [(label, value or None, (), ()) if colons else (None, label, (), ()) for label, colons, value in parts]


###############################################################################
# Events
###############################################################################

EVENT_NUMBERS = ("bflags", "cseq", "expires", "group", "latency", "new_state", "old_state", "qval")
NULLS = ("received", "path")


@within_bounds
def event_to_text(event: bytes) -> bytes:
    """An event of 3.x, a JSON-RPC notification, as 2.4 sends it; mi.Error if it is none."""
    asked, params = read_jsonrpc(event)
    if isinstance(params, dict) and "db_id" in params:
        entry, number = divmod(event_number(params["db_id"]), 2**32)
        params = {**params, "hash_entry": entry, "hash_id": number}
    if isinstance(params, dict) and asked.name in forms.EVENT_FORMS:
        params = {key: params[key] for key in forms.EVENT_FORMS[asked.name].split() if key in params}
    if isinstance(params, dict):
        params = {key: None if value in ("", None) else text_of(value) for key, value in params.items()}
    return mi.write_event(asked.name, params if isinstance(params, dict) else [*map(text_of, params)], "text")


@within_bounds
def event_to_jsonrpc(event: bytes) -> bytes:
    """An event of 2.4 as 3.x sends it, a JSON-RPC notification; mi.Error if it is none."""
    line, _, rest = event.partition(b"\n")
    try:
        values, names = mi.read_arguments(rest)
    except mi.ParseError:
        raise mi.Error(500, f"an event that cannot be read: {mi.decode(line[:60])!r}") from None
    if not names or names[0] is None:  # the first one decides for all, as in 3.x
        return mi.write_event(mi.decode(line), [value or "" for value in values], "jsonrpc")
    params: dict = {name or "": event_value(name, value) for name, value in zip(names, values)}
    if "hash_entry" in params:
        number = event_number(params.pop("hash_entry")) * 2**32 + event_number(params.pop("hash_id", None))
        params = {"id": forms.dialog_id(number), "db_id": f"{number}", **params}
    return mi.write_event(mi.decode(line), params, "jsonrpc")


def event_number(value: Any) -> int:
    """A part of the id of a dialog; mi.Error if it is none."""
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        raise mi.Error(500, "an event with an id that is no number") from None


def event_value(name: str, value: str | None) -> Any:
    """The value of an attribute as 3.x has it."""
    if name in EVENT_NUMBERS and value and value.isdigit():
        return (int(value) + 2**63) % 2**64 - 2**63  # 2.4 shows -1, a q that is not set, without its sign
    return value or (None if name in NULLS else "")
