"""agents/claude_code_hooks.py: what Claude Code's files say, whatever is in them."""

import pytest

from repowire.agents import claude_code_hooks as claude


def said(word: object) -> str:
    return f'{{"crossSessionInbound": "{word}"}}'


@pytest.mark.parametrize(
    ("texts", "meant"),
    [
        ([], "unset"),
        (["", "", ""], "unset"),
        ([said("accept"), "", ""], "accept"),
        (["", said("accept"), said("accept")], "unset"),  # a project may only tighten
        ([said("accept"), said("hold"), ""], "hold"),
        ([said("hold"), said("accept"), ""], "hold"),
        ([said("hold"), "", said("refuse")], "refuse"),
        ([said("else"), "", ""], "unset"),
        (["not json", "[]", "null"], "unset"),
        (["[" * 100_000, '{"crossSessionInbound": ["hold"]}', said("hold")], "hold"),
    ],
)
def test_the_strictest_word_for_the_inbox_wins(texts, meant):
    assert claude.inbound(texts) == meant


@pytest.mark.parametrize(
    ("mode", "inbound", "takes"),
    [
        (None, None, True),
        ("default", "unset", True),
        ("default", "hold", False),
        ("default", "refuse", False),
        (claude.BYPASS, None, False),
        (claude.BYPASS, "unset", False),
        (claude.BYPASS, "accept", True),
        (claude.BYPASS, "hold", False),
    ],
)
def test_the_inbox_takes_messages_where_they_reach_the_model(mode, inbound, takes):
    assert claude.takes_messages(mode, inbound) is takes


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (b'{"timestamp": "2026-01-01T00:00:01.500Z"}', 1767225601.5),
        (b'{"timestamp": 3}', None),
        (b'{"timestamp": "soon"}', None),
        (b"{}", None),
        (b"[]", None),
        (b'{"timestamp": "2026', None),
    ],
)
def test_a_line_says_when_it_was_written_or_nothing(line, at):
    assert claude.written_at(line) == at
