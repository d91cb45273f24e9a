"""permissions -- addresses, subnets and rule files, as OpenSIPS' module shows them.

The tables are read at the start and by address_reload, rule files at the start. A partition is a key of the store, whose value
has its addresses and subnets as they are listed.
"""
from __future__ import annotations

import ipaddress
import json
import os
import re
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE, RULES = "permissions", "permissions rules"
REPLACED = (SPACE, RULES)  # by load(), each in one step
ADDRESS = opensips.table("address", [5], "grp#? ip mask#? port#? proto pattern? context_info?=info_col", "%s_col")
NEEDED = ("ip", "grp", "mask", "port", "proto")
BUCKETS = MOST_SUBNETS = 128
NOT_READ = {"text": mi.Error(400, "Trusted table reload failed"), "jsonrpc": mi.Error(500, "Failed to reolad")}  # so written
LEAST_BYTES = 60  # of a destination in a reply
MOST_NAME, MOST_URI = 127, 1024  # bytes, of the name of a rule file and of a URI

PARAMS = [
    mi.Param("db_url", "", mi.string, "database with the table: text://DIRECTORY or sqlite://FILE"),
    mi.Param("address_table", "address", mi.string, "name of the table, and of those of partitions that name none"),
    mi.Param("partition", (), opensips.partition_line, "another table: `NAME: db_url = URL; table_name = TABLE`", repeat=True),
    mi.Param("default_allow_file", "permissions.allow", mi.string, "rule file that is always read"),
    mi.Param("default_deny_file", "permissions.deny", mi.string, "rule file that is always read"),
    mi.Param("allow_suffix", ".allow", mi.string, "suffix of the files with rules that allow"),
    mi.Param("deny_suffix", ".deny", mi.string, "suffix of the files with rules that deny"),
    mi.Param("rule_files", (), mi.words, "basenames of more rule files, comma-separated, besides those in the routing script"),
    *opensips.columns(ADDRESS),
    *opensips.without_effect("check_all_branches db_mode from_col peer_tag_avp source_col tag_col trusted_table"),
]

###############################################################################
# Tables
###############################################################################


def partitions(ctx) -> dict[str, tuple]:
    """The database and the table of each partition, in the order of the dumps: the default one first, if there is one."""
    own, name = ctx.own.db_url or ctx.param("db_url"), ctx.param("address_table")
    declared = {**({"default": {}} if own else {}), **dict(ctx.param("partition"))}  # which db_default_url alone does not make
    return {part: (opensips.url_of(ctx, settings.get("db_url", "")),
                   ADDRESS.named(ctx, settings.get("table_name") or name))
            for part, settings in declared.items()}


def listed(ctx, rows: list) -> dict[str, list]:
    """The addresses and the subnets that the rows of a table make, each in the order of its dump."""
    found: dict[str, list] = {"addresses": [], "subnets": []}
    for row in opensips.in_turns(rows):
        if None in [row[name] for name in NEEDED]:
            ctx.log.warning("%s: one of %s is NULL, passed over", row.where, ", ".join(NEEDED))
            continue
        try:
            network = network_of(row["ip"], row["mask"])
        except ValueError:
            ctx.log.warning("%s: address %s with mask %s is none, passed over", row.where, row["ip"], row["mask"])
            continue
        protocol = (row["proto"] or "any").lower()
        if protocol not in opensips.PROTOCOLS:
            ctx.log.warning("%s: address %s has the protocol %s, which is none, passed over", row.where, row["ip"], row["proto"])
            continue
        if row["grp"] & 2**31:
            ctx.log.warning("%s: address %s has the group %d, passed over", row.where, row["ip"], row["grp"])
            continue
        full, shown = row["mask"] == network.max_prefixlen, opensips.shown_ip
        bucket = opensips.core_hash(network.network_address.packed) % BUCKETS
        found["addresses" if full else "subnets"].append((bucket, {
            "grp": row["grp"], "ip": shown(network.network_address), "mask": f"{row['mask']}" if full else shown(network.netmask),
            "port": row["port"] & 0xFFFFFFFF, "proto": protocol, "pattern": row["pattern"] or "",
            "context_info": row["context_info"] or ""}))
    addresses, subnets = found["addresses"], found["subnets"]
    if not opensips.is_40(ctx):  # which has them in another structure
        newest_first = addresses[::-1]
        addresses, subnets = sorted(newest_first, key=lambda pair: pair[0]), subnets[:MOST_SUBNETS]
    return {"addresses": [item for _, item in addresses],
            "subnets": sorted([item for _, item in subnets], key=lambda item: item["grp"])}


