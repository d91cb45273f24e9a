"""A lab from a test: the pytest fixtures from a checkout and installed, and `midatagram.py lab -- COMMAND`."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import NO_SKIP, ROOT, SCRIPT, blocks_of, run

sys.path.append(str(ROOT / "plugins"))
from lab_process import Lab

# A small exporter of metrics, as a user has one, and its test.
EXPORTER = '''
"""Writes the statistics of a server as Prometheus reads them."""
import re
import socket


def scrape(server, timeout_s=2.0):
    """The metrics of a server; None when it does not answer, or answers an error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.bind("")
        client.connect(server)
        client.send(b":get_statistics:\\nall\\n")
        try:
            first, _, body = client.recv(65536).decode().partition("\\n")
        except TimeoutError:
            return None
    if not first.startswith("200 "):
        return None
    return {name.replace(":", "_"): int(value) for name, value in re.findall(r"(\\S+):: (\\d+)", body)}
'''
EXPORTER_TEST = '''
import pytest
from exporter import scrape


def test_reads_statistics(mi_server):
    mi_server.reply("get_statistics", "all", reply="dialog:active_dialogs:: 42")
    assert scrape(mi_server.address) == {"dialog_active_dialogs": 42}
    mi_server.verify("get_statistics", "all", times=1)


def test_starts_without_what_the_other_test_did(mi_server):
    mi_server.verify("get_statistics", times=0)
    assert "core_timestamp" in scrape(mi_server.address)


def test_survives_errors_and_silence(mi_server):
    mi_server.fault(command="get_statistics", action="error", code=500, reason="down", times=1)
    mi_server.fault(command="get_statistics", action="drop")
    assert scrape(mi_server.address) is None and scrape(mi_server.address, 0.2) is None
    with pytest.raises(AssertionError, match="expected 1, found 2"):
        mi_server.verify("get_statistics", times=1)


def test_udp_and_json(mi_server):
    import socket
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.sendto(b":uptime:\\n", mi_server.udp)
        assert client.recv(65536).startswith(b"200 OK")
    assert "Up since" in mi_server.json("uptime")
    mi_server.order("uptime", "uptime")
