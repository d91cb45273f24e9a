"""Clients as users of the lab, each in its own language: they lose a reply and ask again, and show an error as it is."""

import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import NO_SKIP, ROOT, needs

sys.path.append(str(ROOT / "plugins"))
from lab_process import Lab

# Each asks dlg_list over $MI_UDP or $MI_SOCKET, up to three times, waits 0.3 s for each reply, and prints its first line.
CLIENTS = {
    "node": ("client.js", """
        const [host, port] = process.env.MI_UDP.split(":"), socket = require("dgram").createSocket("udp4");
        let tries = 0;
        const ask = () => {
            if (++tries > 3) { console.log("no reply"); process.exit(1); }
            socket.send(":dlg_list:\\n", port, host);
        };
        const timer = setInterval(ask, 300);
        socket.on("message", reply => { clearInterval(timer); console.log(reply.toString().split("\\n")[0]); socket.close(); });
        ask();
    """),
    "php": ("client.php", """<?php
        $socket = stream_socket_client("udp://" . getenv("MI_UDP"));
        stream_set_timeout($socket, 0, 300000);
        for ($tries = 0; $tries < 3; $tries++) {
            fwrite($socket, ":dlg_list:\\n");
            $reply = fread($socket, 65536);
            if ($reply) { echo strtok($reply, "\\n"), "\\n"; exit(0); }
        }
        echo "no reply\\n"; exit(1);
    """),
    "perl": ("client.pl", """
        use strict; use Socket; use IO::Socket::UNIX; use IO::Select;
        my $path = "/tmp/mi-client-$$";
        my $socket = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => $path) or die $!;
        my $status = 1;
        for (1 .. 3) {
            send($socket, ":dlg_list:\\n", 0, pack_sockaddr_un($ENV{MI_SOCKET})) or die $!;
            next unless IO::Select->new($socket)->can_read(0.3);
            recv($socket, my $reply, 65536, 0);
            print((split /\\n/, $reply)[0], "\\n"); $status = 0; last;
        }
        unlink $path; print "no reply\\n" if $status; exit $status;
    """),
}


@pytest.fixture(scope="module")
def lab():
    """A lab for all clients."""
    with Lab() as lab:
        yield lab


@pytest.fixture(params=CLIENTS)
def client(request, lab, tmp_path):
    """What runs a client to its end and returns its exit status and what it prints."""
    program, (name, text) = needs(request.param), CLIENTS[request.param]
    (tmp_path / name).write_text(text.lstrip())
    lab.reset()
    environment = {**os.environ, "MI_SOCKET": lab.address, "MI_UDP": "{}:{}".format(*lab.udp)}

    def run():
        done = subprocess.run([program, tmp_path / name], env=environment, capture_output=True, text=True, timeout=30)
        assert not done.stderr
        return done.returncode, done.stdout.strip()

    return run


def test_a_client_asks_again_for_a_lost_reply(lab, client):
    lab.reply("dlg_list", reply="dialog:: hash=1:2")
    lab.fault(command="dlg_list", action="drop", times=2)
    assert client() == (0, "200 OK")
    lab.verify("dlg_list", times=3)


def test_a_client_gives_up(lab, client):
    lab.fault(command="dlg_list", action="drop")
    assert client() == (1, "no reply")
    lab.verify("dlg_list", times=3)


def test_a_client_shows_an_error(lab, client):
    lab.fault(command="dlg_list", action="error", code=500, reason="Too busy")
    assert client() == (0, "500 Too busy")
    lab.verify("dlg_list", times=1)


def test_the_library_from_pypi_meets_faults(lab):
    mi = importlib.import_module("opensips.mi") if NO_SKIP else pytest.importorskip("opensips.mi")
    lab.reset()
    client = mi.OpenSIPSMI("datagram", datagram_unix_socket=lab.address, datagram_timeout=1)
    lab.reply("ul_dump", json=json.dumps({"Domains": [{"name": "location"}]}))
    assert client.execute("ul_dump") == {"Domains": [{"name": "location"}]}
    lab.fault(command="ul_dump", action="drop", times=1)
    lab.fault(command="ul_dump", action="error", code=480, reason="Not now")
    for _ in range(2):
        with pytest.raises(mi.OpenSIPSMIException):
            client.execute("ul_dump")
    lab.verify("ul_dump", times=3)
    lab.order("ul_dump", "ul_dump", "ul_dump")


def test_opensips_cli_meets_faults(lab):
    """It asks `which` before each command, shows a reply, and says what an error says."""
    program = shutil.which("opensips-cli", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if not program:
        (pytest.fail if NO_SKIP else pytest.skip)("opensips-cli is not installed")
    settings = ("communication_type=datagram", f"datagram_unix_socket={lab.address}", "datagram_timeout=5")

    def ask(*words):
        options = [word for setting in settings for word in ("-o", setting)]
        done = subprocess.run([program, *options, "-x", "mi", *words], capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr

    lab.reset()
    lab.reply("uptime", json=json.dumps({"Now": "never"}))
    assert '"Now": "never"' in ask("uptime")
    lab.fault(command="uptime", action="error", code=480, reason="Not now")
    assert "Not now" in ask("uptime")
    lab.verify("uptime", times=2)
