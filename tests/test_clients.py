"""Clients that other people wrote, unmodified, from PyPI: `opensips` (library and opensips-mi) and `opensipscli`."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from conftest import NO_SKIP, PLUGINS, free_port, wait_for

SCRIPTS = pathlib.Path(sys.executable).parent  # pip puts programs beside the interpreter

try:
    from opensips.mi import OpenSIPSMI, OpenSIPSMIException
except ImportError:
    if NO_SKIP:
        raise
    pytest.skip("the package opensips is not installed", allow_module_level=True)


@pytest.fixture
def server(start):
    """A server on a UNIX path and on UDP; `ways` are a client's options for either."""
    port = free_port()
    found = start(f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")\nloadmodule "opensips_core.so"\n'
                  'loadmodule "canned.so"\n', "-p", str(PLUGINS))
    found.ways = {"udp": {"datagram_ip": "127.0.0.1", "datagram_port": port, "datagram_timeout": 5},
                  "unix": {"datagram_unix_socket": found.place, "datagram_timeout": 5}}
    return found


def program(name, *arguments):
    """Run a client's program to its end."""
    return subprocess.run([SCRIPTS / name, *map(str, arguments)], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("way", ["udp", "unix"])
def test_the_library(server, way):
    client = OpenSIPSMI("datagram", **server.ways[way])
    assert client.execute("version")["Server"].startswith("midatagram (")
    assert client.execute("get_statistics", [["rcv_requests"]]) == {"core:rcv_requests": 0}
    assert client.execute("cache_store", {"system": "local", "attr": "a", "value": "é\n"}) == "OK"
    assert client.execute("cache_fetch", ["local", "a"]) == {"key": "a", "value": "é\n"}
    assert [row["Type"] for row in client.execute("ps")["Processes"]] == ["attendant", "MI Datagram"]
    assert client.execute("ds_list")["PARTITION"]
    with pytest.raises(OpenSIPSMIException, match="-32601"):
        client.execute("no_such_command")


def test_the_librarys_events(server):
    from opensips.event import OpenSIPSEventHandler

    client = OpenSIPSMI("datagram", **server.ways["udp"])
    handler, heard = OpenSIPSEventHandler(client, "datagram", ip="127.0.0.1", port=0), []
    event = handler.subscribe("E_PIKE_BLOCKED", heard.append)
    for _ in range(3):
        client.execute("raise_event", ["E_PIKE_BLOCKED", ["192.0.2.1"]])
    wait_for(lambda: len(heard) >= 3)
    event.unsubscribe()
    assert "192.0.2.1" in str(heard[0])


@pytest.mark.parametrize("way", ["udp", "unix"])
def test_opensips_mi(server, way):
    options = server.ways[way]
    where = ["-i", options["datagram_ip"], "-p", options["datagram_port"]] if way == "udp" else ["-ds", server.place]
    done = program("opensips-mi", "-t", "datagram", *where, "-dt", "5", "uptime")
    assert done.returncode == 0, done.stderr
    assert "[sec]" in json.loads(done.stdout)["Up time"]


@pytest.mark.parametrize("way", ["udp", "unix"])
@pytest.mark.parametrize("words, wanted", [
    (["ps"], "MI Datagram"), (["get_statistics", "core:"], "core:rcv_requests"), (["which"], "get_statistics"),
    (["cache_fetch", "local", "nothing"], "Value not found"), (["ds_list"], "sip:192.0.2.21:5060"),
])
def test_opensips_cli(server, way, words, wanted):
    options = [f"{name}={value}" for name, value in server.ways[way].items()]
    settings = [word for option in ["communication_type=datagram", *options] for word in ("-o", option)]
    done = program("opensips-cli", *settings, "-x", "mi", *words)
    assert wanted in done.stdout + done.stderr, done


@pytest.mark.parametrize("word, wanted", [
    ("", ["OpenSIPS Overview", "Worker Capacity: ", "Shared Memory:", "Private Memory:", "SIP Processing:  OK",
          "DNS Queries:     OK", "SQL queries:     OK", "NoSQL Queries:   OK"]),
    ("memory", ["Shared Memory Status", "Private Memory Status"]), ("load", ["press Ctrl-c to exit"])])
def test_opensips_cli_diagnoses_a_lab(start, word, wanted):
    """Again and again, until it is ended."""
    port = free_port()
    server = start(f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")\nmodparam("midatagram", "imitate", "3.4")\n'
                   'loadmodule "opensips34.so"\n')
    options = ["communication_type=datagram", "datagram_ip=127.0.0.1", f"datagram_port={port}"]
    settings = [setting for option in options for setting in ("-o", option)]
    client = subprocess.Popen([SCRIPTS / "opensips-cli", *settings, "-x", "diagnose", *word.split()], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, env={**os.environ, "TERM": "dumb", "PYTHONUNBUFFERED": "1"})
    timer = threading.Timer(40, client.kill)
    timer.start()
    try:
        shown = ""
        while not all(text in shown for text in wanted):
            line = client.stdout.readline()
            assert line, shown
            shown += line
        assert server.statistic("requests") > 1
    finally:
        timer.cancel()
        client.terminate()
        client.wait(10)
        client.stdout.close()
