"""The ways in which it is installed and run: install.sh, the distribution's packages, uv, a user who is not root."""

import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import (
    NO_SKIP,
    ROOT,
    SCRIPT,
    SYSTEM_PYTHON,
    Client,
    copy_to,
    free_port,
    needs,
    needs_root,
    needs_system_packages,
    run,
    wait_for,
)

import midatagram as mi


def make_venv(folder, base=sys.executable):
    """A virtual environment in .venv of a folder with the packages of a Python, as install.sh would have it; its Python."""
    subprocess.run([base, "-m", "venv", "--without-pip", "--system-site-packages", folder / ".venv"], check=True)
    python = folder / ".venv" / "bin" / "python"
    [libraries] = (folder / ".venv").glob("lib/python3*/site-packages")
    if base == sys.executable:
        (libraries / "base.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
    pinned = re.findall(r'^#     "(.*)",$', SCRIPT.read_text().partition("# ///\n")[0], re.M)
    (folder / ".venv" / "midatagram.txt").write_text(version + "\n".join(pinned) + "\n")
    return python


@pytest.fixture
def background():
    """Start programs that serve: background(arguments...) gives the Popen once they are ready; they are stopped."""
    started = []

    def begin(*arguments, **options):
        process = subprocess.Popen([str(word) for word in arguments], stderr=subprocess.STDOUT, stdout=subprocess.PIPE,
                                   text=True, start_new_session=True, **options)
        started.append(process)
        process.lines = []
        for line in process.stdout:
            process.lines.append(line)
            if "ready:" in line:
                return process
        raise AssertionError("".join(process.lines))

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)
        process.stdout.close()


def test_a_lab_without_a_file(background, tmp_path):
    place = f"udp:127.0.0.1:{free_port()}"
    (tmp_path / "one.py").write_text('import midatagram as mi\n@mi.command\ndef one(ctx):\n    "One."\n    return mi.Reply()\n')
    (tmp_path / "two.conf").write_text("[two]\nreply = second\n")
    background(sys.executable, SCRIPT, "-s", place, "-p", tmp_path)
    assert run("call", "-s", place, "one").stdout == "200 OK\n\n"
    assert run("call", "-s", place, "two").stdout == "200 OK\nsecond\n\n"


def test_install_system_serves_what_it_installed(background, tmp_path):
    (tmp_path / "copy").mkdir()
    copy, prefix = copy_to(tmp_path / "copy"), tmp_path / "prefix"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["sh", copy / "install.sh", "system", "--prefix", prefix], capture_output=True, text=True, timeout=120,
                          env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"# {keeper}" in done.stdout for keeper in ("cron", "supervisor", "systemd"))
    (prefix / "run" / "midatagram").mkdir(parents=True, exist_ok=True)
    background(prefix / "bin" / "midatagram", "-f", prefix / "etc" / "midatagram" / "midatagram.conf")
    done = subprocess.run([prefix / "bin" / "midatagram", "call", "hello", "Bob"], capture_output=True, text=True, timeout=20)
    assert done.stdout == "200 OK\ngreeting:: Hello Bob\n\n", done.stderr
    assert [*prefix.rglob("opensips.names")]


def test_root_installs_nothing_where_others_could_change_it(tmp_path):
    """Whose folder it is could have root write and run what he likes, by links and by programs of his own."""
    needs_root()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "link").symlink_to(theirs)
    for uid, mode, prefix in ((65534, 0o755, theirs), (0, 0o757, theirs), (0, 0o775, theirs / "further" / "down"),
                              (0, 0o757, tmp_path / "link" / "down")):
        os.chown(theirs, uid, 0)
        theirs.chmod(mode)
        command = ["sh", ROOT / "install.sh", "system", "--prefix", prefix]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and os.listdir(theirs) == []
        assert re.fullmatch(rf"install.sh: others than root can write {tmp_path}/(theirs|link); mend: .*\n", done.stderr)


