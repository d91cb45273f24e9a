#!/usr/bin/env python3
"""make -- writes configuration.md and commands.md from what the script and its plug-ins declare.

    docs/make.py           write both files
    docs/make.py --check   write nothing; exit status 1 when they are not what would be written
"""

import pathlib
import sys

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import midatagram as mi  # noqa: E402

HEAD = "<!-- written by docs/make.py from the declarations: change those -->\n\n"
COMMAND_NOTES = """\
A text request gives arguments by position, whatever their names; a JSON-RPC request by position or by name. The third column
lists the sets of names that a command takes, one after each semicolon; `which COMMAND` over JSON-RPC shows them too.

The cache system `local` is the collection `default`. `cachedb_url` makes others: requests call `local:two:///c2` `local:two`.

`reset_statistics` takes names without their group. `mi_datagram:` counts for all children, across reloads. `core:timestamp`
is the time since the start, seconds. `shmem:`, `pkmem:` and `load:` have OpenSIPS' names, but show what the operating system
says of midatagram's processes: package memory is what a process maps, shared memory the shared tables, fragments the number
of mappings, load per cent of a CPU."""
NOTES = {  # module -> text below its parameters
    "mi_datagram": """\
`socket_name` is a UDP socket if it starts with `udp:` in lower case, else a UNIX path. IPv6 addresses may have brackets;
`udp:*:PORT` means all addresses. Write the mode in octal: 0600, not 600, which gets a warning. Whatever `socket_buf_size`
says, a request or reply has at most 65507 bytes if a socket is UDP, else 261828.""",
    "midatagram": """\
`imitate` changes the following, and no other parameter:

| `imitate` | `version` shows | `which` lists | a short name of 4.0 (`list`) | defaults |
|---|---|---|---|---|
%s
A command has a name of 2.x and 3.x and a full name of 4.0 (`cache_store`, `cache:store`). Clients may use both, and `disable`,
`allow_command` and `trace_bwlist` hold for both. A short name of 4.0 in one of these lists stands for each command that has it.

A configuration may be a whole opensips.cfg of any release; `-f -` reads it from standard input. midatagram searches the
folders of all `mpath` lines for plug-ins. It skips modules that it lacks; if OpenSIPS has no such module either
(`plugins/opensips.names`), the log says so.

The log follows the globals of opensips.cfg: `log_level` (3), `log_stderror` or `stderror_enabled`, `log_facility` or
`syslog_facility`, `stderror_level_filter` and `syslog_level_filter`. In the foreground the log goes to stderr (with the
priorities of the journal under systemd), in the background to syslog. If there is no syslog, the log goes to stderr until all
children serve; then `-D` closes stderr and the log ends, unless `log_file` names a file. A reload changes the level of the
log, not its place.

Logging never waits. If a line cannot be written at once (nobody reads the pipe or terminal, the disk is full, the syslog
daemon hangs), it is dropped and counted (`log_lost`), and the next line says how many were lost. An entry is one line: what
is not printable becomes an escape (`\\n`, `\\x1b`, `\\u2028`), the lines of a traceback are indented, and a line is cut after
3,900 bytes. In 5 s a child logs at most 20 lines of a kind, 5 of them about one client and one with the same text; then it
logs how many more there were. It names a client that is gone, not bound or refused by `allow_from` once. `-d` logs all its
lines.

With `-u`, that user opens the `log_file`. If the user may not, root opens it, and gives a new file to the user so that
SIGUSR1 can open it again. Root opens no log file and no trace file that another user may have put there: not through a folder
or link that others can exchange, and in a folder that others can write to (`/tmp`) only a file of root's without a second
name.""",
    "cachedb_local": """\
A pattern of `cache_remove_chunk` has at most 256 bytes. Keys and values may fill half of `store_size` (or of the free space
of the file system), because the pages of a database are seldom full. When that half or the file system is full, `cache_store`
replies `500 Cache store command failed` until something expires or is removed; the log says so once. Cached values leave a
sixteenth free, so that a full cache refuses no subscriptions. Sending an event never waits: an event that a subscriber has no
room for is dropped and counted (`events_lost`).""",
}


def releases():
    """A row for each value of `imitate`."""
    for name, release in mi.shared("releases").RELEASES.items():
        version = f"`OpenSIPS ({release.version} (x86_64/linux))`" if release.version else "`midatagram (...)`"
        defaults = ", ".join(f"`{module}:{param}` {value}" for (module, param), value in release.defaults.items())
        new = "`cache:store`", f"known, or `-32001` if several have it; {', '.join(release.renamed)} have no others"
        listed, short = new if release.full_names else ("`cache_store`", "unknown")
        yield f"| `{name}` | {version} | {listed} | {short} | {defaults or 'unchanged'} |\n"


