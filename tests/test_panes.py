"""panes.py: how long a ws-hook is waited for that is gone or hangs and may know what became of what it took."""

import pytest

from repowire import claims, deliveries, messages, panes, receipts
from repowire.claims import Claim
from repowire.doors import Door


@pytest.fixture
def taken(mesh):
    """A message that the home's ws-hook took."""
    folder = mesh.config.home / "ws-hook"
    folder.mkdir(parents=True)
    (folder / "instance").write_text("one")
    with mesh.change() as change:
        ben, _ = claims.register(change, Claim("ben", path="/src/ben"), connected=True)
        messages.notify(change, mesh, messages.Note("ann", "ben", "hello"))
        (taken,) = deliveries.lease(change, ben.peer_id, "instance:one")
    return taken


def test_a_ws_hook_that_is_gone_is_waited_for_until_it_receipts_or_for_a_time(mesh, taken, monkeypatch):
    now, ben = 100.0, taken.peer_id
    monkeypatch.setattr("repowire.panes.time.monotonic", lambda: now)
    hosts, door = panes.Hosts(), Door(ben, "instance:one")
    door.hosted = True
    mesh.doors.open(door)
    assert hosts.owing(mesh) == set(), "it is there"
    now += panes.SETTLE_SECONDS
    mesh.doors.close(door)
    assert hosts.owing(mesh) == {ben}
    now += panes.SETTLE_SECONDS - 1
    mesh.doors.open(door)
    assert hosts.owing(mesh) == {ben}
    now += 1
    mesh.doors.close(door)
    assert hosts.owing(mesh) == set(), "it came, and had nothing to say of it"
    with mesh.change() as change:
        receipts.receipt(change, taken.delivery_id, "injected", peer_id=ben)
    assert panes.Hosts().owing(mesh) == set()


def test_of_what_another_holder_took_no_ws_hook_knows(mesh, taken):
    assert panes.Hosts().owing(mesh) == {taken.peer_id}
    (mesh.config.home / "ws-hook" / "instance").write_text("two")
    assert panes.Hosts().owing(mesh) == set()
    (mesh.config.home / "ws-hook" / "instance").unlink()
    assert panes.Hosts().owing(mesh) == set()


def test_a_ws_hook_that_does_not_leave_when_its_pane_is_left_is_cut_off(mesh, taken, monkeypatch):
    now, ben, cut = 100.0, taken.peer_id, []
    monkeypatch.setattr("repowire.panes.time.monotonic", lambda: now)
    door = Door(ben, "instance:one")
    door.hosted, door.cut = True, lambda: cut.append(now)
    door.in_flight[taken.delivery_id] = taken.trace
    mesh.doors.open(door)
    left = []
    for moment in (100.0, 109.0, 110.5, 119.0, 120.5):
        now = moment
        left.append(panes.is_left(mesh, ben, elsewhere=True, owing=False))
    assert (left, cut) == ([False, False, True, True, True], [120.5])
