"""Python's own source as text."""

import platform

import msgspec
import pytest

from fledge.text.installed import content, python_sources, versions


def test_the_standard_library_is_text_that_is_always_there():
    found = list(python_sources())
    names = [d.source for d in found]
    assert names == sorted(names) and "json/decoder.py" in names and "argparse.py" in names
    assert not [
        n for n in names if "test" in n.split("/") or n.startswith(("encodings/", "idlelib/", "_sysconfigdata"))
    ]
    assert sum(len(d.text) for d in found) > 5_000_000
    assert content(found) == content(python_sources()) != content(found[1:])


def test_packages_come_after_it_and_must_be_there():
    names = [d.source for d in python_sources(["msgspec"])]
    assert names[-1].startswith("msgspec/") and "abc.py" in names
    with pytest.raises(ValueError, match="'no_such_package': not installed"):
        list(python_sources(["no_such_package"]))


def test_versions_are_those_of_what_is_read():
    assert versions() == {"python": platform.python_version()}
    assert versions(["msgspec", "json"]) == versions() | {"msgspec": msgspec.__version__, "json": ""}
