"""trace_file -- traces MI commands to a file, one JSON object per line.

    loadmodule "trace_file.so"
    modparam("trace_file", "path", "/var/log/midatagram/trace.jsonl")
    modparam("mi_datagram", "trace_destination", "trace_file")

A line has the fields of midatagram.Trace and of its Exchange; bytes that are not UTF-8 stand as lone
surrogates, which Python's surrogateescape turns back into those bytes. All children append to one file. SIGUSR1 makes
them open it again, after a rotation. As root they open no file that another user may have put there.
"""

import json
import os

import midatagram as mi

open_to_append = mi.shared("log_file", __file__, "to append to a file, ").open_to_append


def absolute_path(value) -> str:
    """Converter: a path from the root, since a server may run in any folder."""
    if not mi.string(value).startswith("/"):
        raise ValueError('takes a path from the root: "/var/log/midatagram/trace.jsonl"')
    return value


PARAMS = [mi.Param("path", None, absolute_path, "file to append traces to")]


def init(ctx):
    """Have a warning of a file that cannot be made."""
    path, checks = ctx.param("path"), mi.if_there("checks")
    if why := path and checks and (checks.why_no_folder(path) or checks.why_no_file(path)):
        ctx.own.doubts.append((ctx.own.where("path"), f"path {path} {why}"))


def line(trace: mi.Trace) -> str:
    """A trace as one line of JSON, in ASCII."""
    fields = {**trace._asdict(), **trace.exchange._asdict()}
    return json.dumps({name: mi.decode(value) if isinstance(value, bytes) else value
                       for name, value in fields.items() if name != "exchange"}) + "\n"


class TraceFile:
    """Appends traces to a file."""

    def __init__(self, path: str, ctx: mi.Context):
        self.path, self.ctx = path, ctx
        self.file = -1  # its descriptor once it is open
        self.torn = False  # whether the last line may lack its end

    def open(self) -> None:
        """Open or create the file; OSError when that is not possible."""
        try:
            self.file = open_to_append(self.path, os.O_WRONLY, 0o640)
        except OSError as error:  # which may name a part of the path alone
            raise OSError(error.errno, error.strerror, self.path) from None

    def write(self, batch: list) -> None:
        """Append a batch with one write, so that lines of several children do not mix; OSError if it fails."""
        data = (b"\n" if self.torn else b"") + "".join(map(line, batch)).encode("ascii")
        self.torn = True
        while data:
            data = data[os.write(self.file, data) :]
        self.torn = False

    def reopen(self) -> None:
        """SIGUSR1: go on in a file of the same path, which may be a new one; if that fails, in the old one."""
        if self.file < 0:
            return
        old = self.file
        try:
            self.open()
        except OSError as error:
            self.ctx.log.error("%s cannot be opened again: %s", self.path, error)
        else:
            os.close(old)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


@mi.trace_destination
def destinations(ctx: mi.Context) -> dict:
    """The file, by the name trace_file; without a path there is none."""
    path = ctx.param("path")
    return {"trace_file": TraceFile(path, ctx)} if path else {}
