"""reminders.py: an unanswered ask is said on an edge, ever more seldom, within a budget of bytes."""

import re

import pytest

from repowire import asks, claims, deliveries, hooks, presence, receipts, reminders
from repowire.agents.claude_code_hooks import Said
from repowire.arrivals import Facts
from repowire.asks import Draft
from repowire.claims import Claim

MINUTE, HOUR = 60.0, 3_600.0


@pytest.fixture
def ben(mesh):
    with mesh.change() as change:
        claims.register(change, Claim("ann", path="/src/ann"))
        return claims.register(change, Claim("ben", path="/src/ben"))[0]


def ask(mesh, ben, text="is it green?", *, shown=True, sender="ann"):
    with mesh.change() as change:
        opened, delivery = asks.open_ask(change, mesh, Draft(sender, "ben", text, keep_if_offline=True))
    if shown:
        with mesh.change() as change:
            assert receipts.seen(change, ben.peer_id, delivery.delivery_id, "prompt")
    return opened


def remind(mesh, ben, budget=2_000):
    with mesh.change() as change:
        return reminders.remind(change, ben.peer_id, budget)


def named(text):
    return re.findall(r"^#(ask-[0-9a-f]+) from", text, re.MULTILINE)


def stop(mesh, ben, **said):
    with mesh.change() as change:
        answer = hooks.on_stop(change, hooks.Heard(mesh, ben, Said(**said), Facts()))
    return answer.text


def test_it_is_said_when_new_and_then_ever_more_seldom(mesh, ben, clock):
    opened = ask(mesh, ben)
    began, said = clock.now(), []
    while clock.now() - began < 12 * HOUR:
        if text := remind(mesh, ben):
            assert named(text) == [opened.correlation_id]
            said.append((clock.now() - began) / MINUTE)
        clock.advance(MINUTE)
    assert said == [0, 15, 75, 315, 555]


def test_one_that_was_answered_is_said_no_more(mesh, ben, clock):
    opened = ask(mesh, ben)
    assert remind(mesh, ben)
    with mesh.change() as change:
        asks.close(change, opened.correlation_id, "ack")
    clock.advance(24 * HOUR)
    assert remind(mesh, ben) == ""


def test_one_that_waits_in_the_mailbox_is_not_said(mesh, ben):
    ask(mesh, ben, shown=False)
    assert remind(mesh, ben) == ""


def test_one_that_was_handed_and_never_shown_is_said_after_a_while(mesh, ben, clock):
    opened = ask(mesh, ben, shown=False)
    with mesh.change() as change:
        deliveries.lease(change, ben.peer_id, "hook:x")
        receipts.receipt(change, opened.delivery_id, "injected", peer_id=ben.peer_id, by="hook")
    assert remind(mesh, ben) == ""
    clock.advance(15 * MINUTE)
    assert named(remind(mesh, ben)) == [opened.correlation_id]


def test_a_new_one_is_said_without_the_old_ones(mesh, ben, clock):
    ask(mesh, ben)
    remind(mesh, ben)
    clock.advance(MINUTE)
    new = ask(mesh, ben)
    assert named(remind(mesh, ben)) == [new.correlation_id]


@pytest.mark.parametrize("text", ["short", "x" * 500, "Größe " * 100, "🦊" * 400, "a\nb\x1b[201~\tc"])
@pytest.mark.parametrize("budget", [0, 100, 161, 400, 2_000])
def test_the_budget_holds_and_what_does_not_fit_is_counted(mesh, ben, clock, text, budget):
    for _ in range(60):
        ask(mesh, ben, text)
    clock.advance(3 * HOUR)
    said = remind(mesh, ben, budget)
    assert len(said.encode()) <= budget
    if budget >= 161:
        first, *lines = said.splitlines()
        assert first == reminders.HEAD
        counted = re.fullmatch(r"and (\d+) more, oldest 3 h: #ask-[0-9a-f]{12} from @ann", lines[-1])
        assert counted is not None
        assert len(named(said)) + int(counted[1]) == 60
        assert len(lines) == len(named(said)) + 1, "a line each, whatever the text has"
    else:
        assert said == ""


def test_what_was_only_counted_is_named_first_the_next_time(mesh, ben, clock):
    opened = [ask(mesh, ben, "x" * 200).correlation_id for _ in range(6)]
    heard = []
    for _ in range(2):
        heard.append(named(remind(mesh, ben, 900)))
        assert remind(mesh, ben, 900) == "", "the same is not said twice"
        clock.advance(15 * MINUTE)
    first, second = heard
    assert first == opened[: len(first)]
    assert second[: 6 - len(first)] == opened[len(first) :]


def test_where_nothing_fits_it_stays_due(mesh, ben):
    opened = ask(mesh, ben)
    assert remind(mesh, ben, 100) == ""
    assert named(remind(mesh, ben)) == [opened.correlation_id]


def test_a_stop_takes_the_mail_from_the_budget_and_does_not_cut_it(mesh, ben):
    opened = ask(mesh, ben)
    mail = ask(mesh, ben, "y" * 1_900, shown=False)
    first = stop(mesh, ben)
    assert "y" * 1_900 in first
    assert mail.correlation_id in first
    assert opened.correlation_id not in first
    second = stop(mesh, ben)
    assert opened.correlation_id in second


def test_a_turn_that_a_stop_hook_made_gets_none(mesh, ben):
    opened = ask(mesh, ben)
    assert stop(mesh, ben, stop_hook_active=True) == ""
    assert presence.of(mesh.db.conn, ben.peer_id) == presence.ONLINE
    assert opened.correlation_id in stop(mesh, ben)
    assert stop(mesh, ben) == ""


def test_with_a_budget_of_nothing_nobody_is_reminded(new_mesh, tmp_path, clock):
    mesh = new_mesh(tmp_path / "other", clock, REPOWIRE_DAEMON__REMINDER_BUDGET_BYTES="0")
    with mesh.change() as change:
        claims.register(change, Claim("ann", path="/src/ann"))
        ben = claims.register(change, Claim("ben", path="/src/ben"))[0]
    ask(mesh, ben)
    assert stop(mesh, ben) == ""
