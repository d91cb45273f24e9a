"""activation -- the sockets that systemd opened for the server, see sd_listen_fds(3)."""

import os
import socket


def given_sockets() -> dict:
    """The sockets that systemd opened for this process: path or address -> descriptor."""
    given = {}
    for descriptor in range(3, 3 + int(os.environ["LISTEN_FDS"])) if os.environ.get("LISTEN_PID") == str(os.getpid()) else ():
        os.set_inheritable(descriptor, False)
        with socket.socket(fileno=os.dup(descriptor)) as probe:
            given[probe.getsockname()] = descriptor
    return given
