"""Whatever fits, or does not fit, the published schema: no answer is a fault of the server."""

from __future__ import annotations

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from stub_mesh import Router

OPERATIONS = {
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /v1/sequences/{name}/stream",
    "POST /v1/sequences/{name}/cancel",
    "GET /v1/status",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_is_a_server_error(router: Router, mode: GenerationMode) -> None:
    published = httpx.get(f"{router.url}/openapi.json", trust_env=False).json()
    found = set()
    statuses = set()
    for result in schemathesis.openapi.from_dict(published).get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        found.add(operation.label)
        if mode == GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing can be wrong

        @hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case[Any]) -> None:
            if isinstance(case.body, dict):  # get past the first checks, most times
                case.body["model"] = "test"
                case.body.setdefault("max_tokens", 5)
            response = case.call(base_url=router.url, timeout=60)
            statuses.add(response.status_code)
            assert response.status_code < 500, response.text
            if response.status_code >= 400 and case.path.startswith("/v1"):
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
    assert found == OPERATIONS
    assert {GenerationMode.POSITIVE: {200, 404}, GenerationMode.NEGATIVE: {400}}[mode] <= statuses
