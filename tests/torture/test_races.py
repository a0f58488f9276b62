"""Processes that race, and the checker of their history."""

import random
from itertools import count

import pytest

from tests.torture.history import Event, contradiction
from tests.torture.races import race_on_cache, race_on_store

SECONDS = 2.0


def test_a_race_on_a_store_ends_as_some_order_would_have(ram, figures):
    race_on_store(1, SECONDS, ram, figures)
    assert figures["operations held against the model"] > 50


def test_a_race_on_a_cache_gives_right_bytes_to_everyone(ram, figures):
    race_on_cache(1, SECONDS, ram, figures)
    assert figures["raced operations"] > 50


def events(*rows):
    """Of one key: call, number, answer, start and end."""
    return [Event("a", *row) for row in rows]


@pytest.mark.parametrize(
    "history",
    [
        events(("load", None, 3, 0, 1)),  # never saved
        events(("save", 1, "saved", 0, 1), ("save", 2, "saved", 2, 3)),  # over another
        events(("save", 1, "saved", 0, 1), ("load", None, "absent", 2, 3)),  # lost
        events(("save", 1, "saved", 0, 1), ("save", 1, "exists", 2, 3)),  # the same
        events(("delete", None, "deleted", 0, 1)),
        events(
            ("save", 1, "saved", 0, 1),
            ("save over", 2, "saved", 2, 3),
            ("load", None, 2, 4, 5),
            ("load", None, 1, 6, 7),  # came back
        ),
        events(
            ("save", 1, "saved", 0, 1),
            ("delete", None, "deleted", 2, 10),
            ("delete", None, "deleted", 3, 9),  # twice
        ),
    ],
)
def test_what_cannot_have_been_is_found(history):
    assert contradiction(history)


def test_what_can_have_been_is_accepted():
    assert not contradiction(
        events(
            ("save", 1, "saved", 0, 10),
            ("load", None, 1, 1, 2),
            ("delete", None, "absent", 0, 3),
            ("save over", 2, "saved", 5, 20),
            ("load", None, 1, 6, 7),
            ("load", None, 2, 8, 9),
            ("delete", None, "deleted", 11, 12),
            ("save", 3, "saved", 12, 14),
            ("save", 4, "exists", 15, 16),
        )
    )


def test_histories_of_a_real_register_are_accepted_and_spoilt_ones_are_not():
    chance = random.Random(1)
    clock, value, rows = count(), None, []
    for _ in range(400):
        call = chance.choice(["save over", "delete", "load"])
        number = chance.randrange(4)
        now = next(clock) * 10
        if call == "save over":
            value, answer = number, "saved"
        elif call == "delete":
            answer, value = ("absent" if value is None else "deleted"), None
        else:
            answer = "absent" if value is None else value
        early, late = chance.randrange(25), chance.randrange(25)
        rows.append((call, number, answer, now - early, now + late))
    assert not contradiction(events(*rows))
    spoilt = [row if row[0] != "load" else (*row[:2], 9, *row[3:]) for row in rows]
    assert contradiction(events(*spoilt))
