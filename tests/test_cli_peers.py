"""`repowire peer` against a real daemon: who one is, who leads, and clearing the list."""

import json
import os
import subprocess

import pytest
from conftest import Live

pytestmark = pytest.mark.live


@pytest.fixture
def run(live: Live):
    """`run("peer", "list")`: the finished command; `code` is the exit code it must have."""

    def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = live.cli(*arguments)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    return command


def test_whoami_is_human_until_the_process_is_an_agents(live, run, tmp_path):
    done = run("peer", "whoami")
    assert done.stdout == "human\n"
    assert json.loads(run("peer", "whoami", "--json").stdout) == {"kind": "human", "peer": None}
    live.post("/peers", name="ann", path="/src/ann", agent_pid=os.getpid())
    assert run("peer", "whoami").stdout == "ann\n"
    me = json.loads(run("peer", "whoami", "--json").stdout)
    assert (me["kind"], me["peer"]["display_name"]) == ("agent", "ann")


def test_whoami_can_register_who_is_nobody_yet(run, tmp_path):
    made = run("peer", "whoami", "--register", "--name", "ben", "-c", "red", "-p", str(tmp_path))
    assert made.stdout == "ben\n"
    shown = json.loads(run("peer", "describe", "ben", "--json").stdout)
    assert (shown["circle"], shown["path"]) == ("red", str(tmp_path))


def test_the_role_goes_to_the_one_that_is_named_and_stays(live, run):
    for name in ("ann", "ben"):
        live.post("/peers", name=name, path=f"/src/{name}")
    refused = run("peer", "claim-role", "orchestrator", code=1)
    assert "--peer NAME" in refused.stderr
    got = json.loads(run("peer", "claim-role", "orchestrator", "--peer", "ann", "--json").stdout)
    assert (got["peer_name"], got["already_held"]) == ("ann", False)
    kept = run("peer", "claim-role", "orchestrator", "--peer", "ben", "--force", code=1)
    assert "ann is the orchestrator of circle 'default'" in kept.stderr
    run("peer", "claim-role", "king", code=2)


def test_an_agent_claims_for_itself_without_being_named(live, run):
    live.post("/peers", name="ann", path="/src/ann", agent_pid=os.getpid())
    got = json.loads(run("peer", "claim-role", "orchestrator", "--json").stdout)
    assert got["peer_name"] == "ann"
    refused = run("peer", "claim-role", "orchestrator", "--peer", "ben", code=1)
    assert "you are ann" in refused.stderr


def test_a_peer_moves_to_another_circle_and_an_unknown_one_is_told(live, run):
    live.post("/peers", name="ann", path="/src/ann")
    run("peer", "circle", "ann", "night")
    assert json.loads(run("peer", "describe", "ann", "--json").stdout)["circle"] == "night"
    assert "did you mean ann" in run("peer", "circle", "anm", "night", code=1).stderr
    assert "circle" in run("peer", "circle", "ann", "not one", code=2).stderr
    run("peer", "touch", "ann")


def test_prune_shows_before_it_takes(live, run):
    for name in ("ann", "ben"):
        live.post("/peers", name=name, path=f"/src/{name}")
    assert run("peer", "prune", "--force").stdout == ""
    live.post("/peers/ben/offline")
    live.post("/notify", to_peer="ben", text="later")
    shown = run("peer", "prune", "--dry-run").stdout.splitlines()
    assert shown[1].split()[0] == "ben"
    assert "yes" in shown[1]
    assert "--force" in run("peer", "prune", code=2).stderr
    assert "ben" in run("peer", "list", "--all").stdout
    run("peer", "prune", "--force")
    assert "ben" not in run("peer", "list", "--all").stdout
    back = live.post("/peers", name="ben", path="/src/ben")
    assert live.get(f"/deliveries/pending?peer_id={back['peer_id']}")["deliveries"][0]["text"] == "later"


def test_of_who_has_no_pane_none_is_said_to_be_left_alone(live, run):
    live.post("/peers", name="ann", path="/src/ann")
    said = run("peer", "kill", "ann").stderr
    assert said == "repowire: removed ann; what it runs in was not opened by repowire and was left alone\n"


def test_a_reader_that_leaves_keeps_nobody_on_the_list(live, run, unread):
    live.post("/peers", name="ann", path="/src/ann")
    live.post("/peers/ann/offline")
    done = live.cli("peer", "prune", "--force", stdout=unread)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ann" not in run("peer", "list", "--all").stdout
