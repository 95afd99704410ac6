"""endings.py: who is ended by a request, and who never is. What becomes of panes: tests/live/test_spawn_ends.py."""


async def test_the_person_of_this_machine_is_no_agent_to_be_ended(api):
    await api.post("/notify", to_peer=(await api.post("/peers", name="ann"))["display_name"], text="hi")
    human = await api.get("/peers/human")
    refused = await api.post("/kill-peer", peer_identifier="human", expect=409)
    assert refused["detail"]["error"] == "human"
    assert (await api.get("/peers/human"))["peer_id"] == human["peer_id"]
    assert (await api.post("/kill-peer", peer_identifier="ann")) == {"ok": True, "tmux_killed": None}