def network_of(ip: str, mask: int) -> Any:
    """The network of a row, whose IPv6 address may be in brackets; ValueError, also for one that ends as one of IPv4."""
    if ":" in ip and "." in ip:
        raise ValueError(ip)
    return ipaddress.ip_network((re.sub(r"^\[(.*:.*)\]$", r"\1", ip), mask), strict=False)


take_in = opensips.kept(json.loads)  # a view is {partition: what listed() returns}


def read_partition(ctx, name: str) -> None:
    """Read the table of a partition; TableError."""
    ctx.store.put(SPACE, name, json.dumps(listed(ctx, opensips.rows_of(ctx, *partitions(ctx)[name]))))


def init(ctx):
    """Check the tables."""
    opensips.check_tables(ctx, *partitions(ctx).values())


def load(ctx):
    """Read the tables and the rule files."""
    for name in partitions(ctx):
        read_partition(ctx, name)
    ctx.store.put(RULES, "files", json.dumps({allow: [read_rules(ctx, allow), read_rules(ctx, deny)]
                                              for allow, deny in rule_files(ctx).items()}))


def child_init(ctx):
    """Have the table before a request wants it."""
    ctx.view(SPACE, take_in)


###############################################################################
# Rule files
###############################################################################
# A line is `URI, URI EXCEPT URI : CONTACT, CONTACT EXCEPT CONTACT`, where each is a regular expression, in quotes or not; a side
# may be ALL. What is outside of quotes ends at `#`, and its last colon counts.

QUOTED, COMMA = re.compile('"[^"]*"?'), re.compile(',(?=(?:[^"]*"[^"]*")*[^"]*$)')
CLASSES = {"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "space": r"\s", "upper": "A-Z", "lower": "a-z",
           "xdigit": "0-9a-fA-F", "blank": r" \t", "punct": r"!-/:-@\[-`{-~"}


class Rule(NamedTuple):
    """Patterns of URIs and of contacts, with those that are left out; None: all."""

    uri: list | None
    uri_but: list | None
    contact: list | None
    contact_but: list | None

    def fits(self, uri: str, contact: str) -> bool:
        """Whether the rule is for a URI and a contact."""
        return all((patterns is None or matches(patterns, text)) and not (but and matches(but, text))
                   for patterns, but, text in ((self.uri, self.uri_but, uri), (self.contact, self.contact_but, contact)))


def matches(patterns: list, text: str) -> bool:
    """Whether one of the patterns is in a text, in any case."""
    return any(re.search(pattern, text, re.I) for pattern in patterns)


def rule_files(ctx) -> dict[str, str]:
    """The files of rules that allow, each with that of rules that deny, which the routing script reads at its start."""
    allow, deny = ctx.param("allow_suffix"), ctx.param("deny_suffix")
    named = [(ctx.param("default_allow_file"), ctx.param("default_deny_file")),
             *[(base + allow, base + deny) for base in ctx.param("rule_files")]]
    for function, *texts in ctx.own.calls:
        if function in ("allow_routing", "allow_register") and len(texts) > 1:
            named.append((texts[0], texts[1]))
        elif function in ("allow_routing", "allow_register", "allow_uri"):
            named.append((texts[0] + allow, texts[0] + deny))
    return {path_of(ctx, first): path_of(ctx, second) for first, second in reversed(named)}


def path_of(ctx, name: str) -> str:
    """Where a rule file is: as named, or without a folder beside the configuration that sets this module's parameters."""
    files = [path for places in ctx.own.lines.values() for path, _ in places] or [ctx.server.setup.path]
    return name if "/" in name else os.path.join(os.path.dirname(files[0]), name)


