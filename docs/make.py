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
A text request gives arguments by position, whatever their names; JSON-RPC by position or name (`which` with a command
tells). The cache system `local` is the collection `default`; `cachedb_url` makes others: `local:two:///c2` is asked for as
`local:two`. `reset_statistics` takes names without their group. Statistics: `mi_datagram:` counts what this server did, over
all children and reloads; `core:timestamp` is the seconds since the start; `shmem:`, `pkmem:` and `load:` are the operating
system's figures of our processes under OpenSIPS' names (package memory: what a process maps; shared memory: our tables;
fragments: mappings; load: per cent of a CPU).
Events: `E_MI_CHILD_DIED`, `E_MI_RELOAD`, `E_MI_STOP`, and what plug-ins declare."""
NOTES = {  # module -> what stands behind its parameters
    "mi_datagram": """\
`socket_name` is UDP if it starts with `udp:` in lower case; IPv6 with or without brackets, `udp:*:PORT` for all addresses; the
last line wins. 600 is not 0600: a mode in decimal gets a warning. A request or reply has no more than 65507 bytes where a socket
is UDP, whatever `socket_buf_size` says, else 261828.""",
    "midatagram": """\
What `imitate` changes; `dialect` and all else stay as they are set:

| `imitate` | `version` shows | `which` lists | a short name of 4.0 (`list`) | defaults |
|---|---|---|---|---|
%s
A command is known by its name of 2.x and 3.x and by its full name of 4.0 (`cache_store`, `cache:store`), and
`disable`, `allow_command` and `trace_bwlist` hold for it under all its names.

A configuration may be a whole opensips.cfg of any release; `-f -` reads it from standard input. The folders of all `mpath` lines
are searched for plug-ins, and the list of names in `plugins/opensips.names` tells OpenSIPS' own modules from mistakes.

Logging as in opensips.cfg: `log_level` (3), `log_stderror` or `stderror_enabled`, `log_facility` or `syslog_facility`, and what
`stderror_level_filter` and `syslog_level_filter` let through of it. In the foreground the log
goes to stderr (with the journal's priorities under systemd), in the background to syslog, or, where there is none, to stderr
until all children serve: `-D` lets go of stderr then, and `log_file` is what keeps the log. Where it goes is set at the start;
a reload changes its level only.

Logging never waits. A line that cannot be written at once (nobody reads the pipe or terminal, the disk is full, the syslog
daemon hangs) is dropped and counted (`log_lost`), and the next one that can be says how many were lost. One line is one line:
what is not printable stands as an escape (`\\n`, `\\x1b`, `\\u2028`), the lines of a traceback are indented, and what is longer
than 3,900 bytes is cut. Of each kind of line a child logs 20 in 5 s, 5 about one client and one with the same text, then says
how many more there were; clients that are gone, not bound or refused by `allow_from` are named once. The lines of `-d` are
all logged.

With `-u`, the `log_file` is opened by that user. Where the user may not open it, root does, and gives a new one to the user,
so that SIGUSR1 can open it again. Root opens no log file and no trace file that another user may have put there: not through
a folder or link that others can exchange, and in a folder that others can write (`/tmp`) only a file of root's without a
second name.""",
    "cachedb_local": """\
A pattern of `cache_remove_chunk` has 256 bytes at most. Half of `store_size` (or of what the file system has free) is for keys
and values, since the pages of a database are seldom full. When they are full, or their file system is, `cache_store` answers
`500 Cache store command failed` until something expires or is removed; a log line says so once. A sixteenth is
not for cached values, so that a full cache refuses no subscriptions. Events are sent as far as subscribers have room for
them; those that they have not are counted (`events_lost`), and nobody waits.""",
}


def releases():
    """A row for each value of `imitate`."""
    for name, release in mi.shared("releases").RELEASES.items():
        version = f"`OpenSIPS ({release.version} (x86_64/linux))`" if release.version else "`midatagram (...)`"
        defaults = ", ".join(f"`{module}:{param}` {value}" for (module, param), value in release.defaults.items())
        new = "`cache:store`", f"known, or `-32001` if several have it; {', '.join(release.renamed)} have no others"
        listed, short = new if release.full_names else ("`cache_store`", "unknown")
        yield f"| `{name}` | {version} | {listed} | {short} | {defaults or 'as ever'} |\n"


NOTES["midatagram"] %= "".join(releases())
WITHOUT_EFFECT = "accepted without effect"  # the help of parameters that are listed by name alone
SHOWN = {"unix_socket_mode": "0660", "reply_indent": "TAB"}
MODULES = {  # name -> what stands before its parameters
    "mi_datagram": "The parameters of OpenSIPS' own module, and `pretty_printing` of 3.x.",
    "midatagram": "Parameters OpenSIPS lacks.",
    "cachedb_local": "The cache of the core.",
}


def modules():
    """The built-in modules, then the plug-ins that come with the script."""
    paths = sorted(path for path in (DOCS.parent / "plugins").iterdir() if path.suffix in mi.SUFFIXES and path.name[0] != "_")
    return [*mi.built_in_modules(), *[mi.load_plugin(str(path)) for path in paths]]


def default_of(param):
    """A default as a configuration has it."""
    value = param.default
    return SHOWN.get(param.name, "none" if value in (None, (), "") or isinstance(value, mi.TraceList)
                     else {True: "yes", False: "no"}.get(value, ", ".join(value) if isinstance(value, tuple) else str(value))
                     if isinstance(value, (bool, tuple)) else str(value))


def cell(text):
    """A text as a cell of a table."""
    return text.replace("|", "&#124;")


def configuration():
    """All parameters, statistics and events."""
    yield "# Configuration\n\n" + HEAD
    yield ("Each parameter is set by a line `modparam(\"MODULE\", \"PARAMETER\", VALUE)`. A text stands in quotes, a number or "
           "`yes` and `no` do not. The last line of a parameter counts, unless it is *repeatable*.\n")
    for module in modules():
        if module.params:
            yield f"\n## {module.name}\n\n{MODULES.get(module.name, summary(module))}\n\n"
            yield "| parameter | default | what it does |\n|---|---|---|\n"
            without = [param.name for param in module.params.values() if param.help == WITHOUT_EFFECT]
            for param in module.params.values():
                if param.name in without:
                    continue
                more = " (repeatable)" if param.repeat else ""
                yield f"| `{param.name}` | {default_of(param)} | {cell(param.help)}{more} |\n"
            if without:
                yield f"\nAccepted without effect: {', '.join(f'`{name}`' for name in without)}.\n"
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
    return first.partition("- ")[2].strip().capitalize() + "."


def commands():
    """All commands, with what JSON-RPC clients may call their parameters."""
    yield "# Commands\n\n" + HEAD
    yield ("An argument in brackets may be left out; `...` stands for any number.\n\n" + COMMAND_NOTES + "\n")
    for module in modules():
        if module.commands:
            yield f"\n## {module.name}\n\n| command | what it does | JSON-RPC parameters | in 4.0 |\n|---|---|---|---|\n"
            for command in module.commands:
                recipes = "; ".join(", ".join(recipe) or "none" for recipe in command.recipes)
                help = cell(" ".join(command.help.split()))
                yield f"| `{cell(command.signature_line())}` | {help} | {recipes} | `{command.full_name}` |\n"


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
