"""The lines of members: cluster and member in each, and a bound on each kind."""

from __future__ import annotations

import logging

import pytest

from raykeeper.actors.logs import MemberLog, RateLimit
from raykeeper.limits import LOG_LINES_PER_WINDOW, LOG_WINDOW_S


def test_each_line_names_cluster_and_member(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    MemberLog("member", "jo%sbs", "m1").info("won %d", 3)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("raykeeper.member", "INFO")
    assert record.getMessage() == "cluster jo%sbs, m1: won 3"
    assert (record.__dict__["cluster"], record.__dict__["member"]) == ("jo%sbs", "m1")


def test_no_kind_of_line_floods_the_log_or_keeps_others_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    now = [0.0]
    log = MemberLog("member", "c", "m1", lambda: now[0])
    for number in range(LOG_LINES_PER_WINDOW + 7):
        log.info("often %d", number)
    log.info("seldom")
    assert len(caplog.records) == LOG_LINES_PER_WINDOW + 1
    now[0] += LOG_WINDOW_S
    log.info("often %d", 99)
    assert caplog.records[-1].getMessage() == "cluster c, m1: often 99 (and 7 more lines like it)"
    log.info("often %d", 100)
    assert caplog.records[-1].getMessage() == "cluster c, m1: often 100"


def test_what_is_below_the_level_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    log = MemberLog("member", "c", "m1", lambda: 0.0)
    for _ in range(2 * LOG_LINES_PER_WINDOW):
        log.debug("quiet")
    caplog.set_level(logging.DEBUG, "raykeeper.member")
    log.debug("quiet")
    assert len(caplog.records) == 1


def test_the_bound_is_one_of_each_window() -> None:
    now = [0.0]
    rate = RateLimit(lambda: now[0])
    for _ in range(3):
        admitted = [rate.admit("x") for _ in range(LOG_LINES_PER_WINDOW + 1)]
        assert admitted[-1] is None
        assert None not in admitted[:-1]
        now[0] += LOG_WINDOW_S
