"""MCP servers of real configuration files: put in and taken out, everything else byte for byte as it was."""

import asyncio
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Api, FakeClock, until_async
from hypothesis import given
from hypothesis import strategies as st

from repowire import mcp_servers
from repowire.agents import claude_code_hooks, files
from repowire.agents.mcp_config import KINDS, CannotEdit, Place, Server, added, removed, servers
from repowire.errors import Refusal

CLAUDE = """{
\t"numStartups": 7,
\t"projects": {"/src/app": {"allowedTools": [], "mcpServers": {"here": {"command": "h", "env": {"K": "hush"}}}}},
\t"mcpServers": {
\t\t"old": {"type": "stdio", "command": "old", "args": ["a"], "env": {"KEY": "hush", "B": "hush"}},
\t\t"web": {"type": "sse", "url": "https://example.org/mcp"}
\t},
\t"theme": "dark"
}
"""
CODEX = """# mine
model = "m"   # the model

[mcp_servers.old]
command = "old"
args = ["a"]

[mcp_servers.old.env]
KEY = "hush"

[features]
text = '''
[not a table]
'''
"""
GEMINI = '{"security": {"auth": 1}, "mcpServers": {"old": {"command": "old", "env": {"KEY": "hush"}}}}'
OPENCODE = """{
  "mcp": {
    "old": {"type": "local", "command": ["old", "a"], "environment": {"KEY": "hush"}}
  }
}
""".replace("\n", "\r\n")
FILES = {
    "claude-code": (".claude.json", CLAUDE),
    "codex": (".codex/config.toml", CODEX),
    "gemini": (".gemini/settings.json", GEMINI),
    "opencode": (".config/opencode/opencode.json", OPENCODE),
}
LOCAL = {"scope": "local"}
NEW = {"name": "files", "command": "npx", "args": ["-y", 'a "b" é'], "env": {"TOKEN": "hush"}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose agents have settings already."""
    made = tmp_path / "user"
    for name, text in FILES.values():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(text.encode())
        (made / name).chmod(0o640)
    monkeypatch.setenv("HOME", str(made))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
async def ann(api: Api, home: Path) -> Api:
    """With a peer `ann-BACKEND` in /src/app for each kind of agent."""
    for backend in (*FILES, "pi"):
        await api.post("/peers", name=f"ann-{backend}", path="/src/app", backend=backend)
    return api


def names(told: dict[str, Any], scope: str = "user") -> list[str]:
    return [one["name"] for one in told["servers"] if one["scope"] == scope]


@pytest.mark.parametrize("backend", FILES)
async def test_one_that_is_put_in_and_taken_out_leaves_the_file_as_it_was(ann: Api, home: Path, backend: str) -> None:
    file = home / FILES[backend][0]
    before = file.read_bytes()
    told = await ann.post(f"/peers/ann-{backend}/mcp", **NEW)
    assert (told["ok"], told["config_scope"]["effective_scope"]) == (True, "user")
    shown = await ann.get(f"/peers/ann-{backend}/mcp")
    new = next(one for one in shown["servers"] if one["name"] == "files")
    assert new == {
        "name": "files", "scope": "user", "type": "stdio", "command": "npx", "args": ["-y", 'a "b" é'], "url": None,
        "env_keys": ["TOKEN"],
    }  # fmt: skip
    assert "hush" not in json.dumps(shown)
    assert "hush" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    await ann.delete(f"/peers/ann-{backend}/mcp/files")
    assert file.read_bytes() == before
    assert [left.name for left in file.parent.iterdir() if "repowire" in left.name] == []


@pytest.mark.parametrize("backend", FILES)
async def test_what_the_user_put_there_is_told_and_can_be_taken_out(ann: Api, home: Path, backend: str) -> None:
    told = await ann.get(f"/peers/ann-{backend}/mcp")
    old = next(one for one in told["servers"] if one["name"] == "old")
    assert (old["type"], old["command"], "KEY" in old["env_keys"]) == ("stdio", "old", True)
    assert told["config_scope"]["supported_scopes"][0] == "user"
    await ann.delete(f"/peers/ann-{backend}/mcp/old", scope="user")
    assert "old" not in names(await ann.get(f"/peers/ann-{backend}/mcp"))
    text = (home / FILES[backend][0]).read_text()
    if backend == "codex":
        assert tomllib.loads(text) == {"model": "m", "features": {"text": "[not a table]\n"}}
        assert "# mine" in text
    else:
        json.loads(text)


async def test_the_codex_table_is_what_codex_reads(ann: Api, home: Path) -> None:
    await ann.post("/peers/ann-codex/mcp", **{**NEW, "env": {"TOKEN": 'a"b\\c\u007f\n'}})
    await ann.post("/peers/ann-codex/mcp", name="web", type="http", url="http://127.0.0.1:1/mcp")
    told = tomllib.loads((home / ".codex/config.toml").read_text())["mcp_servers"]
    assert told["files"] == {"command": "npx", "args": NEW["args"], "env": {"TOKEN": 'a"b\\c\u007f\n'}}
    assert told["web"] == {"url": "http://127.0.0.1:1/mcp"}
    refused = await ann.post("/peers/ann-codex/mcp", name="sse", type="sse", url="http://127.0.0.1:1/", expect=409)
    assert (refused["detail"]["error"], refused["detail"]["types"]) == ("unsupported_type", ["stdio", "http"])


async def test_each_scope_has_its_own_file(ann: Api, home: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    await ann.post("/peers", name="ben", path=str(project))
    for scope in ("user", "project", "local"):
        told = await ann.request("POST", "/peers/ben/mcp", json=NEW, query={"scope": scope})
        assert (told.status, told.json["config_scope"]["effective_scope"]) == (200, scope)
    assert json.loads((project / ".mcp.json").read_text())["mcpServers"].keys() == {"files"}
    state = json.loads((home / ".claude.json").read_text())
    assert state["projects"][str(project)]["mcpServers"].keys() == {"files"}
    assert state["projects"]["/src/app"]["mcpServers"].keys() == {"here"}
    shown = await ann.get("/peers/ben/mcp")
    assert [one["scope"] for one in shown["servers"] if one["name"] == "files"] == ["user", "project", "local"]
    refused = await ann.delete("/peers/ben/mcp/files", expect=409)
    assert refused["detail"]["scopes"] == ["user", "project", "local"]
    await ann.delete("/peers/ben/mcp/files", scope="project")
    assert names(await ann.get("/peers/ben/mcp"), "project") == []


async def test_what_is_refused_says_why_and_touches_nothing(ann: Api, home: Path) -> None:
    before = (home / ".claude.json").read_bytes()
    where = "/peers/ann-claude-code/mcp"
    for body, status, error in [
        ({"name": "old", "command": "x"}, 409, "duplicate"),
        ({"name": "a b", "command": "x"}, 400, "bad_request"),
        ({"name": "__proto__", "command": "x"}, 400, "bad_request"),
        ({"name": "x" * 129, "command": "x"}, 400, "bad_request"),
        ({"name": "x", "command": "x", "env": {"A-B": "x"}}, 400, "bad_request"),
        ({"name": "x", "command": "x", "env": {"A": 1}}, 422, "invalid_field"),
        ({"name": "x", "command": "x", "args": [1]}, 422, "invalid_field"),
        ({"name": "x"}, 422, "invalid_field"),
        ({"name": "x", "type": "http", "url": "file:///etc"}, 422, "invalid_field"),
    ]:
        refused = await ann.post(where, **body, expect=status)
        assert refused["detail"]["error"] == error, body
    got = await ann.request("POST", where, json=NEW, query={"scope": "world"})
    assert (got.status, got.json["detail"]["error"]) == (409, "unsupported_scope")
    assert (await ann.get("/peers/ann-pi/mcp", expect=501))["detail"]["error"] == "unsupported_backend"
    assert (await ann.delete(f"{where}/none", expect=404))["detail"]["error"] == "server_not_found"
    await ann.post("/peers", name="far", machine="elsewhere", path="/src/app")
    refused = (await ann.get("/peers/far/mcp", expect=409))["detail"]
    assert (refused["error"], refused["peer_machine"]) == ("cross_host", "elsewhere")
    assert refused["config_scope"]["same_host"] is False
    assert (home / ".claude.json").read_bytes() == before


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        ("claude-code", "{ // a comment\n}"),
        ("claude-code", '{"mcpServers": {}, "mcpServers": {}}'),
        ("claude-code", '{"mcpServers": []}'),
        ("claude-code", "[]"),
        ("codex", "model = "),
        ("codex", 'mcp_servers = { old = { command = "old" } }\n'),
        ("codex", "\ufeff\x00"),
        ("codex", "[[mcp_servers]]\nname = 1\n"),
    ],
)
async def test_a_file_that_cannot_be_edited_alone_is_left_as_it_is(
    ann: Api, home: Path, backend: str, text: str
) -> None:
    file = home / FILES[backend][0]
    file.write_text(text)
    refused = await ann.post(f"/peers/ann-{backend}/mcp", **NEW, expect=502)
    assert refused["detail"]["error"] == "config_unusable"
    assert str(file) in refused["detail"]["hint"]
    assert file.read_text() == text


async def test_a_file_that_is_none_or_a_pipe_is_refused_without_waiting(ann: Api, home: Path) -> None:
    file = home / ".codex/config.toml"
    file.unlink()
    os.mkfifo(file)
    assert (await ann.get("/peers/ann-codex/mcp", expect=502))["detail"]["error"] == "config_unusable"
    file.unlink()
    file.write_bytes(b'model = "\xff"')
    assert (await ann.get("/peers/ann-codex/mcp", expect=502))["detail"]["error"] == "config_unusable"


async def test_without_a_file_a_private_one_is_made_and_a_link_stays_a_link(ann: Api, home: Path) -> None:
    file = home / ".codex/config.toml"
    file.unlink()
    await ann.post("/peers/ann-codex/mcp", **NEW)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    real = home / "dotfiles.json"
    (home / ".gemini/settings.json").rename(real)
    (home / ".gemini/settings.json").symlink_to(real)
    await ann.post("/peers/ann-gemini/mcp", **NEW)
    assert (home / ".gemini/settings.json").is_symlink()
    assert "files" in real.read_text()


async def test_many_at_once_are_all_there(ann: Api, home: Path) -> None:
    await asyncio.gather(*(ann.post("/peers/ann-claude-code/mcp", name=f"s{n}", command="x") for n in range(20)))
    told = names(await ann.get("/peers/ann-claude-code/mcp"))
    assert set(told) == {"old", "web", *(f"s{n}" for n in range(20))}
    assert json.loads((home / ".claude.json").read_text())["theme"] == "dark"


async def test_what_is_local_stands_where_claude_code_looks_for_it(ann: Api, home: Path, tmp_path: Path) -> None:
    """By the root of the git repository, of a worktree by its main one's, as `claude mcp add --scope local` puts it."""
    root, tree, module = tmp_path / "repo", tmp_path / "tree", tmp_path / "module"
    for folder in (root / ".git/worktrees/tree", root / "deep/er", tree / "deep", module, tmp_path / "plain"):
        folder.mkdir(parents=True)
    (root / ".git/worktrees/tree/commondir").write_text("../..\n")
    (tree / ".git").write_text(f"gitdir: {root}/.git/worktrees/tree\n")
    (module / ".git").write_text("gitdir: ../repo/.git/modules/module\n")
    (tmp_path / "link").symlink_to(root / "deep")
    wanted = {root / "deep/er": root, tree / "deep": root, module: module, tmp_path / "link": root}
    wanted[tmp_path / "plain"] = tmp_path / "plain"
    for number, (folder, key) in enumerate(wanted.items()):
        await ann.post("/peers", name=f"p{number}", path=str(folder))
        told = await ann.request("POST", f"/peers/p{number}/mcp", json={**NEW, "name": f"s{number}"}, query=LOCAL)
        assert told.status == 200
        state = json.loads((home / ".claude.json").read_text())
        assert f"s{number}" in state["projects"][str(key)]["mcpServers"]
        assert f"s{number}" in names(await ann.get(f"/peers/p{number}/mcp"), "local")


async def test_the_lock_of_claude_codes_own_programs_is_heeded_and_taken(
    ann: Api, home: Path, clock: FakeClock
) -> None:
    file, lock = home / ".claude.json", home / ".claude.json.lock"
    lock.mkdir()
    os.utime(lock, (clock.now(), clock.now()))
    before = file.read_bytes()
    asked = asyncio.create_task(ann.post("/peers/ann-claude-code/mcp", **NEW))
    for _ in range(20):
        await _tried_again(clock, asked)
    assert (asked.done(), file.read_bytes()) == (False, before)
    lock.rmdir()
    while not asked.done():
        await _tried_again(clock, asked)
    assert "files" in names(await ann.get("/peers/ann-claude-code/mcp"))
    lock.mkdir()  # left behind by one that was killed
    os.utime(lock, (clock.now() - 60, clock.now() - 60))
    asked = asyncio.create_task(ann.delete("/peers/ann-claude-code/mcp/files"))
    while not asked.done():
        await _tried_again(clock, asked)
    assert file.read_bytes() == before
    assert not lock.exists()


async def _tried_again(clock: FakeClock, asked: "asyncio.Task[Any]") -> None:
    """Let it wait once for the lock, if it does."""
    await until_async(lambda: clock.sleeping or asked.done())
    clock.advance(files.TRY_SECONDS)
    await asyncio.sleep(0)


def test_a_folder_that_none_can_be_is_not_claudes() -> None:
    """A hook says the transcript, and with it the folder of the settings."""
    assert claude_code_hooks.config_dir("/home/ann/.claude/projects/-src/s.jsonl") == "/home/ann/.claude"
    for odd in ("/home/a\0nn/.claude/projects/-src/s.jsonl", ".claude/projects/-src/s.jsonl", "/elsewhere", "", None):
        assert claude_code_hooks.config_dir(odd) is None


async def test_a_file_that_was_made_read_only_stays_as_it_is(ann: Api, home: Path) -> None:
    file = home / ".claude.json"
    file.chmod(0o400)
    refused = (await ann.post("/peers/ann-claude-code/mcp", **NEW, expect=502))["detail"]
    assert (refused["error"], refused["hint"].split(": ")[-1]) == ("config_unusable", "it is read-only")
    assert file.read_bytes() == CLAUDE.encode()


async def test_no_folder_is_made_for_a_project_that_is_not_there(ann: Api, home: Path, tmp_path: Path) -> None:
    await ann.post("/peers", name="gone", path=str(tmp_path / "gone"))
    await ann.post("/peers", name="odd", path="some/where")
    for name, error in (("gone", "missing_path"), ("odd", "unsupported_scope")):
        refused = await ann.request("POST", f"/peers/{name}/mcp", json=NEW, query={"scope": "project"})
        assert (refused.status, refused.json["detail"]["error"]) == (409, error)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("server", "field"),
    [
        ({"command": "a\0b"}, "command"),
        ({"command": "a", "args": ["b\0"]}, "args"),
        ({"command": "a", "env": {"K": "\0"}}, "env"),
        ({"type": "http", "url": "https://example.org/\n"}, "url"),
    ],
)
async def test_what_no_program_could_be_given_is_refused(ann: Api, home: Path, server: Any, field: str) -> None:
    refused = await ann.post("/peers/ann-claude-code/mcp", name="x", **server, expect=422)
    assert refused["detail"]["field"] == field


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
entries = st.builds(
    Server,
    name=st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True),
    type=st.just("stdio"),
    command=words.filter(bool),
    args=st.lists(words, max_size=3).map(tuple),
    env=st.dictionaries(st.from_regex(r"[A-Z_]{1,6}", fullmatch=True), words, max_size=2),
)


