"""kill -9 under ask-many, pickups and dead mail: what was answered with a 2xx is there, whole, and is told once."""

import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from conftest import until

pytestmark = pytest.mark.live


def restart(live):
    live.kill()
    live.start()


def registered(live, *names):
    for name in names:
        live.post("/peers", name=name, path=f"/src/{name}")


def test_an_ask_many_is_there_whole_or_not_at_all(live):
    registered(live, "ann", "ben", "cat")
    parents = []
    for number in range(10):
        to = ["ann", "ben", "cat", "nobody"]
        parents.append(live.post("/ask-many", to_peers=to, text=str(number), if_offline="queue")["parent_id"])
        if number % 3 == 2:
            restart(live)
    restart(live)
    for number, parent in enumerate(parents):
        whole = live.get(f"/ask-many/{parent}")
        assert whole["text"] == str(number)
        assert whole["rollup"] == {"total": 4, "acked": 0, "replied": 0, "pending": 3, "failed": 1}
    for name in ("ann", "ben", "cat"):
        mail = live.get(f"/deliveries/pending?peer_id={name}")["deliveries"]
        assert [one["text"] for one in mail] == [str(number) for number in range(10)]


def test_mail_that_a_killed_daemon_had_leased_is_confirmed_or_comes_back_and_is_never_lost(live):
    registered(live, "ben")
    sent = [live.post("/notify", to_peer="ben", text=str(number))["delivery_id"] for number in range(6)]
    first = live.get("/deliveries/pending?peer_id=ben&confirm=true&max_results=2")
    restart(live)
    second = live.get("/deliveries/pending?peer_id=ben&confirm=true&max_results=2")
    assert live.post("/deliveries/confirm", lease=first["lease"])["confirmed"] == sent[:2]
    restart(live)
    with closing(sqlite3.connect(live.home / "state.db", timeout=5)) as db:
        states = dict(db.execute("SELECT delivery_id, state FROM deliveries"))
    assert [states[one] for one in sent] == ["handed", "handed", "leased", "leased", "queued", "queued"]
    live.kill()
    with closing(sqlite3.connect(live.home / "state.db")) as db, db:
        db.execute(
            "UPDATE deliveries SET leased_at = leased_at - 3600"
        )  # the taker of the second lease never comes back
    live.start()
    until(lambda: live.get(f"/deliveries/{sent[2]}")["state"] == "queued")
    third = live.get("/deliveries/pending?peer_id=ben&confirm=true")
    assert [one["delivery_id"] for one in third["deliveries"]] == sent[2:]
    assert [one["attempts"] for one in third["deliveries"]] == [2, 2, 1, 1]
    gone = live.post("/deliveries/confirm", expect=410, lease=second["lease"])
    assert gone["detail"]["error"] == "lease_over"


def test_the_senders_of_dead_mail_are_told_once_over_kills(live):
    registered(live, "ann", "ben")
    sent = [live.post("/notify", from_peer="ann", to_peer="ben", text="x")["delivery_id"] for _ in range(5)]
    live.kill()
    with closing(sqlite3.connect(live.home / "state.db")) as db, db:
        db.execute("UPDATE deliveries SET expires_at = 0")  # a day goes by
    for _ in range(4):
        live.start()
        live.kill()  # wherever the loops are
    live.start()
    until(lambda: len(live.get("/deliveries?dead=true")["deliveries"]) == 5)

    def told():
        mail = live.get("/deliveries?peer=ann&state=queued")["deliveries"]
        return mail if len(mail) >= 5 else None

    notices = Counter(one["text"].partition("#")[2].split()[0] for one in until(told))
    assert notices == Counter(sent)


def test_one_key_asks_many_once_over_a_kill(live):
    registered(live, "ann", "ben")
    body = {"to_peers": ["ann", "ben"], "text": "x", "if_offline": "queue"}
    first = live.request("POST", "/ask-many", body=body, headers={"Idempotency-Key": "k1"})
    restart(live)
    again = live.request("POST", "/ask-many", body=body, headers={"Idempotency-Key": "k1"})
    assert (first.status, first.json) == (200, again.json)
    assert len(live.get("/asks/pending?peer_id=ann")["asks"]) == 1
