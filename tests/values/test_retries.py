"""How often something is tried again, and how long is waited in between."""

from __future__ import annotations

import pytest

from mlstate.errors import TransportError
from mlstate.retries import Retries, retried


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
