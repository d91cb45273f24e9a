"""What README, the pages of docs/, the example configuration and --help say is true of the program."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
from conftest import (
    OPENSIPS_MODULES,
    ROOT,
    SYSTEM_PYTHON,
    blocks_of,
    copy_to,
    needs,
    needs_system_packages,
    placed,
    run,
    session_of,
    wait_for,
)
from test_install import make_venv

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))
import tracing

PATHS = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in PATHS}
README, OPERATIONS, CLIENT = PAGES["README.md"], PAGES["docs/operations.md"], PAGES["docs/client.md"]
SECURITY = PAGES["docs/security.md"]
CONFIGURATION, COMMANDS = PAGES["docs/configuration.md"], PAGES["docs/commands.md"]
EXAMPLE = (ROOT / "midatagram.conf.example").read_text()
SHIPPED = [mi.load_plugin(str(path)) for path in sorted((ROOT / "plugins").iterdir()) if path.suffix in (".py", ".conf")]
MODULES = [*mi.built_in_modules(), *SHIPPED]
OPENSIPS = "statistics", "cachedb_redis", *OPENSIPS_MODULES  # whose parameters an opensips.cfg has
PARAMS = [(module, param) for module in MODULES for param in module.params.values()]


@pytest.mark.parametrize("module, param", PARAMS, ids=[f"{module.name}.{param.name}" for module, param in PARAMS])
def test_every_parameter_is_documented_with_its_default(module, param):
    if param.help.startswith("accepted without effect"):
        section, reason = CONFIGURATION.partition(f"\n## {module.name}\n")[2].partition("\n## ")[0], param.help.partition(": ")[2]
        shown = f" ({reason})" if reason else ""
        assert re.search(rf"^{re.escape(f'Accepted without effect{shown}')}: .*`{param.name}`", section, re.M)
    else:
        assert re.search(rf"^\| `{param.name}` \| [^|]+ \| {re.escape(param.help.replace('|', '&#124;'))}", CONFIGURATION, re.M)


OWN = [(module, param) for module, param in PARAMS if module.name not in OPENSIPS]


@pytest.mark.parametrize("module, param", OWN, ids=[f"{module.name}.{param.name}" for module, param in OWN])
def test_every_parameter_is_in_the_example(module, param):
    assert re.search(rf'^(# )?modparam\("{module.name}", "{param.name}", ', EXAMPLE, re.M)


def test_the_example_shows_defaults():
    """Numbers in commented lines are what the program takes without them."""
    for param in (*mi.MI_DATAGRAM_PARAMS, *mi.MIDATAGRAM_PARAMS):
        found = re.search(rf'^# modparam\("\w+", "{param.name}", (0?\d+)\)', EXAMPLE, re.M)
        if found and type(param.default) is int:
            assert int(found[1], 8 if found[1].startswith("0") and len(found[1]) > 1 else 10) == param.default, param.name


def test_every_command_is_documented():
    signature_line = mi.shared("_core_commands").signature_line
    for module in MODULES:
        for command in module.commands:
            assert f"| `{signature_line(command)}` | {' '.join(command.help.split())} |" in COMMANDS


def test_the_page_on_design_names_the_files_that_the_script_loads():
    loaded = set(re.findall(r'\b(?:shared|if_there)\("(\w+)"', (ROOT / "midatagram.py").read_text()))
    section = PAGES["docs/design.md"].partition("\n## Files of the script\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section.partition("|---|")[2]))
    assert len(loaded) > 20 and loaded <= named
    assert all((ROOT / "plugins" / f"{name}.py").exists() for name in named - {"imitate"})


def test_every_statistic_and_event_is_documented():
    for module in MODULES:
        for stat in module.stats if module.path.endswith(".py") else ():
            assert f"| `{stat.group}:{stat.name}` | {stat.help} |" in CONFIGURATION
        for event in module.events:
            assert f"| `{event.name}` | {event.help} |" in CONFIGURATION
    assert ", ".join(tracing.FIGURES).replace(", connected", " and connected") in PAGES["docs/tracing.md"].replace("\n", " ")


def test_every_exit_status_is_documented_and_in_the_help():
    statuses = {value for name, value in vars(mi).items() if name.startswith("EXIT_")}
    rows = OPERATIONS.partition("| exit status | meaning |")[2].partition("\n\n")[0]
    table = {int(status) for status in re.findall(r"^\| (\d+) \| ", rows, re.M)}
    told = run("--help").stdout
    assert statuses == table
    assert all(re.search(rf"\b{status}\b", told) for status in statuses)


def test_every_option_is_documented_and_the_other_way_round():
    for page, told in ((OPERATIONS, run("--help").stdout), (CLIENT, run("call", "--help").stdout)):
        options = set(re.findall(r"(?<![\w-])(--?[a-zA-Z][a-z-]*)", told)) - {"-h", "--help"}
        table = page.partition("| option | does |")[2].partition("\n\n")[0]
        assert options == set(re.findall(r"`(--?[a-zA-Z][a-z-]*)", table))


@pytest.mark.parametrize("tool, page", [
    ("record", "docs/recordings.md"), ("verify", "docs/recordings.md"), ("lab", "docs/lab.md"), ("gateway", "docs/gateway.md")])
def test_every_option_of_a_tool_is_on_its_page(tool, page):
    """But for those of the server and of `call`, which have tables of their own."""
    told, known = run(tool, "--help").stdout, run("--help").stdout + run("call", "--help").stdout
    options = {*re.findall(r"^  (--?[a-zA-Z][a-z-]*)", told, re.M)} - {*re.findall(r"^  (--?[a-zA-Z][a-z-]*)", known, re.M)}
    text = PAGES[page].partition(f"midatagram.py {tool} ")[2]
    assert text and [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)] == []


def test_the_readme_is_short():
    assert README.count("\n") <= 150


WRITERS = "docs/make.py", "docs/picture.py", "bench/plot"
PROGRAMS = "bench/run", "bench/soak", "tests/fuzz.py", *WRITERS


@pytest.mark.parametrize("program", PROGRAMS)
def test_options_of_programs_that_the_pages_name(program):
    lines = re.findall(rf"(?:^|[` ]){program}\b([^#`\n]*)", "".join(PAGES.values()), re.M)
    named = set(re.findall(r"(?<![\w-])--[a-z-]+", " ".join(lines)))
    assert lines and named <= set(re.findall(r"--[a-z-]+", (ROOT / program).read_text()))


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run_as_the_pages_write_them(program, tmp_path):
    """By a Python that is called python3 and has no packages, unless the line says which."""
    (tmp_path / "python3").symlink_to(getattr(sys, "_base_executable", sys.executable))
    written = set(re.findall(rf"(?:^|`)((?:[\w./]*python3? )?{program})\b", "\n".join(PAGES.values()), re.M))
    option = "--check" if program in WRITERS else "--help"
    assert written
    for line in written:
        words = line.replace(".venv/bin/python", sys.executable).split()
        done = subprocess.run(["/usr/bin/env", "-i", f"PATH={tmp_path}", *words, option], cwd=ROOT, capture_output=True,
                              text=True)
        assert done.returncode == 0, (line, done.stderr)


def anchors(page):
    """The anchors of the headings of a page."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", page, re.M)}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.S | re.M)):
        target, _, anchor = link.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(name), target)) if target else name
        assert (ROOT / path).exists(), link
        assert not anchor or anchor in anchors(PAGES[path]), link


