"""presence.py: one pure function from evidence to a status."""

import pytest

from repowire import presence
from repowire.presence import Evidence, status

WORD, SOCKET, PROCESS, IDENTITY = presence.WORD, presence.SOCKET, presence.PROCESS, presence.IDENTITY


def seen(**facts: tuple[str, float]) -> dict[str, Evidence]:
    return {source: Evidence(fact, at, None) for source, (fact, at) in facts.items()}


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({}, "offline"),
        (seen(word=("online", 1)), "online"),
        (seen(word=("busy", 1), socket=("open", 1)), "busy"),
        (seen(socket=("open", 1)), "online"),
        (seen(word=("online", 1), socket=("closed", 2)), "offline"),
        (seen(word=("online", 3), socket=("closed", 2)), "online"),
        (seen(word=("busy", 1), socket=("closed", 2), process=("alive", 0)), "busy"),
        (seen(word=("online", 9), socket=("open", 9), process=("ended", 1)), "offline"),
        (seen(word=("online", 9), socket=("open", 9), identity=("retired", 1)), "offline"),
        (seen(word=("offline", 9), socket=("open", 1)), "offline"),
    ],
)
def test_the_status_is_what_the_evidence_proves(evidence, expected):
    assert status(evidence) == expected


async def test_noting_the_same_fact_twice_leaves_one_event(mesh):
    before = mesh.ledger.last
    for _ in range(2):
        with mesh.change() as change:
            presence.note(change, "repow-x", SOCKET, "open")
    assert [line.kind for line in mesh.ledger.after(before)] == ["presence.changed"]


async def test_no_socket_is_open_after_a_restart(mesh):
    with mesh.change() as change:
        presence.note(change, "repow-x", SOCKET, "open")
    assert presence.reachable(mesh.db.conn, "repow-x")
    presence.close_all(mesh)
    assert not presence.reachable(mesh.db.conn, "repow-x")