def read_rules(ctx, path: str) -> list[Rule]:
    """The rules of a file, none if it is not there; what is no rule is logged and passed over."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", opener=opensips.open_regular) as file:
            lines = file.read().split("\n")
    except opensips.TableError as error:
        ctx.log.error("%s", error)
        return []
    except OSError:
        return []
    rules = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rules.append(read_rule(line))
            except (ValueError, OverflowError, re.error) as error:  # a{99999999999} overflows
                ctx.log.error("%s:%d: %s, passed over", path, number, error)
    return rules


def read_rule(line: str) -> Rule:
    """The rule of a line; ValueError, re.error."""
    outside = QUOTED.sub(lambda match: "x" * len(match[0]), line).partition("#")[0]
    colon = outside.rfind(":")
    if not 0 < colon < len(outside) - 1:
        raise ValueError('is no rule: "URI" : "CONTACT"')
    return Rule(*side_of(line[:colon]), *side_of(line[colon + 1:len(outside)]))


def side_of(text: str) -> tuple:
    """The patterns of a side, None for ALL, and those behind EXCEPT; ValueError, re.error."""
    words, is_there, but = text.partition(" EXCEPT ")
    return None if words.strip() == "ALL" else patterns_of(words), patterns_of(but) if is_there else None


def patterns_of(text: str) -> list[str]:
    """The regular expressions of a list of them; ValueError, re.error."""
    words = [word.strip().removeprefix('"').removesuffix('"') for word in COMMA.split(text)]
    if "" in words:
        raise ValueError("has an empty expression")
    patterns = [re.sub(r"\[:(\w+):\]", lambda match: CLASSES.get(match[1], ""), word) for word in words]
    for pattern in patterns:
        re.compile(pattern)
    return patterns


def take_rules(view: dict, key: str, value: str | None) -> None:
    """Keep the rules in a view, which is {file of rules that allow: (these, those that deny)}."""
    view.clear()
    for path, lists in json.loads(value or "{}").items():
        view[path] = tuple([Rule(*rule) for rule in rules] for rules in lists)


###############################################################################
# Commands
###############################################################################


@opensips.command(timed=False)
def address_reload(ctx, partition=None):
    """Read the tables of all partitions again, or of one."""
    reads_all = partition is None and not ctx.request.values
    for name in partitions(ctx) if reads_all else [opensips.text(ctx, "partition", partition)]:
        if name not in partitions(ctx):
            raise mi.Error(400, "Trusted table reload failed")
        of_all = mi.Error(400, f"failed to reload partition  {name}!")
        with opensips.reloading(ctx, of_all if reads_all else NOT_READ[ctx.request.dialect]):
            read_partition(ctx, name)
    return mi.Reply()


def dump(ctx, kind: str, partition: Any) -> Any:
    """The reply that shows the addresses or the subnets of all partitions, or of one; mi.Error."""
    view, wanted = ctx.view(SPACE, take_in), [*partitions(ctx)]
    one = partition is not None or bool(ctx.request.values)
    if one:
        wanted = [opensips.text(ctx, "partition", partition)]
        if wanted[0] not in partitions(ctx):
            raise mi.Error(404, "No such partition")
    lists = {name: view[name][kind] for name in wanted if name in view}
    opensips.check_size(ctx, sum(map(len, lists.values())), LEAST_BYTES)
    result = {"part": wanted[0], "Destinations": lists[wanted[0]]} if one else {
        "Partitions": [{"name": name, "Destinations": items} for name, items in lists.items()]}
    return opensips.reply(ctx, result, depends=(SPACE,))


@opensips.command
def address_dump(ctx, partition=None):
    """Show the addresses of all partitions, or of one."""
    return dump(ctx, "addresses", partition)


@opensips.command
def subnet_dump(ctx, partition=None):
    """Show the subnets of all partitions, or of one."""
    return dump(ctx, "subnets", partition)


@opensips.command
def allow_uri(ctx, basename, uri, contact):
    """Say whether the rule files of a BASENAME allow a URI with a CONTACT."""
    suffix, texts = ctx.param("allow_suffix"), []
    for name, value, most in (("Basename", basename, MOST_NAME - len(suffix)), ("URI", uri, MOST_URI),
                              ("Contact", contact, MOST_URI)):
        texts.append(opensips.text(ctx, name.lower(), value))
        if ctx.request.dialect == "jsonrpc" and not texts[-1]:
            raise mi.Error(404, "Basename is empty")
        if len(mi.encode(texts[-1])) > most:
            raise mi.Error(404, f"{name} is too long")
    rules = ctx.view(RULES, take_rules).get(path_of(ctx, texts[0] + suffix))
    if rules is None or not is_allowed(rules, *texts[1:]):
        raise mi.Error(403, "Forbidden")
    return mi.Reply()


def is_allowed(rules: tuple, uri: str, contact: str) -> bool:
    """Whether rules that allow and rules that deny let a URI and a contact pass."""
    allowed, denied = [any(rule.fits(uri, contact) for rule in listed) for listed in rules]
    return allowed or not denied
