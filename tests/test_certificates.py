"""certificates.py: a nonce proves who a caller is, for a day, and nothing else does."""

import re

import pytest

from repowire import certificates, wire
from repowire.certificates import LIFETIME_SECONDS

ENVELOPE = {"display_name": "ben", "backend": "codex", "project_path": "/src/ben", "metadata": {"circle": "red"}}


def issue(mesh, peer_id="p1", envelope=ENVELOPE):
    with mesh.change() as change:
        return certificates.issue(change, peer_id, envelope)


def holder(mesh, certificate):
    return certificates.holder(mesh.db.conn, certificate, mesh.clock.now())


async def test_a_certificate_has_its_nonce_its_envelope_and_its_times(mesh, clock):
    got = issue(mesh)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", got["nonce"])
    assert got == {
        "nonce": got["nonce"],
        "peer_id": "p1",
        **ENVELOPE,
        "issued_at": wire.moment(clock.now()),
        "expires_at": wire.moment(clock.now() + 86_400),
    }


async def test_a_certificate_proves_its_peer_by_the_nonce_alone(mesh):
    got, other = issue(mesh), issue(mesh, "p2")
    assert (holder(mesh, got), holder(mesh, other)) == ("p1", "p2")
    assert holder(mesh, {"nonce": got["nonce"]}) == "p1"
    assert holder(mesh, {**got, "peer_id": "p2"}) == "p1"


async def test_a_newer_certificate_leaves_the_older_valid(mesh):
    first, second = issue(mesh), issue(mesh)
    assert first["nonce"] != second["nonce"]
    assert (holder(mesh, first), holder(mesh, second)) == ("p1", "p1")


async def test_a_certificate_ends_after_a_day_and_goes_with_the_next_one(mesh, clock):
    got = issue(mesh)
    clock.advance(LIFETIME_SECONDS - 0.001)
    assert holder(mesh, got) == "p1"
    clock.advance(0.001)
    assert holder(mesh, got) is None
    newer = issue(mesh, "p2")
    rows = mesh.db.conn.execute("SELECT nonce FROM certificates").fetchall()
    assert [row[0] for row in rows] == [newer["nonce"]]


@pytest.mark.parametrize(
    "certificate",
    [
        *(None, "", 5, True, [], {}, "nonce", ["nonce"]),
        *({"nonce": nonce} for nonce in (None, "", 5, True, [], {}, "x" * 43, "\ud800", "é", "\0", "%", "' OR 1 --")),
    ],
)
async def test_what_is_no_certificate_proves_nobody(mesh, certificate):
    issue(mesh)
    assert holder(mesh, certificate) is None


async def test_a_certificate_outlives_the_daemon(new_mesh, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock)
    got = issue(mesh)
    mesh.close()
    assert holder(new_mesh(tmp_path / "home", clock), got) == "p1"


async def test_a_certificate_of_a_change_that_failed_proves_nobody(mesh):
    made = []

    def failing():
        with mesh.change() as change:
            made.append(certificates.issue(change, "p1", ENVELOPE))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert holder(mesh, made[0]) is None


async def test_a_peer_returns_with_its_certificate_and_not_with_another(api):
    first = await api.connect("ben", path="/src/ben", capabilities=["dedupe"])
    certificate = first.connected["birth_certificate"]
    forged = {**certificate, "nonce": "x" * 43}
    stranger = await api.connect("ben", path="/src/ben", peer_id=first.peer_id, birth_certificate=forged)
    assert stranger.peer_id != first.peer_id
    again = await api.connect("ben", path="/src/ben", peer_id=first.peer_id, birth_certificate=certificate)
    assert again.peer_id == first.peer_id
