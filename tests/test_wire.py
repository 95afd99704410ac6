"""wire.py: the fields of a body and a query, what a body may be, and the one shape of every refusal and failure."""

import asyncio
import base64
import contextlib
import json
import logging
import socket
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from conftest import TOKEN, until_async
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from repowire import peers, wire
from repowire.errors import Refusal
from repowire.protocol import MAX_BODY_BYTES, MAX_METADATA_BYTES
from repowire.wire import Body

JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def refuses(field, words=""):
    """A 422 that names the field and says what is wrong with it."""
    with pytest.raises(Refusal) as refused:
        yield refused
    assert (refused.value.status, refused.value.error) == (422, "invalid_field")
    assert refused.value.facts["field"] == field
    assert words in refused.value.hint


# -- fields of a body ---------------------------------------------------------


@pytest.mark.parametrize("given_", [{}, {"x": None}])
def test_a_field_that_is_absent_or_null_gives_the_default(given_):
    body = Body(given_)
    assert body.has("x") is False
    assert (body.optional_text("x"), body.optional_identifier("x"), body.optional_whole("x")) == (None, None, None)
    assert (body.choice("x", ("a",)), body.choice("x", ("a",), "a")) == (None, "a")
    assert (body.flag("x"), body.flag("x", default=True)) == (False, True)
    assert body.seconds("x", default=7, at_most=5) == 7
    assert (body.record("x"), body.members("x"), body.records("x")) == ({}, [], [])
    with refuses("x", "is required"):
        body.text("x")


def test_a_field_that_is_false_or_empty_is_there():
    assert all(Body({"x": value}).has("x") for value in (False, 0, "", [], {}))


@pytest.mark.parametrize("value", ["a", "é" * 10, "🦀" * 10, "\0", "line\n", "\u202e\u2028"])
def test_a_text_within_its_bounds_is_taken_as_it_is(value):
    assert Body({"x": value}).text("x", max_chars=10) == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "must not be empty"),
        ("x" * 11, "at most 10 characters"),
        ("\ud800", "lone surrogates"),
        ("a\udcffb", "lone surrogates"),
        *((value, "must be a string") for value in (5, True, 1.5, [], {}, ["a"])),
    ],
)
def test_a_text_outside_its_bounds_is_refused(value, words):
    with refuses("x", words):
        Body({"x": value}).text("x", max_chars=10)


def test_a_text_that_is_too_long_names_the_limit():
    with refuses("x") as refused:
        Body({"x": "x" * 11}).optional_text("x", max_chars=10)
    assert refused.value.facts["limit"] == 10
    assert Body({"x": ""}).text("x", least=0) == ""


@pytest.mark.parametrize("value", ["a", "A.b_c-9", "x" * 64, ".."])
def test_an_identifier_is_a_name(value):
    assert Body({"x": value}).optional_identifier("x") == value


@pytest.mark.parametrize("value", ["", "x" * 65, "a b", "a\n", "é", "a/b", "\u0661", 5, True, ["a"], {}])
def test_what_is_no_identifier_is_refused(value):
    with refuses("x", "1 to 64"):
        Body({"x": value}).optional_identifier("x")


@pytest.mark.parametrize("value", ["c", "A", "", 1, True, ["a"], {}])
def test_a_choice_is_one_of_its_words(value):
    assert Body({"x": "b"}).choice("x", ("a", "b")) == "b"
    with refuses("x", "a, b"):
        Body({"x": value}).choice("x", ("a", "b"))


@pytest.mark.parametrize("value", ["true", 1, 0, "", [], {}])
def test_a_flag_is_true_or_false_and_nothing_like_it(value):
    assert (Body({"x": True}).flag("x"), Body({"x": False}).flag("x", default=True)) == (True, False)
    with refuses("x", "true or false"):
        Body({"x": value}).flag("x")