'''
PAGE_BLOCKS = blocks_of((ROOT / "docs" / "lab.md").read_text(), "python")
CONFTEST = f'import sys; sys.path.append("{ROOT}/plugins"); pytest_plugins = ["_pytest_midatagram"]\n'


def project(folder, **files):
    """Write the files of a user's project; NAME=TEXT is NAME.py."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def run_pytest(folder, *options, python=sys.executable):
    """Run pytest in a folder, with nothing of ours in its environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "MIDATAGRAM"))}
    return subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options], cwd=folder, capture_output=True,
                          text=True, timeout=100, env={**environment, "TMPDIR": str(folder)})


def leftovers(folder):
    """What a lab left in a folder: its own folder, or a process with its configuration."""
    processes = subprocess.run(["pgrep", "-f", f"{folder}/mi-lab-"], capture_output=True, text=True).stdout
    return [*folder.glob("mi-lab-*"), *processes.split()]


@pytest.fixture
def exporter(tmp_path):
    """The exporter and its tests."""
    return project(tmp_path, conftest=CONFTEST, exporter=EXPORTER, test_exporter=EXPORTER_TEST)


def test_the_exporter_is_tested_with_the_fixture(exporter):
    done = run_pytest(exporter)
    assert "4 passed" in done.stdout and done.returncode == 0, done.stdout + done.stderr
    assert leftovers(exporter) == []


def test_a_red_test_shows_the_journal(exporter):
    """A mistake in the client: its test fails, and says what the client sent; mended, it passes again."""
    source = exporter / "exporter.py"
    good = source.read_text()
    source.write_text(good.replace("\\nall\\n", "\\nal\\n"))
    assert source.read_text() != good
    done = run_pytest(exporter, "-k", "reads_statistics")
    assert done.returncode == 1 and "MI journal" in done.stdout, done.stdout
    assert "get_statistics" in done.stdout.split("MI journal")[1]
    source.write_text(good)
    assert run_pytest(exporter, "-k", "reads_statistics").returncode == 0
    assert leftovers(exporter) == []


def test_a_lab_of_each_release(tmp_path):
    project(tmp_path, conftest=CONFTEST, test_releases='''
        import pytest

        @pytest.mark.parametrize("mi_lab", ["2.4", "4.0"], indirect=True)
        def test_version(mi_server, request):
            release = request.node.callspec.params["mi_lab"]
            assert f"OpenSIPS ({release}" in mi_server.ask("version")
    ''')
    done = run_pytest(tmp_path)
    assert "2 passed" in done.stdout, done.stdout


def test_lines_of_configuration_and_a_lab_that_cannot_start(tmp_path):
    [config] = [block for block in PAGE_BLOCKS if "mi_config" in block]
    project(tmp_path, conftest=CONFTEST + config, test_lines='''
        import pytest
        from lab_process import Lab

        def test_greets(mi_server):
            assert "Hi Bob" in mi_server.ask("hello", "Bob")

        def test_fails():
            with pytest.raises(RuntimeError, match="exit status 78(.|\\\\n)*no_such"):
                with Lab('modparam("mi_datagram", "no_such", 1)'):
                    pass
    ''')
    done = run_pytest(tmp_path)
    assert "2 passed" in done.stdout, done.stdout
    assert leftovers(tmp_path) == []


def test_installed_with_pip(tmp_path, exporter):
    """A fresh environment: the command, the fixtures without a line in conftest.py, canned replies and the client."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    done = subprocess.run([python, "-m", "pip", "install", "-q", copy, "pytest"], capture_output=True, text=True)
    if done.returncode:
        (pytest.fail if NO_SKIP else pytest.skip)(f"pip cannot install: {done.stderr}")
    assert [*copy.glob("*.egg-info")]  # which pip leaves behind, and where the tests of the copy find our plug-in for pytest
    done = run_pytest(copy, "--collect-only", "tests/test_layers.py")
    assert "test_part_one_names_no_io" in done.stdout and done.returncode == 0, done.stdout + done.stderr
    (exporter / "conftest.py").unlink()
    done = run_pytest(exporter, "test_exporter.py", python=str(python))
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    command = python.parent / "midatagram"
    done = subprocess.run([command, "lab", "--", command, "call", "--version-of-nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    done = subprocess.run([command, "lab", "--", "sh", "-c", f'{command} call -s "$MI_SOCKET" uptime'], capture_output=True,
                          text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout[:6]) == (0, "200 OK"), done.stderr


def lab(folder, *words, **options):
    """Run `midatagram.py lab`."""
    return subprocess.run([sys.executable, SCRIPT, "lab", *words], capture_output=True, text=True, timeout=60, cwd=folder,
                          env={**os.environ, "TMPDIR": str(folder)}, **options)


CALL = f'{sys.executable} {SCRIPT} call -s "$1" uptime >/dev/null'


def test_lab_runs_a_command_beside_a_server(tmp_path):
    done = lab(tmp_path, "--", "sh", "-c", f'set -- "$MI_SOCKET"; {CALL} && set -- "udp:$MI_UDP"; {CALL} && echo "$PWD"')
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}\n", "")
    assert leftovers(tmp_path) == []


def test_lab_shows_the_journal_of_a_command_that_fails(tmp_path):
    done = lab(tmp_path, "sh", "-c", f'set -- "$MI_SOCKET"; {CALL}; exit 7')
    assert done.returncode == 7 and "sh ended with 7" in done.stderr and "uptime" in done.stderr
    done = lab(tmp_path, "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 128 + 9
    assert leftovers(tmp_path) == []


def test_lab_serves_plug_ins_and_files(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "words.conf").write_text("[say]\nreply = word\n")
    ask = f'{sys.executable} {SCRIPT} call -s "$MI_SOCKET" say'
    assert lab(tmp_path, "-p", "mine", "--", "sh", "-c", ask).stdout == "200 OK\nword\n\n"
    (tmp_path / "my.conf").write_text('mpath="mine/"\nloadmodule "words.so"\nloadmodule "lab.so"\n'
                                      'modparam("mi_datagram", "socket_name", "/nowhere/x")\n')
    assert lab(tmp_path, "-f", "my.conf", "--", "sh", "-c", ask).stdout == "200 OK\nword\n\n"


def test_lab_says_what_is_wrong(tmp_path):
    for words in ((), ("--",), ("-x",)):
        done = lab(tmp_path, *words)
        assert done.returncode == 2 and "usage" in done.stderr
    done = lab(tmp_path, "--", "no-such-program")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no-such-program" in done.stderr
    done = lab(tmp_path, "-f", "none.conf", "--", "true")
    assert (done.returncode, done.stderr) == (78, "midatagram: none.conf: no such file\n")
    done = lab(tmp_path, "-p", "none", "--", "true")
    assert (done.returncode, done.stderr) == (78, "midatagram: -p: there is no folder none\n")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name, text, status, wanted", [
    ("bad.conf", b"log_level=3\nlog_level 4\n", 78, 'bad.conf:2: expected "=", found "4"'),
    ("folder", None, 78, "folder: cannot be read by uid"), ("latin.conf", b"# caf\xe9\n", 0, ""),
])
def test_lab_exits_as_the_script_does_with_such_a_file(tmp_path, name, text, status, wanted):
    (tmp_path / name).mkdir() if text is None else (tmp_path / name).write_bytes(text)
    done = lab(tmp_path, "-f", name, "--", "true")
    assert done.returncode == status and wanted in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert run("-c", "-f", tmp_path / name, "-s", tmp_path / "mi.sock").returncode == status
    assert leftovers(tmp_path) == []


def test_the_page_with_pytest(tmp_path):
    """The client, its test and conftest.py of docs/lab.md: red, and green when the client asks more than once."""
    client, conftest, test = PAGE_BLOCKS[:3]
    project(tmp_path, client=client, conftest=conftest.replace("/path/to/midatagram", str(ROOT)), test_client=test)
    done = run_pytest(tmp_path)
    assert "1 failed" in done.stdout and "MI journal" in done.stdout, done.stdout
    project(tmp_path, client=client.replace("TRIES = 1", "TRIES = 3"))
    assert "1 passed" in run_pytest(tmp_path).stdout
    done = lab(tmp_path, "--", sys.executable, "client.py", "nowhere")
    assert done.returncode == 1


def test_the_test_of_the_readme(tmp_path):
    """With an uptime_of() that asks again."""
    [test] = [block for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
              if "mi_server" in block]
    page = (ROOT / "docs" / "lab.md").read_text()
    client = page.split("```python\n")[1].split("\nreply = ")[0].replace("TRIES = 1", "TRIES = 2")
    client += "\n\ndef uptime_of(server):\n    return ask(server, b':uptime:\\n')\n"
    project(tmp_path, uptime_client=client, conftest=CONFTEST, test_readme=f"from uptime_client import uptime_of\n\n\n{test}")
    assert "1 passed" in run_pytest(tmp_path).stdout


def test_a_command_is_one_under_all_its_names():
    """What holds for uptime holds for core:uptime, and the other way round."""
    with Lab() as server:
        for told, asked in (("uptime", "core:uptime"), ("core:uptime", "uptime"), ("core:up*", "uptime")):
            server.reset()
            server.fault(command=told, action="error", code=480, reason="No", times=1)
            assert server.ask(asked).startswith("480 No") and server.ask("core:pwd").startswith("200 OK")
            if "*" not in told:
                server.reply(told, reply="x")
                assert server.ask(asked) == "200 OK\nx\n\n"
            server.verify(told, at_least=1)
            server.order(told, "pwd")
            assert asked in server.journal(command=told)
