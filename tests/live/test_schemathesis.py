"""Generated requests, right and wrong ones, by the document: no 5xx, and every answer is as it says."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from conftest import Live
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from repowire import openapi

pytestmark = pytest.mark.live

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
LEFT_OUT = {
    "/shutdown": "it ends the daemon",
    "/auth/rotate": "it cuts the connection that the next request would use",
    "/events/stream": "a stream",
    "/panes/hosted": "a stream",
    "/ws": "a WebSocket",
    "/static/{file}": "files as they lie",
}
EXAMPLES = 30  # a route: 27 s in all on two cores; ten times as many found no more

schema = schemathesis.openapi.from_dict(openapi.document()).exclude(path=list(LEFT_OUT))


# Ids that exist, by the fields and parts of paths that name them: random text alone would only ever find a 404.
KNOWN: dict[str, Any] = {"name": "ann", "to_peer": "ann", "peer_name": "ann", "pane_id": "%1"}


WAITS = ("timeout", "timeout_seconds", "runtime_timeout_seconds")


def with_known(fields: Any) -> Any:
    """Every second text that could be an id is one; and nobody answers here, so nothing is gained by waiting."""
    if not isinstance(fields, dict):
        return fields
    for field, value in fields.items():
        if field in KNOWN and isinstance(value, str) and len(value) % 2:
            fields[field] = KNOWN[field]
        if field in WAITS and isinstance(value, int | float) and not isinstance(value, bool):
            fields[field] = min(value, 0.01) or 0.01
    if "prompt" in fields and fields.get("timeout_seconds") is None:
        fields["timeout_seconds"] = 0.01
    return fields


@schema.hook
def map_body(context: Any, body: Any) -> Any:
    return with_known(body)


@schema.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    return with_known(path_parameters)


@schema.hook
def map_query(context: Any, query: Any) -> Any:
    return with_known(query)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Live]:
    """With a peer, an ask, a message and mail that is picked up, whose ids the requests are given."""
    folder = Path(tempfile.mkdtemp(prefix="rw"))
    live = Live(folder)
    try:
        live.start(REPOWIRE_DAEMON__QUESTION_WAIT_CAP_SECONDS="1")
        live.post("/peers", name="ann", path="/src/ann", pane_id="%1")
        ask = live.post("/ask", to_peer="ann", text="up?", if_offline="queue")
        many = live.post("/ask-many", to_peers=["ann", "nobody"], text="up?", if_offline="queue")
        note = live.post("/notify", to_peer="ann", text="hi")
        KNOWN.update(correlation_id=ask["correlation_id"], reply_to=ask["correlation_id"], parent_id=many["parent_id"])
        KNOWN.update(dict.fromkeys(("delivery_id", "message_id", "trace_id"), note["delivery_id"]))
        yield live
        assert live.term() == 0
        assert "Traceback" not in live.stderr()
    finally:
        live.close()
        shutil.rmtree(folder, ignore_errors=True)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_by_the_document_is_a_fault_of_ours(case: Any, daemon: Live) -> None:
    headers = {"Authorization": f"Bearer {daemon.token}"}
    response = case.call(base_url=f"http://127.0.0.1:{daemon.port}", headers=headers, timeout=15)
    case.validate_response(response, checks=CHECKS)