@pytest.mark.parametrize("value", [2, 10, True, False, 5.0, "5", 10**30, -1, [], {}])
def test_a_whole_number_is_within_its_bounds(value):
    assert [Body({"x": n}).optional_whole("x", least=3, most=9) for n in (3, 9)] == [3, 9]
    with refuses("x", "from 3 to 9"):
        Body({"x": value}).optional_whole("x", least=3, most=9)


def test_seconds_are_bounded_or_capped():
    assert [Body({"x": n}).seconds("x", default=1, at_most=50) for n in (0, 50, 0.5, -1)] == [0, 50, 0.5, -1]
    assert [Body({"x": n}).seconds("x", default=1, at_most=50, cap=True) for n in (49, 51, 10**15)] == [49, 50, 50]
    with refuses("x", "at most 50 seconds") as refused:
        Body({"x": 50.1}).seconds("x", default=1, at_most=50)
    assert refused.value.facts["limit"] == 50


@pytest.mark.parametrize("value", ["5", True, [], {}, 10**400, -(10**400), float("inf"), float("nan")])
def test_what_is_no_duration_is_refused(value):
    with refuses("x"):
        Body({"x": value}).seconds("x", default=1, at_most=50)


def test_an_object_is_bounded_by_its_bytes():
    at_most = {"x": "é" * ((MAX_METADATA_BYTES - len('{"x": ""}')) // 2)}
    assert Body({"m": at_most}).record("m") == at_most
    with refuses("m", f"{MAX_METADATA_BYTES} bytes") as refused:
        Body({"m": {"x": at_most["x"] + "é"}}).record("m")
    assert refused.value.facts["limit"] == MAX_METADATA_BYTES


def nested(levels):
    inner = {}
    for _ in range(levels - 1):
        inner = {"a": [inner]} if levels > 100 else {"a": inner}
    return inner


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "an object"),
        ("{}", "an object"),
        (5, "an object"),
        (nested(wire.MAX_DEPTH + 2), "deeper"),
        (nested(400), "deeper"),
        ({"a": "\ud800"}, "lone surrogates"),
        ({"\ud800": 1}, "lone surrogates"),
    ],
)
def test_what_could_not_be_kept_or_shown_as_an_object_is_refused(value, words):
    assert Body({"m": nested(wire.MAX_DEPTH)}).record("m") == nested(wire.MAX_DEPTH)
    with refuses("m", words):
        Body({"m": value}).record("m")


def test_a_list_is_bounded_and_of_objects_where_it_must_be():
    assert Body({"x": [1] * 3}).members("x", most=3) == [1, 1, 1]
    assert Body({"x": [{"a": 1}]}).records("x") == [{"a": 1}]
    with refuses("x", "at most 3 members") as refused:
        Body({"x": [1] * 4}).members("x", most=3)
    assert refused.value.facts["limit"] == 3
    for value in ({}, "abc", 5, True):
        with refuses("x", "must be a list"):
            Body({"x": value}).members("x")
    with refuses("x", "list of objects"):
        Body({"x": [{}, 1]}).records("x")
    with refuses("x", "lone surrogates"):
        Body({"x": [{"path": "\udc80"}]}).records("x")
    with refuses("x", "deeper"):
        Body({"x": [nested(wire.MAX_DEPTH + 1)]}).records("x")


# -- moments and queries ------------------------------------------------------


def test_a_moment_is_utc_with_microseconds():
    assert wire.moment(None) is None
    assert wire.moment(0) == "1970-01-01T00:00:00.000000+00:00"
    assert wire.moment(1_750_000_000.25) == "2025-06-15T15:06:40.250000+00:00"
    assert datetime.fromisoformat(wire.moment(12.5)) == datetime(1970, 1, 1, 0, 0, 12, 500_000, tzinfo=UTC)


def query(text):
    return make_mocked_request("GET", f"/x?{text}")


