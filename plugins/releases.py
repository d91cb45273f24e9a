"""releases -- what releases of OpenSIPS do differently from each other, for midatagram's parameter `imitate`."""
from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import midatagram as mi


class Release(NamedTuple):
    """What one release does differently from others."""

    version: str = ""
    full_names: bool = False  # commands are listed under their full names, and short ones known
    defaults: dict = {}  # (module, parameter) -> default
    renamed: tuple = ()  # modules whose commands have lost their names of before
    recipes: dict = {}  # full name of a command -> the parameters that it takes together

    def set_defaults(self, modules: dict[str, Any]) -> None:
        """Give the modules the defaults of this release, and its name as the version that is shown."""
        for (name, param), value in self.defaults.items():
            if name in modules and param not in modules[name].lines:
                modules[name].settings[param] = value
        machine, own = os.uname(), modules["midatagram"].settings
        own["version_text"] = own["version_text"] or f"OpenSIPS ({self.version} ({machine.machine}/{machine.sysname.lower()}))"

    def rename(self, registry: Any) -> None:
        """List commands under their full names, in the order of the release, know them by those without a module, and refuse
        those that several have."""
        if not self.full_names:
            return
        commands = self.in_order(registry.commands.values())
        registry.commands = {command.full_name: command for command in commands}
        for command in commands:
            command.recipes = self.recipes.get(command.full_name, command.recipes)
            if command.module.name in self.renamed:
                del registry.names[command.name]
        short: dict[str, list] = {}
        for full in dict.fromkeys((*CORE_40, *registry.commands)):
            short.setdefault(full.partition(":")[2], []).append(full)
        for name, (full, *others) in short.items():
            if others:
                names = ", ".join(sorted((full, *others), key=group_of))
                registry.ambiguous[name] = mi.Error(-32001, "Method ambiguous", f"supported names: {names}")
                registry.names.pop(name, None)
            elif full in registry.commands:
                registry.names[name] = registry.known[name] = registry.commands[full]
        for command in [*registry.known.values()]:  # those that are switched off
            registry.known.setdefault(command.full_name.partition(":")[2], command)


    def in_order(self, commands: Iterable) -> list:
        """Those of the commands that the release has, or that no release has, in the order in which it registers them: the core's
        by GROUPS, then the modules as they are loaded."""
        names = mi.shared("opensips_forms").NAMES
        places = {name: at for at, name in enumerate(dict.fromkeys(full for *_, full in names.values()))}
        modules = [*GROUPS, *dict.fromkeys(command.full_name.partition(":")[0] for command in commands)]
        known = {name.partition(":")[0] for name in places}
        kept = [one for one in commands if one.full_name in places or one.full_name.partition(":")[0] not in known]
        return sorted(kept, key=lambda one: (modules.index(one.full_name.partition(":")[0]), places.get(one.full_name, 0)))


GROUPS = ("statistics", "core", "tcp", "mem", "cache", "status_report", "evi", "blacklists")
CORE_40 = ("statistics:get", "status_report:get", "status_report:status")  # which share a short name, here or not


def group_of(full: str) -> int:
    """The place of the group of a command in the order in which 4.0 registers them."""
    group = full.partition(":")[0]
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)


RECIPES_40: dict[str, list] = {
    "tcp:list": [(), ("proto",)],
    "dialog:send_sequential": [
        ("callid",), ("callid", "mode"), ("callid", "method"), ("callid", "body"), ("callid", "mode", "method"),
        ("callid", "mode", "body"), ("callid", "method", "body"), ("callid", "method", "body", "mode"),
        ("callid", "method", "body", "mode", "headers")]}
RELEASES = {"midatagram": Release(), "2.4": Release("2.4.11"), "3.4": Release("3.4.18"),
            "4.0": Release("4.0.1", True, {("usrloc", "use_domain"): 1}, ("domain", "nathelper", "pike", "rtpproxy"),
                          RECIPES_40)}
