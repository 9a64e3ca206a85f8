"""Progress and tables, on a terminal and in a file."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from ignite.engine import Engine

from bundle import terminal
from bundle.handlers import Progress
from bundle.terminal import format_table, progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_file_gets_lines_now_and_then_and_no_control_characters(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress(iter("abc"), 3, "superpixels")) == ["a", "b", "c"]
    assert caplog.messages == []  # what is quick is not worth a line
    monkeypatch.setattr(terminal, "LINE_S", -1.0)
    assert list(progress(iter("abc"), 3, "superpixels")) == ["a", "b", "c"]
    told = ["superpixels: 1 of 3 scans in 0 s", "superpixels: 2 of 3 scans in 0 s", "superpixels: all 3 scans in 0 s"]
    assert caplog.messages == told
    assert sys.stderr.getvalue() == ""


def test_a_terminal_gets_a_bar_that_lines_of_the_log_do_not_break(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    console = logging.StreamHandler(sys.stdout)
    logger = logging.getLogger()
    monkeypatch.setattr(logger, "handlers", [console])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(console, "stream", sys.stderr)
    for item in progress(range(2), 2, "superpixels"):
        logging.getLogger("x").info("line %d", item)
    assert "superpixels:" in screen.getvalue()
    for item in range(2):  # each line begins where the bar was taken away
        assert screen.getvalue().split(f"line {item}\n")[0].endswith("\r")
    assert logger.handlers == [console]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_bar_of_an_engine_covers_each_epoch(monkeypatch, stream):
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    engine = Engine(lambda *_: None)
    Progress("epoch", "step").attach(engine)
    engine.run(range(3), max_epochs=2)
    engine.run(range(3), max_epochs=4)
    if stream is Terminal:
        assert all(f"epoch {epoch}/{of}:" in screen.getvalue() for epoch, of in ((1, 2), (2, 2), (4, 4)))
    else:
        assert screen.getvalue() == ""


def test_table_by_hand():
    assert format_table(["case", "mL"], [["a", "1.5"], ["long", "1000"]]) == "case    mL\na      1.5\nlong  1000"
    assert format_table(["case", "mL"], []) == "case  mL"