def test_a_whole_number_of_the_query_has_bounds_and_a_default():
    assert wire.whole(query(""), "limit", default=50) == 50
    assert [wire.whole(query(f"limit={n}"), "limit", default=5, most=9) for n in (1, 9, "07")] == [1, 9, 7]
    assert wire.whole(query("n=-3"), "n", default=5, least=-3) == -3
    for text in ("0", "10", "-1", "", "+5", "5.0", "0x5", "%205", "%D9%A5", "9" * 5000):
        with refuses("limit", "from 1 to 9"):
            wire.whole(query(f"limit={text}"), "limit", default=5, most=9)


def test_a_word_of_the_query_is_one_of_its_options():
    assert wire.word(query(""), "d", ("in", "out")) is None
    assert wire.word(query(""), "d", ("in", "out"), "in") == "in"
    assert wire.word(query("d=out"), "d", ("in", "out"), "in") == "out"
    for text in ("", "In", "both"):
        with refuses("d", "in, out"):
            wire.word(query(f"d={text}"), "d", ("in", "out"))


@given(seq=st.integers(-(10**17), 10**18 - 1))
def test_a_cursor_comes_back_as_it_was_given_out(seq):
    assert wire.cursor(query(f"cursor={wire.next_cursor(seq)}")) == seq


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_cursor_of_any_other_text_is_refused_and_never_a_fault(text):
    request = make_mocked_request("GET", str(URL("/x").with_query({"cursor": text})))
    with refuses("cursor") if not _holds_a_number(text) else contextlib.nullcontext():
        assert isinstance(wire.cursor(request), int)


def _holds_a_number(text):
    try:
        return wire.WHOLE.fullmatch(base64.urlsafe_b64decode(text.encode()).decode()) is not None
    except ValueError:
        return False


@pytest.mark.parametrize("inner", ["", "abc", "1.5", "9" * 19, "٣", "1\n"])
def test_a_cursor_that_holds_no_number_is_refused(inner):
    with refuses("cursor", "earlier page"):
        wire.cursor(query(f"cursor={base64.urlsafe_b64encode(inner.encode()).decode()}"))


def test_a_page_has_a_next_only_where_pages_were_asked_for():
    assert wire.page(query(""), 5) == {}
    assert wire.page(query("limit=5"), None) == {"next": None}
    for text in ("limit=5", "cursor=x"):
        shown = wire.page(query(text), 5)
        assert wire.cursor(query(f"cursor={shown['next']}")) == 5


# -- bodies on the wire -------------------------------------------------------


async def post(api, data, path="/peers", **headers):
    headers = {**JSON, **headers}
    return await api.request("POST", path, data=data, headers={key: headers[key] for key in headers if headers[key]})


def field_of(got):
    assert got.json["detail"]["error"] == "invalid_field", got
    return got.status, got.json["detail"]["field"]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/x+json", None])
async def test_a_body_is_read_as_json_by_its_type_and_without_one(api, kind):
    sent = {"Content-Type": kind} if kind else {}
    bearer = {"Authorization": f"Bearer {api.token}"}
    skip = [] if kind else ["Content-Type"]
    raw = b'{"name": "ben", "path": "/src/ben"}'
    async with api.client.post("/peers", data=raw, headers={**bearer, **sent}, skip_auto_headers=skip) as response:
        assert response.status == 200, await response.read()


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/html"]
)
async def test_a_body_of_another_type_is_refused_with_what_to_send(api, kind):
    got = await post(api, b'{"name": "ben"}', **{"Content-Type": kind})
    assert field_of(got) == (422, "body")
    assert "application/json" in got.json["detail"]["hint"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nope",
        b"[]",
        b'"name"',
        b"null",
        b'{"name": "ben"} x',
        b'{"name": "b\xff"}',
        b'\xef\xbb\xbf{"name": "ben"}',
        b'{"name": "a\nb"}',
        b'{"name": "ben", "metadata": {"x": NaN}}',
        b'{"name": "ben", "metadata": {"x": -Infinity}}',
        b'{"name": "ben", "metadata": {"x": 1e999}}',
        b'{"name": "ben", "metadata": {"x": [-1e400]}}',
        b'{"name": "ben", "metadata": {"x": ' + b"9" * 5000 + b"}}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        "name".encode("utf-16"),
    ],
    ids=range(18),
)
async def test_a_body_that_is_no_json_object_is_refused(api, raw):
    assert field_of(await post(api, raw)) == (422, "body")


