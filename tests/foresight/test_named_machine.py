"""Memory by name: units, cards, and what is free here."""

import pytest

from dtl.errors import ConfigError
from dtl.foresight import machine
from dtl.foresight.machine import CARDS, GIB, named_machine, this_machine


@pytest.mark.parametrize("name", ["8GB", "8", "8.0", "8 GiB", "8192MB", "8g"])
def test_memory_in_any_form(name):
    found = named_machine(name)
    assert (found.device_type, found.free) == ("cpu", 7 * GIB)


@pytest.mark.parametrize("name", ["rtx4060", "RTX 4060", "rtx-4060"])
def test_a_card(name):
    found = named_machine(name)
    assert (found.device_type, found.free) == ("cuda", 7 * GIB)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rtx4061", "Did you mean 'rtx406"),
        ("8TBx", "machine=8TBx: neither memory nor a card"),
        ("-8GB", "neither memory nor a card"),
        ("0", "must be above 1 GiB"),
        ("900MB", "must be above 1 GiB"),
        ("1e9", "neither memory nor a card"),
        ("99999999GB", "at most"),
    ],
)
def test_what_is_neither(name, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        named_machine(name)


def test_every_card_is_found_by_its_name():
    for name in CARDS:
        assert named_machine(name).name == name


def test_the_tighter_bound_counts(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 5 * GIB)
    monkeypatch.setattr(machine, "container_left", lambda: 3 * GIB)
    found = this_machine("cpu")
    assert (found.free, found.why) == (3 * GIB, "left in this container")
    monkeypatch.setattr(machine, "container_left", lambda: None)
    assert this_machine("cpu").free == 5 * GIB
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    assert this_machine("cpu").free is None