@given(backend=st.sampled_from(sorted(FILES)), server=entries)
def test_whatever_is_put_in_is_read_again_and_taken_out_without_a_trace(backend: str, server: Server) -> None:
    kind, text = KINDS[backend], FILES[backend][1]
    place = Place("user", "", {"codex": ("mcp_servers",), "opencode": ("mcp",)}.get(backend, ("mcpServers",)))
    if server.name in ("old", "web"):
        return
    try:
        after = added(kind, place, text, server)
    except CannotEdit:
        assert backend == "codex"  # TOML's own bounds: a lone surrogate or a control character
        return
    found = [one for one in servers(kind, place, after) if one.name == server.name]
    assert [(one.command, one.args, dict(one.env)) for one in found] == [
        (server.command, server.args, dict(server.env))
    ]
    assert removed(kind, place, after, server.name) == text


@pytest.mark.parametrize(
    ("backend", "text"),
    [("codex", "a = " + "[" * 5000 + "]" * 5000), ("claude-code", '{"a": ' + "[" * 900 + "]" * 900 + "}")],
)
async def test_a_file_nested_too_deeply_is_refused_and_not_touched(
    tmp_path: Path, clock: FakeClock, backend: str, text: str
) -> None:
    kind, file = KINDS[backend], tmp_path / "config"
    place = Place("user", str(file), ("mcp_servers" if kind.toml else "mcpServers",))
    file.write_text(text)
    with pytest.raises(Refusal) as refused:
        await mcp_servers.edit(clock, place, lambda before: added(kind, place, before, Server("x", "stdio", "c")))
    assert refused.value.status == 502
    assert file.read_text() == text