async def test_what_is_shown_of_kept_json_can_be_read_by_everybody(api):
    kept = b'{"x": 1e308, "y": "\\u2028\\ud83e\\udd80", "n": 12345678901234567890}'
    raw = b'{"name": "ben", "path": "/b", "metadata": ' + kept + b"}"
    assert (await post(api, raw)).status == 200
    body = (await api.request("GET", "/peers/ben")).body

    def never(word):
        raise AssertionError(word)

    kept = json.loads(body, parse_constant=never)["metadata"]
    assert (kept["x"], kept["y"], kept["n"]) == (1e308, "\u2028🦀", 12345678901234567890)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"name": "ben", "path": "\\ud800"}', "path"),
        (b'{"name": "ben", "metadata": {"\\udfff": 1}}', "metadata"),
        (b'{"name": "ben", "metadata": ' + b'{"a":' * 200 + b"1" + b"}" * 201, "metadata"),
    ],
    ids=["text", "key", "depth"],
)
async def test_what_json_takes_and_a_store_does_not_names_its_field(api, raw, field):
    assert field_of(await post(api, raw)) == (422, field)
    assert (await api.get("/peers"))["peers"] == []


async def test_a_body_of_a_mebibyte_is_read_and_one_byte_more_is_too_large(api):
    start, end = b'{"name": "ben", "path": "/b", "more": "', b'"}'
    full = start + b"x" * (MAX_BODY_BYTES - len(start) - len(end)) + end
    assert (await post(api, full)).status == 200
    got = await post(api, full + b" ")
    detail = got.json["detail"]
    assert (got.status, detail["error"], detail["limit"]) == (413, "too_large", MAX_BODY_BYTES)


