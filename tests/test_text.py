"""Names and hints as people see them."""

import doctest

from slimvit_jax import text
from slimvit_jax.reports import tables


def test_examples():
    assert doctest.testmod(text).failed == 0


def test_tables_show_names_as_they_are(capsys):
    table = tables.table("name", "n", title="[b]title[/b]")
    names = ["photo [copy].jpg", "[/b]", ":smile:", "caf\udce9", "two\nlines"]
    for name in names:
        table.add_row(name, "1")
    tables.show(table, "[red]text")
    out = capsys.readouterr().out
    for name in ["[b]title[/b]", *names[:3], "caf\\xe9", "two\\nlines", "[red]text"]:
        assert name in out


def test_progress_is_told_in_lines_where_there_is_no_terminal(capsys):
    with tables.progress("report", 4, "passes", seconds=0.0) as advance:
        advance(0)
        advance(2)
    with tables.progress("quick", 4, "passes") as advance:
        advance(4)
    said = capsys.readouterr().err.splitlines()
    assert said == ["report: 2/4 passes, 0 s left"]