def test_each_page_is_linked_from_the_readme():
    assert {f"({name})" for name in PAGES if name not in ("README.md", "SECURITY.md")} <= set(re.findall(r"\([^)]*\)", README))


@pytest.mark.parametrize("program", WRITERS)
def test_what_is_written_from_a_source_is_up_to_date(program):
    done = subprocess.run([sys.executable, ROOT / program, "--check"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{program} writes something else"


def test_the_plugin_shown_is_the_one_shipped():
    assert (ROOT / "plugins" / "hello.py").read_text() in blocks_of(README, "python")


def test_the_page_of_plugins_has_what_a_plugin_may_use():
    """Hooks, keywords of commands and statistics, what a Context has, and the values that a command returns."""
    page = PAGES["docs/plugins.md"]
    options = [*set(mi.CommandTag._fields) - {"name", "help", "bind", "converters"}, *set(mi.Stat._fields) - {"name", "help"}]
    context = {name for name in vars(mi.Context) if not name.startswith("_")} - {"own", "server", "refuse"}
    assert [hook for hook in mi.Module.HOOKS if not re.search(rf"^\| `{hook}\(ctx", page, re.M)] == []
    assert [name for name in options if not re.search(rf"^\| `{name}=", page, re.M)] == []
    rows = page.partition("## What a Context has")[2].partition("\n## ")[0]
    assert [name for name in context if not re.search(rf"`{name}\b", rows)] == []
    assert "`mi.LATER`" in page and "`mi.AsyncResult()`" in page


def test_the_example_is_good():
    done = run("-c", "-f", ROOT / "midatagram.conf.example")
    assert done.returncode == 0, done.stderr


CONFIGURATIONS = [block for page in PAGES.values() for block in blocks_of(page, "")
                  if block.startswith(("modparam", "loadmodule")) and "/etc/" not in block]


@pytest.mark.parametrize("block", CONFIGURATIONS)
def test_every_configuration_of_the_pages_is_good(block, tmp_path):
    path = tmp_path / "page.conf"
    for module in ("proto_hep", "lab", "upstream"):
        if f'modparam("{module}"' in block and f'loadmodule "{module}' not in block:
            block = f'loadmodule "{module}.so"\n{block}'
    path.write_text(re.sub("/(?:var/log|run)/midatagram", str(tmp_path), block))
    if "socket_name" not in block:
        path.write_text(f'modparam("mi_datagram", "socket_name", "/tmp/x.sock")\n{path.read_text()}')
    done = run("-c", "-f", path)
    assert done.returncode == 0, done.stderr


def test_the_canned_replies_of_the_pages(start, tmp_path):
    (tmp_path / "plugins").mkdir()
    block = next(block for block in blocks_of(PAGES["docs/plugins.md"], "") if block.startswith("[ul_show"))
    (tmp_path / "plugins" / "lab.conf").write_text(block)
    server = start('loadmodule "lab.so"', "-p", str(tmp_path / "plugins"))
    found = server.ask(b":ul_show_contact:\nlocation\nalice\n")
    assert found == b"200 OK\nAOR:: alice\n\tContact:: sip:alice@192.0.2.10:5060;transport=udp Q=1\n\n"
    assert server.ask(b":ul_show_contact:\nlocation\nbob\n") == b"404 AOR not found\n\n"


def test_the_two_commands_are_those_of_install_sh():
    done = subprocess.run(["sh", ROOT / "install.sh"], capture_output=True, text=True, timeout=20)
    for verb, page in (("run", README), ("test", README), ("system", OPERATIONS), ("uninstall", OPERATIONS)):
        assert f"./install.sh {verb}" in page and f"./install.sh {verb}" in done.stdout + done.stderr


def test_python_versions():
    assert f'requires-python = ">={sys.version_info[0]}.10"' in (ROOT / "midatagram.py").read_text()
    assert "Python 3.10 or later" in README


###############################################################################
# As a new user: the README's first command, then what stands behind the prompts
###############################################################################


@pytest.fixture(scope="module")
def newcomer():
    """A copy of the project in which `./install.sh run` serves, as a user who is not root if that can be: run(command) in it."""
    needs("socat")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="midatagram-"))  # pytest's own folders are closed to others
    copy, user, python = folder / "midatagram", [], sys.executable
    copy_to(copy)
    if os.geteuid() == 0:
        needs_system_packages()
        user, python = [needs("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"], SYSTEM_PYTHON
    places = {"/tmp/midatagram.sock": folder / "mi.sock", "/tmp/client.sock": folder / "client.sock"}
    example = copy / "midatagram.conf.example"
    example.write_text(placed(example.read_text(), places))
    make_venv(copy, python)
    folder.chmod(0o777)
    [first] = re.findall(r"^(./install.sh run) +#", README, re.M)
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    server = subprocess.Popen([*user, "bash", "-c", f"exec {first}"], cwd=copy, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, env=environment, start_new_session=True, text=True)

    def run_there(command, shell="bash"):
        return subprocess.run([*user, shell, "-c", placed(command, places)], cwd=copy, capture_output=True, text=True, timeout=20,
                              env=environment)

    try:
        wait_for(lambda: run_there(".venv/bin/python midatagram.py call uptime").returncode == 0, 20, "the server")
        yield run_there
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=10)
        shutil.rmtree(folder)


@pytest.mark.parametrize("page, commands", [("README.md", 4), ("docs/client.md", 7)])
def test_what_stands_behind_the_prompts(newcomer, page, commands):
    session = session_of(PAGES[page])
    assert len(session) == commands
    for command, output in session:
        done = newcomer(command)
        wanted = re.escape(output.rstrip("\n")).replace(r"\.\.\.", r"\S+")
        assert re.fullmatch(wanted, done.stdout.rstrip("\n")), (command, done.stdout, done.stderr)
        assert done.stderr == "", command


def test_the_requests_of_the_readme_in_plain_sh(newcomer):
    for command, output in session_of(README):
        assert newcomer(command, "sh").stdout.rstrip("\n") == output.rstrip("\n"), command