async def test_a_body_in_pieces_that_never_says_its_size_is_bounded_too(api):
    async def pieces():
        yield b'{"name": "'
        for _ in range(MAX_BODY_BYTES // 65_536 + 1):
            yield b"x" * 65_536

    got = await post(api, pieces())
    assert (got.status, got.json["detail"]["error"]) == (413, "too_large")
    assert (await api.get("/health"))["status"] == "ok"


# -- refusals and failures ----------------------------------------------------


@pytest.mark.parametrize("path", ["/nowhere", "/peers/", "/static/", "/static/../../etc/passwd"])
async def test_an_unknown_path_is_404_in_the_one_shape(api, path):
    got = await api.request("GET", path)
    assert (got.status, got.json["detail"]["error"]) == (404, "not_found")
    assert got.json["detail"]["hint"]


async def test_a_wrong_method_is_405_and_says_which_are_allowed(api):
    got = await api.request("PATCH", "/peers")
    assert (got.status, got.json["detail"]["error"]) == (405, "method_not_allowed")
    assert got.headers["Allow"] == "GET, HEAD, POST"
    assert got.headers["Allow"] in got.json["detail"]["hint"]


async def test_a_refusal_keeps_its_headers(api):
    got = await api.request("GET", "/peers", token=None)
    assert (got.status, got.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert set(got.json["detail"]) == {"error", "hint"}


async def test_a_fault_of_ours_is_500_with_a_trace_that_the_log_has(api, monkeypatch, caplog):
    def fault(*_):
        raise KeyError("the secret of the store")

    monkeypatch.setattr(peers, "resolve", fault)
    with caplog.at_level(logging.ERROR, logger="repowire"):
        got = await api.request("GET", "/peers/a", query={"circle": "b"})
    detail = got.json["detail"]
    assert (got.status, detail["error"]) == (500, "internal")
    assert detail["trace"] in detail["hint"]
    assert b"secret" not in got.body
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage() == f"{detail['trace']}: GET /peers/a failed"
    assert record.exc_info[0] is KeyError
    assert TOKEN not in caplog.text
    monkeypatch.undo()
    assert (await api.get("/peers"))["peers"] == []


async def test_a_path_cannot_write_lines_into_the_log(api, monkeypatch, caplog):
    def fault(*_):
        raise KeyError

    monkeypatch.setattr(peers, "resolve", fault)
    with caplog.at_level(logging.ERROR, logger="repowire"):
        got = await api.request("GET", URL("/peers/a%0AERROR%20forged", encoded=True))
    assert got.status == 500
    assert "\n" not in caplog.records[-1].getMessage()


async def test_a_fault_after_the_headers_cuts_the_connection_and_is_logged(api, monkeypatch, caplog):
    async with api.client.get("/events/stream", headers={"Authorization": f"Bearer {api.token}"}) as response:
        assert (await response.content.readline()).startswith(b":")
        monkeypatch.setattr("repowire.traces.as_event", None)
        with caplog.at_level(logging.ERROR, logger="repowire"):
            api.mesh.announce("peer.changed")
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
    assert [one.getMessage().startswith("err-") for one in caplog.records] == [True]


REQUESTS = ["GET 1.1", "GET 1.1", "HEAD 1.1", "GET 1.1", "GET 1.0 keep-alive", "GET 1.1 close"]


@pytest.mark.parametrize("last", ["GET 1.1 close", "GET 1.0"])
@pytest.mark.parametrize("peers_there", [0, 1, 100])
async def test_a_reply_is_whole_however_it_is_asked_for(api, last, peers_there):
    """Small, and too large to be sent in one write; one request after the other, all of them sent at once."""
    for n in range(peers_there):
        await api.post("/peers", name=f"ben{n}", path="/src/ben")
    expected = (await api.request("GET", "/peers")).body
    assert (len(expected) > wire.WHOLE_BYTES) == (peers_there == 100)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.client.server.port)
    asked = [*REQUESTS[:-1], last]
    for method, version, *connection in map(str.split, asked):
        writer.write(f"{method} /peers HTTP/{version}\r\nHost: 127.0.0.1:{api.client.server.port}\r\n".encode())
        writer.write(f"Authorization: Bearer {api.token}\r\n".encode())
        writer.write(f"Connection: {connection[0]}\r\n\r\n".encode() if connection else b"\r\n")
    for method, version, *connection in map(str.split, asked):
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert status == f"HTTP/{version} 200 OK"
        assert (headers["Content-Type"], headers["Content-Length"]) == ("application/json", str(len(expected)))
        assert abs(parsedate_to_datetime(headers["Date"]) - datetime.now(UTC)).total_seconds() < 60
        assert headers.get("Connection") == (connection[0] if connection else None)
        assert method == "HEAD" or len(await reader.readexactly(len(expected))) == len(expected)
    assert await asyncio.wait_for(reader.read(), 5) == b"", "the last one ends the connection"
    writer.close()


async def test_a_client_that_sends_and_does_not_read_waits_for_itself(api):
    """Replies that nobody reads do not heap up in memory: the requests behind them wait."""
    for n in range(20):
        await api.post("/peers", name=f"ben{n}", path="/src/ben", description="x" * 200)
    port = api.client.server.port
    request = f"GET /peers HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {api.token}\r\n\r\n"
    others = set(api.client.server.handler.connections)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setblocking(False)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, request.encode() * 2000))
        await until_async(lambda: set(api.client.server.handler.connections) - others)
        [slow] = set(api.client.server.handler.connections) - others
        await until_async(lambda: slow.transport.get_write_buffer_size() > 2**16)
        for _ in range(50):  # whole requests, so that the others had every chance to be answered
            assert len((await api.request("GET", "/peers")).body) < wire.WHOLE_BYTES
        assert slow.transport.get_write_buffer_size() < 2**17
        sending.cancel()
