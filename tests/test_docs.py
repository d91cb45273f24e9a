"""What README, the example configuration and --help say is true of the program."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, free_port, needs, run

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))
import tracing

README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
EXAMPLE = (ROOT / "midatagram.conf.example").read_text()
SHIPPED = [mi.load_plugin(str(path)) for path in sorted((ROOT / "plugins").iterdir()) if path.suffix in (".py", ".conf")]
MODULES = [*mi.built_in_modules(), *SHIPPED]
OPENSIPS = "statistics", "usrloc", "registrar", "dialog", "dispatcher", "cachedb_redis"  # whose parameters an opensips.cfg has
PARAMS = [(module, param) for module in MODULES for param in module.params.values()]


def blocks(language):
    """The fenced blocks of the README in one language ("" for none)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for name, text in fenced if name == language]


@pytest.mark.parametrize("module, param", PARAMS, ids=[f"{module.name}.{param.name}" for module, param in PARAMS])
def test_every_parameter_is_documented_with_its_default(module, param):
    if param.help == "accepted without effect":
        section = CONFIGURATION.partition(f"\n## {module.name}\n")[2].partition("\n## ")[0]
        assert re.search(rf"^Accepted without effect: .*`{param.name}`", section, re.M)
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
    for module in MODULES:
        for command in module.commands:
            assert f"| `{command.signature_line()}` | {' '.join(command.help.split())} |" in COMMANDS


def test_every_statistic_and_event_is_documented():
    for module in MODULES:
        for stat in module.stats:
            assert f"| `{stat.group}:{stat.name}` | {stat.help} |" in CONFIGURATION
        for event in module.events:
            assert f"| `{event.name}` | {event.help} |" in CONFIGURATION
    assert ", ".join(tracing.FIGURES).replace(", connected", " and connected") in README.replace("\n", " ")


def test_every_exit_status_is_in_readme_and_help():
    statuses = {value for name, value in vars(mi).items() if name.startswith("EXIT_")}
    rows = README.partition("| exit status | meaning |")[2].partition("\n\n")[0]
    table = {int(status) for status in re.findall(r"^\| (\d+) \| ", rows, re.M)}
    told = run("--help").stdout
    assert statuses == table
    assert all(re.search(rf"\b{status}\b", told) for status in statuses)


def test_every_option_is_in_the_readme_and_the_other_way_round():
    told = run("--help").stdout + run("call", "--help").stdout
    options = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", told)) - {"-h", "--help"}
    named = set(re.findall(r"(?<![\w-])(--?[a-zA-Z][a-z-]*)(?=[` \]])", README))
    assert {option for option in options if not re.search(rf"{option}(?![\w-])", README)} == set()
    others = {"--prefix", "--systemd", "--markdown", "--short", "--rows", "--seed"}  # of install.sh, the bench, the fuzz
    assert {option for option in named if option not in told} <= others


def test_the_plugin_shown_is_the_one_shipped():
    assert blocks("python") == [(ROOT / "plugins" / "hello.py").read_text()]


def test_the_example_is_good():
    done = run("-c", "-f", ROOT / "midatagram.conf.example")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_configuration_with_its_requests_and_replies(start, tmp_path, shell):
    """What stands behind the prompts, as written but for places, in a shell."""
    needs("socat")
    configuration = next(block for block in blocks("") if block.startswith('loadmodule "mi_datagram.so"'))
    port = free_port()
    own = {"/tmp/midatagram.sock": f"{tmp_path}/mi.sock", "/tmp/client.sock": f"{tmp_path}/client.sock",
           "8080": str(port), "./midatagram.py": f"{sys.executable} {ROOT}/midatagram.py"}

    def placed(text):
        for written, here in own.items():
            text = text.replace(written, here)
        return text

    start(placed(configuration), place=f"{tmp_path}/mi.sock")
    session = re.findall(r"^\$ ((?:.*<<'END'\n[^$]*?\nEND|.*))\n((?:(?!\$ ).*\n)*)", blocks("sh")[1], re.M)
    assert [command.split()[0] for command, _ in session] == ["./midatagram.py", "socat", "socat", "printf"]
    for command, reply in session:
        done = subprocess.run([shell, "-c", placed(command)], capture_output=True, text=True, timeout=20)
        assert (done.stdout.rstrip("\n"), done.stderr) == (reply.rstrip("\n"), ""), command


@pytest.mark.parametrize("block", [block for block in blocks("") if block.startswith(("modparam", "loadmodule"))])
def test_every_configuration_of_the_readme_is_good(block, tmp_path):
    path = tmp_path / "readme.conf"
    if '"hep_proto_type"' in block:
        block = 'loadmodule "proto_hep.so"\n' + block
    path.write_text('modparam("mi_datagram", "socket_name", "/tmp/x.sock")\n' + block)
    done = run("-c", "-f", path)
    assert done.returncode == 0, done.stderr


def test_the_canned_replies_of_the_readme(start, tmp_path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "lab.conf").write_text(next(block for block in blocks("") if block.startswith("[ul_show")))
    server = start('loadmodule "lab.so"', "-p", str(tmp_path / "plugins"))
    found = server.ask(b":ul_show_contact:\nlocation\nalice\n")
    assert found == b"200 OK\nAOR:: alice\n\tContact:: sip:alice@192.0.2.10:5060;transport=udp Q=1\n\n"
    assert server.ask(b":ul_show_contact:\nlocation\nbob\n") == b"404 AOR not found\n\n"


def test_the_two_commands_are_those_of_install_sh():
    done = subprocess.run(["sh", ROOT / "install.sh"], capture_output=True, text=True, timeout=20)
    for verb in ("run", "test", "system"):
        assert f"./install.sh {verb}" in README and f"./install.sh {verb}" in done.stdout + done.stderr


def test_python_versions():
    assert f'requires-python = ">={sys.version_info[0]}.10"' in (ROOT / "midatagram.py").read_text()
    assert "Python 3.10 or later" in README