def install_sh(*arguments, script=ROOT / "install.sh", status=0, **environment):
    """Run install.sh to its end, which must be with that status; gives what it printed."""
    done = subprocess.run(["sh", script, *arguments], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHON": sys.executable, **environment})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["system", "--prefix", ""], ["system", "--prefix="], ["uninstall", "--prefix", ""]])
def test_an_empty_prefix_is_refused(tmp_path, arguments):
    """Which a variable leaves that is not set: the current folder is not meant."""
    done = subprocess.run(["sh", ROOT / "install.sh", *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        1, "", "install.sh: --prefix needs a folder, and got an empty text: is a variable not set?\n")
    assert os.listdir(tmp_path) == []


def test_a_prefix_that_cannot_be_made_is_named_once(tmp_path):
    (tmp_path / "file").write_text("")
    printed = install_sh("system", "--prefix", tmp_path / "file" / "x", status=1).splitlines()
    assert re.fullmatch("install.sh: install: .*/file.*; give a --prefix DIR where .* may make folders", printed[-1])
    assert not [line for line in printed[:-1] if "install:" in line]


def all_in(folder):
    """The paths of all that is in a folder, with the text of files."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_uninstall_removes_what_system_wrote(tmp_path):
    """And neither what was there before, nor what somebody edited or added, nor logs."""
    prefix = tmp_path / "prefix"
    install_sh("system", "--prefix", prefix, "--systemd")
    assert "removed" in install_sh("uninstall", "--prefix", prefix) and not prefix.exists()
    (prefix / "lib" / "other").mkdir(parents=True)
    install_sh("system", "--prefix", prefix)
    logs, plugins, etc = prefix / "var/log/midatagram", prefix / "lib/midatagram/plugins", prefix / "etc/midatagram"
    mine = {logs / "midatagram.log": "a line\n", plugins / "mine.py": "X = 1\n", plugins / "hello.py": "# edited\n",
            etc / "midatagram.conf": "# edited\n"}
    for path, text in mine.items():
        path.write_text(text)
    printed = install_sh("uninstall", "--prefix", prefix)
    assert all_in(prefix) == {str(path.relative_to(prefix)): text for path, text in mine.items()}
    assert (prefix / "lib" / "other").is_dir() and not (prefix / "bin").exists() and not (prefix / "run").exists()
    for kept in (plugins / "hello.py", etc / "midatagram.conf", logs):
        assert f"kept {kept}, which" in printed
    assert "there is no" in install_sh("uninstall", "--prefix", prefix, status=1)


def test_uninstall_leaves_what_runs(background, tmp_path):
    prefix = tmp_path / "prefix"
    install_sh("system", "--prefix", prefix)
    before = all_in(prefix)
    process = background(prefix / "bin" / "midatagram")
    assert "the server runs; " in install_sh("uninstall", "--prefix", prefix, status=1)
    assert all_in(prefix) == before
    process.terminate()
    process.wait(10)
    install_sh("uninstall", "--prefix", prefix)
    assert not prefix.exists()


def test_system_brings_up_to_date_what_is_installed(background, tmp_path):
    """What nobody edited becomes the new version's, its plug-ins that are no more go, and what runs goes on."""
    copy, prefix = copy_to(tmp_path / "copy"), tmp_path / "prefix"
    lib, conf = prefix / "lib" / "midatagram", prefix / "etc" / "midatagram" / "midatagram.conf"
    old_plugin, canned, example = copy / "plugins" / "old.py", copy / "plugins" / "canned.conf", copy / "midatagram.conf.example"
    old_plugin.write_text("X = 1\n")
    install = functools.partial(install_sh, "system", "--prefix", prefix, script=copy / "install.sh")
    assert "replaced" not in install("--systemd")
    background(prefix / "bin" / "midatagram")
    (lib / "plugins" / "mine.py").write_text("X = 1\n")
    old_plugin.unlink()
    canned.write_text(canned.read_text() + "[newer]\nreply = yes\n")
    example.write_text(example.read_text() + "# newer\n")
    (copy / "plugins" / "hello.py").write_text((copy / "plugins" / "hello.py").read_text() + "# newer\n")
    (prefix / "etc/systemd/system/midatagram.service").write_text("# of another version\n")
    assert f"This replaced midatagram {mi.__version__}" in install()
    for path in (lib / "plugins" / "hello.py", conf):
        assert path.read_text().endswith("# newer\n")
    assert "[newer]" in (lib / "plugins" / "canned.conf").read_text() and (lib / "plugins" / "mine.py").exists()
    assert not (lib / "plugins" / "old.py").exists() and not list(prefix.rglob("*.new"))
    assert "ExecStart=" in (prefix / "etc/systemd/system/midatagram.service").read_text()
    done = subprocess.run([prefix / "bin" / "midatagram", "call", "hello", "Bob"], capture_output=True, text=True, timeout=20)
    assert done.stdout == "200 OK\ngreeting:: Hello Bob\n\n"


def test_an_edited_configuration_stays_when_a_new_version_comes(tmp_path):
    copy, prefix = copy_to(tmp_path / "copy"), tmp_path / "prefix"
    conf, example = prefix / "etc" / "midatagram" / "midatagram.conf", copy / "midatagram.conf.example"
    new = conf.with_name("midatagram.conf.new")
    install = functools.partial(install_sh, "system", "--prefix", prefix, script=copy / "install.sh")
    install()
    edited = conf.read_text() + "# edited\n"
    for round_ in ("first", "second"):
        conf.write_text(edited)
        example.write_text(f"{example.read_text()}# {round_}\n")
        assert f"kept {conf}, which has been edited; the new one is {new}\n" in install()
        assert conf.read_text() == edited and new.read_text().endswith(f"# {round_}\n")
    new.rename(conf)  # as the new one, it is nobody's edition
    example.write_text(f"{example.read_text()}# third\n")
    assert f"wrote {conf}\n" in install()
    assert conf.read_text().endswith("# third\n") and not new.exists()


def test_what_1_0_0_installed_becomes_up_to_date(tmp_path):
    """It listed nothing: what differs from the new version counts as edited."""
    prefix = tmp_path / "prefix"
    lib, conf = prefix / "lib" / "midatagram", prefix / "etc" / "midatagram" / "midatagram.conf"
    install_sh("system", "--prefix", prefix)
    (lib / "installed.txt").unlink()
    (lib / "midatagram.conf.example").touch()
    (lib / "plugins" / "canned.conf").write_text("# edited\n")
    printed = install_sh("system", "--prefix", prefix)
    assert f"kept {conf}\n" in printed and f"kept {lib}/plugins/canned.conf, which has been edited; " in printed
    assert not (lib / "midatagram.conf.example").exists() and not conf.with_name("midatagram.conf.new").exists()
    assert (lib / "plugins" / "canned.conf").read_text() == "# edited\n"


def test_the_lines_for_logrotate_rotate_the_log(background, tmp_path):
    logrotate, prefix = needs("logrotate"), tmp_path / "prefix"
    printed = install_sh("system", "--prefix", prefix)
    snippet = tmp_path / "snippet"
    snippet.write_text(printed.partition("# logrotate: ")[2].partition("\n")[2].partition("\n\n")[0] + "\n")
    snippet.chmod(0o644)
    conf, log = prefix / "etc/midatagram/midatagram.conf", prefix / "var/log/midatagram/midatagram.log"
    conf.write_text(conf.read_text() + f'modparam("midatagram", "log_file", "{log}")\n')
    process = subprocess.Popen([prefix / "bin" / "midatagram"])
    try:
        wait_for(lambda: log.exists() and "ready:" in log.read_text(), what="the log")
        subprocess.run([logrotate, "--force", "--state", tmp_path / "state", snippet], check=True, timeout=30)
        assert "ready:" in log.with_name("midatagram.log.1").read_text()
        wait_for(log.exists, what="the new log")
    finally:
        process.terminate()
        process.wait(10)
    assert "stopping" in log.read_text()


def announced(copy, *arguments, served=True):
    """What `./install.sh run ARGUMENTS...` prints to stdout until it serves and is stopped, or ends by itself."""
    process = subprocess.Popen(["sh", copy / "install.sh", "run", *map(str, arguments)], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, stdin=subprocess.DEVNULL)
    lines = [process.stdout.readline(), process.stdout.readline()] if served else []
    process.terminate() if served else None
    return "".join(lines) + process.communicate(timeout=30)[0]


def test_run_announces_the_socket_that_it_serves(tmp_path):
    copy, place = copy_to(tmp_path / "copy"), f"udp:127.0.0.1:{free_port()}"
    make_venv(copy)
    mine = tmp_path / "mine.conf"
    mine.write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mine.sock")\n')
    for arguments, socket, words in (
            (["-s", tmp_path / "x"], tmp_path / "x", "hello world"), ([f"-ds{place}"], place, "hello world"),
            (["-f", mine], tmp_path / "mine.sock", "which")):
        assert announced(copy, *arguments) == (f"midatagram serves {socket}; try it from another terminal, in {copy}:\n"
                                               f"    .venv/bin/python midatagram.py call -s {socket} {words}\n")


def test_run_announces_nothing_that_it_does_not_serve(background, tmp_path):
    """Also where another server answers at that socket."""
    copy = copy_to(tmp_path / "copy")
    make_venv(copy)
    background(sys.executable, SCRIPT, "-s", tmp_path / "taken")
    for arguments in (["-s", tmp_path / "taken"], ["-s", "udp:127.0.0.1:80"], ["-f", tmp_path / "none"], ["--nosuch"]):
        assert announced(copy, *arguments, served=False) == ""
    assert announced(copy, "--version", served=False) == f"midatagram {mi.__version__}\n"


# The whole machine, as those in this namespace see it: what is installed goes when they end.
WHOLE = """
set -e
mount --make-rprivate /
mkdir "$1/etc"
cp -a /etc/. "$1/etc"
mount --bind "$1/etc" /etc
for place in /run /var/log /usr/local; do mount -t tmpfs -o mode=755 none "$place"; done
sh "$2/install.sh" system --systemd >"$1/printed"
eval "$(sed -n 's/^@reboot //p' "$1/printed")"
find /usr/local /etc/midatagram /etc/systemd/system/midatagram.* /run /var/log ! -name '*.py' -printf '%m %u:%g %p\n'
trap 'kill $(cat /run/midatagram.pid)' EXIT
/usr/local/bin/midatagram -c
setpriv --reuid nobody --regid nogroup --clear-groups /usr/local/bin/midatagram --status -P /run/midatagram.pid
trap - EXIT
kill $(cat /run/midatagram.pid)
while /usr/local/bin/midatagram --status -P /run/midatagram.pid >&2; do sleep 0.1; done
sh "$2/install.sh" uninstall >&2
find /usr/local /etc /run /var/log -name '*midatagram*' >"$1/left"
"""


def test_nobody_else_can_write_where_root_installs(tmp_path):
    needs_root()
    needs("setpriv")
    needs_system_packages()
    if subprocess.run([needs("unshare"), "-m", "true"], capture_output=True).returncode:
        (pytest.fail if NO_SKIP else pytest.skip)("no mount namespaces here")
    copy = tmp_path / "copy"
    copy.mkdir()
    done = subprocess.run(["unshare", "-m", "sh", "-c", WHOLE, "sh", tmp_path, copy_to(copy)], capture_output=True, text=True,
                          timeout=90, env={**os.environ, "PYTHON": SYSTEM_PYTHON})
    assert done.returncode == 0, done.stdout + done.stderr
    laid = {path: (int(mode, 8), owner) for mode, owner, path in re.findall(r"^(\d+) (\S+) (/.*)$", done.stdout, re.M)}
    own = {"/run/midatagram": 0o1775, "/var/log/midatagram": 0o750, "/run/midatagram/midatagram.sock": 0o660}
    assert {path: (mode, "midatagram:midatagram") for path, mode in own.items()}.items() <= laid.items()
    others = {path: (mode, owner) for path, (mode, owner) in laid.items() if path not in own}
    assert others["/run/midatagram.pid"][0] == 0o600 and "/etc/midatagram/midatagram.conf" in others
    assert {path: found for path, found in others.items() if found[0] & 0o022 or found[1] != "root:root"} == {}
    assert "midatagram.conf: OK" in done.stdout and done.stdout.endswith("running\n")
    assert (tmp_path / "left").read_text() == "" and "kept the user midatagram; " in done.stderr


def test_the_distributions_packages_are_enough(background, tmp_path):
    needs_system_packages()
    process = background(SYSTEM_PYTHON, SCRIPT, "-s", tmp_path / "mi.sock", "-p", ROOT / "plugins")
    assert run("call", "-s", tmp_path / "mi.sock", "hello", "Bob").stdout == "200 OK\ngreeting:: Hello Bob\n\n"
    assert "WARNING" not in "".join(process.lines)


@pytest.mark.parametrize("missing", ["gevent", "configobj"])
def test_a_missing_package_is_named_with_all_three(tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text(f"raise ImportError('none', name='{missing}')\n")
    (tmp_path / "copy").mkdir()
    command = [sys.executable, shutil.copy(SCRIPT, tmp_path / "copy"), "-s", tmp_path / "mi.sock"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert re.search(rf"{missing} is missing; .*pip install gevent configobj setproctitle, or apt install python3-gevent "
                     "python3-configobj python3-setproctitle", done.stderr)


@pytest.mark.parametrize("words, environment, missing", [
    (["-P", "{0}/pid"], {}, "-P: for a pid file, pid_file.py"), (["-D"], {}, "-D: to go to the background, background.py"),
    *(([word], {}, f"{word}: to know whether it runs, status.py") for word in ("--status", "--if-not-running")),
    (["-u", "nobody"], {}, "-u, -g: to run as another user, privileges.py"),
    (["-c"], {}, "-c: to check a configuration, checks.py"),
    (["-f", "{0}/c"], {}, "{0}/c: for log_file, log_file.py"),
    (["-f", "{0}/d"], {}, "{0}/d: for store_file, store_file.py"),
    (["-f", "{0}/access"], {}, "allow_command: for access lists, access.py"),
    (["-f", "{0}/traced"], {}, "trace_bwlist: to trace, tracing.py"),
    (["-f", "{0}/disables"], {}, "{0}/disables: for lists of commands, command_lists.py"),
    (["-p", "{0}/more"], {}, '{0}/more/all.py: for @command("*"), catch_all.py'),
    *(([], {name: "1"}, "LISTEN_FDS, NOTIFY_SOCKET: for systemd, systemd.py") for name in ("LISTEN_FDS", "NOTIFY_SOCKET")),
])
def test_a_script_alone_names_the_plugin_that_it_lacks(tmp_path, words, environment, missing):
    (tmp_path / "c").write_text('modparam("midatagram", "log_file", "/dev/stdout")\n')
    (tmp_path / "d").write_text(f'log_stderror=no\nmodparam("midatagram", "store_file", "{tmp_path}/store")\n')
    (tmp_path / "access").write_text('modparam("midatagram", "allow_command", "pwd: uid:daemon")\n')
    (tmp_path / "traced").write_text('modparam("mi_datagram", "trace_bwlist", "b: ps")\n')
    (tmp_path / "disables").write_text('modparam("midatagram", "disable", "kill")\n')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "all.py").write_text('import midatagram as mi\n@mi.command("*")\ndef all(ctx):\n    "All."\n')
    done = subprocess.run([sys.executable, shutil.copy(SCRIPT, tmp_path), "-s", tmp_path / "mi.sock",
                           *[word.format(tmp_path) for word in words]], capture_output=True, text=True, timeout=20,
                          env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (
        78, f"midatagram: {missing.format(tmp_path)} is needed in {tmp_path}/plugins\n")


def test_a_script_alone_serves_events_and_cached_values(tmp_path):
    place = f"{tmp_path}/mi.sock"
    (tmp_path / "c").write_text(f'modparam("mi_datagram", "socket_name", "{place}")\n')
    alone = subprocess.Popen([sys.executable, shutil.copy(SCRIPT, tmp_path), "-f", tmp_path / "c"], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: os.path.exists(place), what="the socket")
        with Client(place, tmp_path) as client:
            assert client.ask(b":cache_store:\nlocal\nk\nv\n") == b"200 OK\n\n"
            assert client.ask(b":cache_fetch:\nlocal\nk\n") == b"200 OK\nkey:: k\nvalue:: v\n\n"
            assert client.ask(b":cache_fetch_chunk:\nk\n") == b"500 command not available\n"
            assert client.ask(f":event_subscribe:\nE_MI_STOP\nunix:{client.path}\n".encode()) == b"200 OK\n\n"
            assert client.ask(b":get_statistics:\ncore:\n").startswith(b"200 OK\ncore:timestamp:: ")
            assert client.ask(b":get_statistics:\nload:\nshmem:\n") == b"404 Statistics Not Found\n\n"
            alone.terminate()
            assert client.receive() == b"E_MI_STOP\n\n"
    finally:
        alone.terminate()
        log = alone.communicate(timeout=10)[1].decode()
    assert alone.returncode == 0 and f"no statistics of load and memory: {tmp_path}/plugins has no figures.py" in log
    assert f"no raise_event and other commands: {tmp_path}/plugins has no _core_commands.py" in log


def test_without_packages_a_virtual_environment_beside_the_script_is_named(tmp_path):
    """Whatever the folder in which it is called; and not to who runs that Python, which then lacks something."""
    (tmp_path / "gevent.py").write_text("raise ImportError('none', name='gevent')\n")
    copy = tmp_path / "copy"
    python = make_venv(copy)
    shutil.copy(SCRIPT, copy)
    for program, wanted in ((sys.executable, f"gevent is missing; .*: run {python} {copy}/midatagram.py"),
                            (python, "gevent is missing; .*: pip install gevent configobj setproctitle, or apt .*")):
        done = subprocess.run([program, "copy/midatagram.py", "-s", "mi.sock"], capture_output=True, text=True, timeout=20,
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 1 and re.fullmatch(f"midatagram: {wanted}\n", done.stderr), done.stderr


def test_python_OO_serves(background, tmp_path):
    """It has no docstrings, so help says why it has no text."""
    place = tmp_path / "mi.sock"
    background(sys.executable, "-OO", SCRIPT, "-s", place, "-p", ROOT / "plugins")
    command = [sys.executable, "-OO", SCRIPT, "call", "-s", place]
    done = subprocess.run([*command, "hello", "Bob"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "200 OK\ngreeting:: Hello Bob\n\n")
    done = subprocess.run([*command, "help", "hello"], capture_output=True, text=True, timeout=20)
    assert "Help:: hello NAME [TIMES] - python -OO has removed its help." in done.stdout


def test_a_missing_setproctitle_is_a_warning(background, tmp_path):
    (tmp_path / "setproctitle.py").write_text("raise ImportError('none', name='setproctitle')\n")
    process = background(sys.executable, SCRIPT, "-s", tmp_path / "mi.sock", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "WARNING:midatagram: setproctitle is missing" in "".join(process.lines)
    assert run("call", "-s", tmp_path / "mi.sock", "uptime").returncode == 0


def pip_setting(name):
    """A setting of pip's, from its environment or files; empty if there is none."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True)
    return os.environ.get(f"PIP_{name.upper().replace('-', '_')}") or done.stdout.strip()


def test_uv_runs_the_script_as_it_is(background, tmp_path):
    beside = pathlib.Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else needs("uv")
    settings = {"UV_DEFAULT_INDEX": index} if (index := pip_setting("index-url")) else {}  # where pip finds packages
    background(uv, "run", "--python", sys.executable, SCRIPT, "-s", tmp_path / "mi.sock", cwd=tmp_path,
               env={"UV_SYSTEM_CERTS": "true", "UV_NATIVE_TLS": "true", **settings, **os.environ})
    assert run("call", "-s", tmp_path / "mi.sock", "uptime").returncode == 0


def test_pipx_installs_the_command(background, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pipx"]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        (pytest.fail if NO_SKIP else pytest.skip)(f"pip cannot install pipx: {done.stderr}")
    environment = {**os.environ, "PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    done = subprocess.run([tmp_path / "venv" / "bin" / "pipx", "install", copy_to(tmp_path / "copy")], capture_output=True,
                          text=True, env=environment, timeout=110)
    assert done.returncode == 0, done.stderr
    (tmp_path / "x.conf").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\nloadmodule "hello.so"\n')
    background(tmp_path / "bin" / "midatagram", "-f", tmp_path / "x.conf")
    done = subprocess.run([tmp_path / "bin" / "midatagram", "call", "-s", tmp_path / "mi.sock", "hello", "Bob"],
                          capture_output=True, text=True, timeout=20)
    assert done.stdout == "200 OK\ngreeting:: Hello Bob\n\n", done.stderr


def test_the_script_alone_serves_the_core(background, tmp_path):
    """A copied file, and nothing beside it; a tool whose file is not there says so."""
    script, place = shutil.copy(SCRIPT, tmp_path), tmp_path / "mi.sock"
    (tmp_path / "x.conf").write_text(f'modparam("mi_datagram", "socket_name", "{place}")\n')
    process = background(sys.executable, script, "-f", tmp_path / "x.conf")
    assert run("call", "-s", place, "cache_store", "local", "key", "value").stdout == "200 OK\n\n"
    assert run("call", "-s", place, "cache_fetch", "local", "key").stdout == "200 OK\nkey:: key\nvalue:: value\n\n"
    assert run("call", "-s", place, "version").stdout.startswith("200 OK\nServer:: ")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in process.stdout.readline(), what="the reload")
    done = subprocess.run([sys.executable, script, "call", "uptime"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "call" in done.stderr and "Traceback" not in done.stderr


def test_the_example_is_for_a_user_who_is_not_root(background, tmp_path):
    needs_root()
    setpriv = needs("setpriv")
    folder = pathlib.Path(f"/tmp/midatagram-test-{os.getpid()}")
    folder.mkdir()
    try:
        copy_to(folder)
        example = folder / "midatagram.conf.example"
        example.write_text(example.read_text().replace("/tmp/midatagram.sock", f"/tmp/midatagram-test-{os.getpid()}.sock"))
        background(setpriv, "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", SYSTEM_PYTHON,
                   folder / "midatagram.py", "-f", example, cwd="/")
        wait_for(lambda: run("call", "-f", example, "hello", "Bob").stdout == "200 OK\ngreeting:: Hello Bob\n\n")
    finally:
        shutil.rmtree(folder)