NOTES["midatagram"] %= "".join(releases())
WITHOUT_EFFECT = "accepted without effect"  # the help of parameters that are listed by name alone, before `: ` and the reason
SHOWN = {"unix_socket_mode": "0660", "reply_indent": "TAB"}
MODULES = {  # name -> text above its parameters
    "mi_datagram": "The parameters of mi_datagram in OpenSIPS 2.4, `socket_buf_size` of 4.0 and `pretty_printing` of 3.x.",
    "midatagram": "Parameters OpenSIPS lacks.",
    "cachedb_local": "The cache, as in OpenSIPS' module.",
}


def modules():
    """The built-in modules, then the plug-ins that come with the script."""
    paths = sorted(path for path in (DOCS.parent / "plugins").iterdir() if path.suffix in mi.SUFFIXES and path.name[0] != "_")
    return [*mi.built_in_modules(), *[mi.load_plugin(str(path)) for path in paths]]


def default_of(param):
    """A default as a configuration has it."""
    value = param.default
    return SHOWN.get(param.name, "none" if value in (None, (), [], "", (False, ()))
                     else {True: "yes", False: "no"}.get(value, ", ".join(value) if isinstance(value, tuple) else str(value))
                     if isinstance(value, (bool, tuple)) else str(value))


def cell(text):
    """A text as a cell of a table."""
    return text.replace("|", "&#124;")


def without_effect(text):
    """The help of a parameter without effect, its reason in parentheses."""
    what, _, reason = text.partition(": ")
    return what.capitalize() + (f" ({reason})" if reason else "")


def configuration():
    """All parameters, statistics and events."""
    yield "# Configuration\n\n" + HEAD
    yield ("Each parameter is set by a line `modparam(\"MODULE\", \"PARAMETER\", VALUE)`. Write a text in quotes, a number or "
           "`yes` and `no` without. The last line of a parameter counts; each line of a *repeatable* one adds a value.\n")
    for module in modules():
        if module.params:
            yield f"\n## {module.name}\n\n{MODULES.get(module.name, summary(module))}\n\n"
            without = [param.name for param in module.params.values() if param.help.startswith(WITHOUT_EFFECT)]
            yield "| parameter | default | what it does |\n|---|---|---|\n" if len(without) < len(module.params) else ""
            for param in module.params.values():
                if param.name in without:
                    continue
                more = " (repeatable)" if param.repeat else ""
                yield f"| `{param.name}` | {default_of(param)} | {cell(param.help)}{more} |\n"
            helps = dict.fromkeys(module.params[name].help for name in without)
            gap = "\n" if len(without) < len(module.params) else ""
            for text in helps:
                names = ", ".join(f"`{name}`" for name in without if module.params[name].help == text)
                yield f"{gap}{without_effect(text)}: {names}.\n"
                gap = "\n"
            yield f"\n{NOTES[module.name]}\n" if module.name in NOTES else ""
    yield "\n## Statistics\n\n| statistic | what it shows |\n|---|---|\n"
    written = [module for module in modules() if module.path.endswith(".py")]  # files of canned replies show theirs
    for stat in dict.fromkeys(stat for module in written for stat in module.stats):
        yield f"| `{stat.group}:{stat.name}` | {cell(stat.help)} |\n"
    yield "\n## Events\n\n| event | when it is raised |\n|---|---|\n"
    for module in modules():
        for event in module.events:
            yield f"| `{event.name}` | {cell(event.help)} |\n"


def summary(module):
    """What a plug-in says of itself, in one line."""
    text = pathlib.Path(module.path).read_text()
    first = text.split('"""')[1].strip().split("\n")[0] if module.path.endswith(".py") else "- canned replies"
    first = first.partition("- ")[2].strip().rstrip(".")
    return first[0].upper() + first[1:] + "."


def commands():
    """All commands, with what JSON-RPC clients may call their parameters."""
    signature_line = mi.shared("_core_commands").signature_line
    yield "# Commands\n\n" + HEAD
    yield ("An argument in brackets is optional; `...` means any number of arguments.\n\n" + COMMAND_NOTES + "\n")
    for module in modules():
        if module.commands:
            yield f"\n## {module.name}\n\n| command | what it does | JSON-RPC parameters | in 4.0 |\n|---|---|---|---|\n"
            for command in module.commands:
                recipes = "; ".join(", ".join(recipe) or "none" for recipe in command.recipes)
                help = cell(" ".join(command.help.split()))
                yield f"| `{cell(signature_line(command))}` | {help} | {recipes} | `{command.full_name}` |\n"


FILES = {"configuration.md": configuration, "commands.md": commands}


def main(argv):
    """Write the files, or compare them."""
    stale = []
    for name, write in FILES.items():
        path, text = DOCS / name, "".join(write())
        if argv == ["--check"]:
            stale += [name] if not path.exists() or path.read_text() != text else []
        else:
            path.write_text(text)
    if stale:
        print(f"{', '.join(stale)}: not what docs/make.py writes; run it", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
