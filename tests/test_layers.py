"""Part one of the script names no I/O, and the script is one module however it is started."""

import ast
import subprocess
import sys

from conftest import ROOT, run

SOURCE = (ROOT / "midatagram.py").read_text()
FORBIDDEN = {"os", "socket", "gevent", "time", "sqlite3", "logging", "signal", "select", "subprocess", "mmap", "shutil",
             "tempfile", "threading", "fcntl"}


def part_one():
    """The statements above the banner of part two."""
    line = SOURCE[:SOURCE.index("## PART TWO")].count("\n") + 1
    return [node for node in ast.parse(SOURCE).body if node.lineno < line]


def test_part_one_names_no_io():
    imported = {alias.name.partition(".")[0] for statement in part_one() for node in ast.walk(statement)
                if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
    named = {node.id for statement in part_one() for node in ast.walk(statement) if isinstance(node, ast.Name)}
    called = {node.func.id for statement in part_one() for node in ast.walk(statement)
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    methods = {node.attr for statement in part_one() for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
    assert len(part_one()) > 100
    assert not (imported | named) & FORBIDDEN
    assert not called & {"open", "print", "input", "exec", "__import__"}
    assert not methods & {"read_text", "read_bytes", "write_text", "exists", "open", "resolve"}


def test_importing_the_script_does_nothing():
    """No patching, no gevent, no output."""
    code = "import sys, midatagram; print(sorted(name for name in sys.modules if name.startswith('gevent')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=20)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_plugin_gets_the_running_script_as_its_module(tmp_path):
    (tmp_path / "same.py").write_text(
        '"""same"""\nimport sys, midatagram\nassert midatagram is sys.modules["__main__"], "two of them"\n')
    done = run("-c", "-s", tmp_path / "x.sock", "-p", tmp_path)
    assert done.returncode == 0, done.stderr
