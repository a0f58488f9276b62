"""docs/containers.md says what `adopt` really does with each container."""

from __future__ import annotations

from tests.support.containers import BEGIN, END, PAGE, table


def test_the_table_is_what_happens():
    # python -m tests.support.containers writes it anew
    text = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert text == table()
