"""_pytest_midatagram -- fixtures: a lab that a test of an MI client talks to.

Installed with pip it is there by itself. From a checkout, one line in conftest.py:

    import sys; sys.path.append("/path/to/midatagram/plugins"); pytest_plugins = ["_pytest_midatagram"]
"""

import pathlib
import sys

import pytest

try:
    from lab_process import Lab
except ImportError:  # installed, where pytest itself imports this
    sys.path.append(str(pathlib.Path(__file__).parent))
    from lab_process import Lab


@pytest.fixture(scope="session")
def mi_config():
    """More lines of configuration for the lab; a fixture of that name and scope in conftest.py replaces it."""
    return ""


@pytest.fixture(scope="session")
def mi_lab(request, mi_config):
    """A lab for all tests. Its parameter is the release that it imitates:
    `@pytest.mark.parametrize("mi_lab", ["2.4", "4.0"], indirect=True)`."""
    with Lab(mi_config, imitate=getattr(request, "param", None)) as lab:
        yield lab


@pytest.fixture
def mi_server(mi_lab):
    """The lab, reset before each test; a failing test shows its journal."""
    mi_lab.reset()
    return mi_lab


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Add the journal to the report of a test that failed."""
    report = (yield).get_result()
    lab = getattr(item, "funcargs", {}).get("mi_server")
    if lab and call.when == "call" and report.failed:
        try:
            journal = lab.journal()
        except Exception as error:  # the report matters more
            journal = f"the lab does not tell: {error!r}\n{lab.log()}"
        report.sections.append(("MI journal", journal))
