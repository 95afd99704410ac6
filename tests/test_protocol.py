"""protocol.py: one table of what happens; whatever is recorded is in it, and what is in it is recorded."""

import ast
from pathlib import Path

import pytest

import repowire
from repowire import protocol
from repowire.protocol import KINDS, is_identifier, topics

STAGES = [  # wire.md 6 and 16, row 15
    "created",
    "resolved_peer",
    "routed",
    "leased",
    "websocket_sent",
    "hook_received",
    "pane_injected",
    "handed",
    "held",
    "seen",
    "pending",
    "acked",
    "closed",
    "answered",
    "no_connection",
    "injection_failed",
    "failed",
    "expired",
    "unknown",
]


def literals() -> set[str]:
    """Every string of the package's code outside of protocol.py; f-strings as their constant beginnings."""
    found: set[str] = set()
    for path in Path(repowire.__file__).parent.rglob("*.py"):
        if path.name != "protocol.py":
            nodes = ast.walk(ast.parse(path.read_text()))
            found |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return found


def recorded() -> set[str]:
    """The kinds that are recorded or announced by name."""
    found: set[str] = set()
    for path in Path(repowire.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                kinds = [one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)]
                if node.func.attr in ("record", "announce"):
                    found |= {kind for kind in kinds if isinstance(kind, str) and "." in kind[:-1]}
    return found


def test_every_recorded_kind_is_in_the_table():
    kinds = recorded()
    assert len(kinds) > 15, "the search finds what is recorded"
    assert kinds - KINDS.keys() == set()


def test_every_kind_of_the_table_is_spoken_of_in_the_code():
    words = literals()
    spoken = {kind for kind in KINDS if kind in words or kind.partition(".")[2] in words}
    assert KINDS.keys() - spoken == {"delivery.seen"}, "the hooks will say it"


def test_a_kind_is_a_noun_and_what_happened_to_it():
    for kind in KINDS:
        noun, _, happened = kind.partition(".")
        assert noun.isalpha(), kind
        assert happened.replace("_", "").isalpha(), kind


def test_every_stage_has_its_published_name():
    names = {stage.name for kind in KINDS.values() for stage in kind.stages}
    assert names <= set(STAGES)


@pytest.mark.parametrize("text", ["a", "x" * 64, "A.b_c-9", "..", "-"])
def test_an_identifier_is_letters_digits_and_three_signs(text):
    assert is_identifier(text)


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a\n", "é", "a/b", "a\0", None, 7, ["a"], b"a"])
def test_anything_else_is_no_identifier(text):
    assert not is_identifier(text)


def test_an_event_rings_for_the_ids_among_its_facts_alone():
    facts = {"trace": "t", "peer_id": "p", "from": "ann", "text": "x", "to_peer_id": "q"}
    assert sorted(topics(facts)) == ["p", "q", "t"]


def test_close_codes_are_the_published_ones():
    codes = {name: value for name, value in vars(protocol).items() if name.startswith("CLOSE_")}
    assert codes == {
        "CLOSE_NOT_CONNECT": 4000,
        "CLOSE_AUTHENTICATION": 4001,
        "CLOSE_INVALID": 4002,
        "CLOSE_INVALID_PATH": 4003,
        "CLOSE_RETIRED": 4004,
        "CLOSE_REPLACED": 4005,
    }
