"""What ./dev decides without running anything: whose option it is, and where Debian's packages come from."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dev() -> ModuleType:
    spec = spec_from_loader("dev", SourceFileLoader("dev", str(ROOT / "dev")))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("given", "rest", "value"),
    [
        (["tests/unit", "-k", "retry"], ["tests/unit", "-k", "retry"], None),
        (["--rabbitmq", "4", "-q"], ["-q"], "4"),
        (["-q", "--rabbitmq=4", "tests"], ["-q", "tests"], "4"),
        (["--rabbitmq"], [], ""),
    ],
)
def test_an_option_of_its_own_is_not_passed_on(
    dev: ModuleType, given: list[str], rest: list[str], value: str | None
) -> None:
    assert dev.take_option("--rabbitmq", given) == (rest, value)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], True),
        (["-q", "-k", "search"], True),
        (["tests/"], True),
        (["tests/unit", "tests/browser/test_dead.py::test_replay"], True),
        (["tests/unit", "-q"], False),
    ],
)
def test_a_browser_is_needed_for_tests_that_drive_one(dev: ModuleType, given: list[str], wanted: bool) -> None:
    assert dev.wants_browser(given) is wanted


def test_the_lock_of_npm_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "package-lock.json").read_text()

    assert text.count('"integrity": "sha512-') == text.count('"node_modules/')
    assert "resolved" not in text
    assert "://" not in text


def test_the_archive_is_the_one_that_the_running_release_comes_from(dev: ModuleType) -> None:
    listing = """\
file:/media/cdrom/ bookworm main Debian
https://vendor.example/deb/ bookworm main Vendor of Things
http://security.example/debian-security/ bookworm-security main Debian
http://contrib.example/debian/ bookworm contrib Debian
http://first.example/debian/ bookworm main Debian
http://second.example/debian/ bookworm main Debian
"""

    found = dev.archive_of(listing, "bookworm")

    assert found == "http://first.example/debian/"


@pytest.mark.parametrize("listing", ["", "\n", "http://archive.example/ubuntu/ noble main Ubuntu\n"])
def test_without_an_archive_of_debian_there_is_none(dev: ModuleType, listing: str) -> None:
    assert dev.archive_of(listing, "noble") is None
