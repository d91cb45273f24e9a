"""command_lists -- the commands that disable, allow_command and trace_bwlist name, under all of their names."""
from __future__ import annotations

import fnmatch

import midatagram as mi


def settle(loader: mi.Loader, registry: mi.Registry) -> None:
    """Give the commands that parameters name their registered names, and look up accounts; ConfigError."""
    traced, own = loader.modules["mi_datagram"], loader.modules["midatagram"]
    white, names = traced.settings["trace_bwlist"]
    names = listed_names(loader, registry, names, traced.where("trace_bwlist"), "trace_bwlist")
    traced.settings["trace_bwlist"] = white, names
    names = listed_names(loader, registry, own.settings["disable"], own.where("disable"), "disable")
    own.settings["disable"] = registry.switched_off = names
    for nth, where in enumerate(own.lines.get("allow_command", [])):
        commands, *others = own.settings["allow_command"][nth]
        commands = listed_names(loader, registry, commands, where, "allow_command")
        own.settings["allow_command"][nth] = mi.shared("access").with_numbers((commands, *others), where)


def listed_names(loader: mi.Loader, registry: mi.Registry, names: tuple, where: tuple[str, int], param: str) -> mi.Patterns:
    """The registered names of commands that a parameter names or has patterns of, which stay for what is forwarded; a warning
    for those that only OpenSIPS has. ConfigError."""
    listed = []
    for name in names:
        fitting = [command.name for command in registry.listed(mi.Patterns([name]))]
        behind = loader.opensips["commands"] if registry.catch_alls else ()  # which may know them without their modules
        listed += [name, *fitting, *[full for full in behind if full.partition(":")[2] == name]]
        short = name.partition(":")[2]  # that 4.0 runs as well: a new command's, or several commands'
        listed += [short] if registry.catch_alls and short and short not in behind and not set(short) & set("*?[") else []
        if fitting or registry.catch_alls:
            continue
        if loader.opensips["commands"] and not fnmatch.filter(loader.opensips["commands"], name):
            hint = mi.nearest(name, registry.known)
            raise mi.ConfigError(*where, f'{param} names the command "{name}", which does not exist{hint}')
        loader.note(where, f'{param} names the command "{name}"; no plug-in here has it')
    return mi.Patterns(dict.fromkeys(listed))
