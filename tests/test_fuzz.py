"""The fuzz command in short, and that it would notice what it looks for."""

import contextlib
import re
import socket
import subprocess
import sys
import threading

import fuzz
import pytest
from conftest import ROOT, Client


def test_each_of_some_thousand_mutated_recordings_gets_its_one_answer():
    done = subprocess.run([sys.executable, ROOT / "tests" / "fuzz.py", "--count", "20000", "--seconds", "15"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    requests, answers, notifications, looped, empty = map(int, re.search(
        r"(\d+) requests, (\d+) answers, (\d+) notifications, (\d+) replies and (\d+) empty datagrams", done.stdout).groups())
    assert requests == answers + notifications + looped
    assert requests > 1000 and empty > 0 and notifications > 0


def test_the_same_seed_gives_the_same_requests():
    def some(seed):
        mutator = fuzz.Mutator(seed)
        return [mutator.request() for _ in range(500)]

    assert some(1) == some(1) != some(2)
    assert len(set(some(1))) > 450
    assert not any(map(fuzz.is_too_dear, some(1)))


class Responder(threading.Thread):
    """A server that answers the 50th text request in some wrong way, and all others well."""

    def __init__(self, folder, wrong):
        super().__init__(daemon=True)
        self.wrong, self.place = wrong, f"{folder}/responder"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.place)

    def run(self):
        number = 0
        with contextlib.suppress(ConnectionRefusedError):  # the client left
            while True:
                request, client = self.socket.recvfrom(1 << 17)
                if client is None:
                    return
                replies = [b"200 OK\n\n"] * bool(request)
                if request.startswith(b":echo:\nfence-"):
                    replies = [b"200 OK\n" + request.partition(b"\n")[2] + b"\n\n"]
                elif request.startswith(b":"):
                    number += 1
                    replies = self.wrong if number == 50 else replies
                for reply in replies:
                    self.socket.sendto(reply, client)


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """Bombard a Responder that answers wrongly: talk([replies]) gives the Figures."""
    monkeypatch.setattr(fuzz, "WAIT_S", 0.5)

    def talk_to(wrong):
        responder = Responder(tmp_path, wrong)
        responder.start()
        with Client(responder.place, tmp_path) as client, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ender:
            try:
                return fuzz.bombard([fuzz.Talker("udp", client, fuzz.Mutator(1))], 400, 30)
            finally:
                ender.sendto(b"", responder.place)
                responder.join(5)
                responder.socket.close()

    return talk_to


@pytest.mark.parametrize("wrong, message", [
    ([b"200 OK\n\n"] * 9, "answers too many"),
    ([b"200 " + b"x" * 65454], "not an answer: 65458 bytes"),
    ([b"what?"], "not an answer: 5 bytes"),
    ([b"200 OK\n\n"] * 9 + [b""], "not an answer: 0 bytes"),
])
def test_fuzz_notices_wrong_answers(talk, wrong, message):
    with pytest.raises(fuzz.Wrong, match=message):
        talk(wrong)


@pytest.mark.parametrize("wrong", [[], [b"200 OK\n\n"]])
def test_fuzz_counts_the_answers(talk, wrong):
    with contextlib.suppress(fuzz.Wrong):
        figures = talk(wrong)
        assert figures.requests + figures.empty == 400
        assert figures.requests - figures.replies == 1 - len(wrong)
        return
    assert not wrong  # where no other answer can be taken for it, the missing one is noticed at once


def test_fuzz_notices_a_traceback_and_a_dead_child(start):
    server = start('loadmodule "mi_trouble.so"\n', "-p", str(fuzz.PLUGINS))
    children, figures = server.children(), fuzz.Figures()
    with pytest.raises(fuzz.Wrong, match="children died"):
        fuzz.check_server(server, figures, [*children, 1])
    figures.add([b"200 OK\n\n"], 2)
    with pytest.raises(fuzz.Wrong, match="2 requests, 1 answers, 0 notifications"):
        fuzz.check_server(server, figures, children)
    server.ask(b":stumble:\n")
    with pytest.raises(AssertionError, match="Traceback"):
        fuzz.check_server(server, fuzz.Figures(), children)
