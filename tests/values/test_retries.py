"""How often something is tried again, and how long is waited in between."""

from __future__ import annotations

import pytest

from mlstate.errors import TransportError
from mlstate.retries import Patience, Retries, retried


def transient(**fields):
    return TransportError("broken", transient=True, **fields)


def waits(retries, error, stop=None):
    """What is slept before the last attempt, summed up between the attempts."""
    slept = [0.0]

    def call():
        slept.append(0.0)
        raise error

    def sleep(seconds):
        assert 0 < seconds <= 0.1
        slept[-1] += seconds

    with pytest.raises(type(error)) as caught:
        retried(call, retries, stop, sleep=sleep)
    assert caught.value is error
    return slept[1:-1]


def test_the_waits_grow_at_random_up_to_a_limit():
    many = [waits(Retries(attempts=8, first=1, most=5), transient()) for _ in range(50)]
    for at, most in enumerate([1, 2, 4, 5, 5, 5, 5]):
        column = [waited[at] for waited in many]
        assert len(set(column)) > 40
        assert max(column) <= most + 1e-6
        assert max(column) > most * 0.7
        assert min(column) < most * 0.3


def test_the_server_says_how_long_to_wait_but_not_for_ever():
    for asked, least, most in ((7, 7, 8.1), (0, 0, 1.1), (10**9, 120, 121.1)):
        [waited] = waits(Retries(attempts=2, first=1), transient(retry_after=asked))
        assert least - 1e-6 <= waited <= most


def test_nothing_is_tried_again_once_it_is_to_stop():
    assert waits(Retries(), transient(), stop=lambda: True) == []


def test_what_is_worth_another_attempt_is_for_the_caller_to_say():
    errors = [TransportError("a", status=400), TransportError("b", status=400), transient()]

    def call():
        raise errors.pop(0)

    with pytest.raises(TransportError, match="broken"):
        retried(call, Retries(5, first=0), worth_it=lambda error: error.status == 400)
    assert errors == []


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def pause(patience, clock, seconds):
    for _ in range(seconds):
        began = clock()
        clock.now += 1
        patience.waited(began)


def test_a_server_that_gives_a_little_and_pauses_again_and_again_is_given_up():
    clock = Clock()
    patience = Patience(600, 1024, clock)

    def tarpit():
        while clock.now < 10_000:
            patience.came(70_000)
            pause(patience, clock, 121)

    with pytest.raises(TransportError) as caught:
        tarpit()
    assert clock.now == 1000 + 5 * 121
    assert not caught.value.transient
    assert "420000 bytes in 605 seconds" in str(caught.value)
    assert "MLSTATE_PATIENCE" in caught.value.remedy


@pytest.mark.parametrize("speed", [1030, 2000, 10**6])
@pytest.mark.parametrize("piece", [1, 10, 100])
def test_a_slow_and_honest_server_is_never_given_up(speed, piece):
    clock = Clock()
    patience = Patience(600, 1024, clock)
    for _ in range(20_000 // piece):  # hours
        pause(patience, clock, piece)
        patience.came(speed * piece)


def test_the_time_of_several_streams_counts_once_and_that_of_the_program_not_at_all():
    clock = Clock()
    patience = Patience(10, 100, clock)
    for _ in range(9):
        began = clock()
        clock.now += 1
        for _ in range(16):  # they waited together
            patience.waited(began)
        clock.now += 100  # and then the program wrote to its disk
        patience.came(1)
    pause(patience, clock, 1)
    patience.came(1)
    pause(patience, clock, 1)
    with pytest.raises(TransportError, match="too slow"):
        patience.came(1)


def test_a_program_that_was_stopped_for_long_does_not_hold_it_against_the_server():
    clock = Clock()
    patience = Patience(600, 1024, clock)
    began = clock()
    clock.now += 36_000
    patience.waited(began)
    patience.came(1)


def test_a_pause_is_made_only_within_the_patience():
    asked = []

    def call():
        asked.append(1)
        raise transient(retry_after=100, status=503)

    slept = []
    with pytest.raises(TransportError, match="broken, and it is not waited for") as caught:
        retried(call, Retries(), sleep=slept.append, patience=Patience(90))
    assert slept == []
    assert asked == [1]
    assert caught.value.status == 503
    assert "90 seconds" in str(caught.value)
