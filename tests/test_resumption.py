"""resumption.py: what a session's id and its transcript must be, before anything is ended or started."""

from pathlib import Path

import pytest

from repowire.resumption import resume_of

ID = "5f0ffce1-68a2-4b70-af63-d3c3b9d6572d"


def test_each_kind_goes_on_with_a_session_in_its_own_words(tmp_path: Path) -> None:
    transcript = tmp_path / "t.jsonl"
    transcript.write_text("{}\n")
    words = {"claude-code": ["--resume"], "codex": ["resume"], "gemini": ["--resume"], "pi": ["--session"]}
    for backend, before in words.items():
        found = resume_of(backend, ID, str(transcript))
        assert (found.arguments, found.why_not, found.warning) == ([*before, ID], None, None)
    assert resume_of("opencode", "ses_19fab", None).arguments == ["-s", "ses_19fab"]


@pytest.mark.parametrize("session", ["--continue", "-", "", "a b", "../a", "/a", "a\0", "a\n", "é", "x" * 129, "$(id)"])
def test_what_is_no_session_s_id_is_no_argument(session: str) -> None:
    found = resume_of("claude-code", session, None)
    assert (found.arguments, found.why_not is None) == ([], False)


@pytest.mark.parametrize("name", ["none", "empty", "a\0b"])
def test_without_a_transcript_there_is_nothing_to_go_on_with(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").write_text("")
    found = resume_of("claude-code", ID, str(tmp_path / name))
    assert (found.arguments, "no transcript" in str(found.why_not)) == ([], True)
