"""Reports over the Unix socket, where the kernel says who speaks: an agent speaks for itself alone."""

import os
from collections.abc import Iterator

import pytest
from conftest import Live

from repowire.client import RepowireClient
from repowire.errors import Refusal

pytestmark = pytest.mark.live


@pytest.fixture
def me(live: Live) -> Iterator[RepowireClient]:
    """What an agent `me` of circle `default` calls with; there are `ann` in it and `ben` in another one."""
    live.post("/peers", name="ann", path="/src/ann")
    live.post("/peers", name="ben", path="/src/ben", circle="night")
    live.post("/peers", name="me", path="/src/me", agent_pid=os.getpid())
    with RepowireClient(home=live.home) as client:
        yield client


def test_an_agent_says_nothing_of_another(live: Live, me: RepowireClient) -> None:
    for ask in (
        lambda: me.request("POST", "/peers/ann/offline", {"terminal": True}),
        lambda: me.request("POST", "/peers/ann/description", {"description": "at rest"}),
        lambda: me.request("POST", "/session/update", {"peer_name": "ann", "status": "busy"}),
        lambda: me.request("POST", "/peers/ann/touch"),
        lambda: me.request("POST", "/peers/human/offline"),
    ):
        live.post("/notify", to_peer="ann", text="so that there is a human")
        with pytest.raises(Refusal) as refused:
            ask()
        assert (refused.value.status, refused.value.error) == (403, "not_your_peer")
    ann = live.get("/peers/ann")
    assert (ann["status"], ann["description"]) == ("online", "")
    me.request("POST", "/peers/me/description", {"description": "at work"})
    me.request("POST", "/session/update", {"peer_name": "me", "status": "busy"})
    me.request("POST", "/peers/me/touch")
    mine = live.get("/peers/me")
    assert (mine["status"], mine["description"]) == ("busy", "at work")
    me.request("POST", "/peers/me/offline", {"terminal": True})


def test_an_agent_takes_nobody_of_another_circle_off_the_list(live: Live, me: RepowireClient) -> None:
    with pytest.raises(Refusal) as refused:
        me.request("DELETE", "/peers/ben")
    assert (refused.value.status, refused.value.error) == (403, "circle_boundary")
    with pytest.raises(Refusal) as refused:
        me.request("POST", "/peer/unregister", {"name": "ben"})
    assert (refused.value.status, refused.value.error) == (403, "circle_boundary")
    me.request("DELETE", "/peers/ann")
    assert "ann" not in [peer["display_name"] for peer in live.get("/peers")["peers"]]
    live.request("DELETE", "/peers/ben")
    assert "ben" not in [peer["display_name"] for peer in live.get("/peers")["peers"]]


def test_nobody_takes_the_human_off_the_list(live: Live) -> None:
    """Whose mail waits there and would end with it."""
    live.post("/peers", name="ann", path="/src/ann")
    live.post("/notify", to_peer="ann", text="so that there is a human")
    told = live.post("/notify", from_peer="ann", to_peer="human", text="done")
    for refused in (
        live.request("DELETE", "/peers/human"),
        live.request("POST", "/peer/unregister", body={"name": "human"}),
        live.request("POST", "/peers/human/offline", body={"terminal": True}),
    ):
        assert (refused.status, refused.json["detail"]["error"]) == (409, "human")
    assert live.get(f"/deliveries/{told['delivery_id']}")["state"] in ("queued", "held")
