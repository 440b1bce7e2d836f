"""Rows of a table at a terminal."""

from gateway.columns import aligned


def test_cells_begin_below_each_other_whatever_their_script():
    assert aligned([("id", "name", "state"), ("1", "客服", "active"), ("22", "web", "")]) == [
        "id  name  state",
        "1   客服  active",
        "22  web",
    ]


def test_no_rows_are_no_lines():
    assert aligned([]) == []
