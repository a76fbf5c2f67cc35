"""Requests to the API server over the ``kubernetes`` client: plain JSON objects, a deadline each, no retries.

Whoever asks decides about retrying (the queue, the watch loop), so that one failed request costs one wait, not several
nested ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import urllib3
from kubernetes import client, config

from specrouter_operator.metrics import REQUESTS
from specrouter_operator.resource import Object, Resource, name_of

MANAGER = "specrouter-operator"  # the one field manager
PAGE = 500  # objects of a list that come in one answer
MOST_LINE = 16 << 20  # bytes of one watch event
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server refused, or didn't answer (status 0). ``retry_after``: seconds it asked to wait, if it did."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class NotLeaderError(Exception):
    """A write was held back because another replica may lead now."""


def connect(kubeconfig: str | None, namespace: str, *, timeout: float = 5.0) -> Api:
    """The API server of a kubeconfig (None: of the pod's service account, else the default kubeconfig)."""
    settings = client.Configuration()
    if kubeconfig is None:
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)
    else:
        config.load_kube_config(config_file=kubeconfig, client_configuration=settings)
    settings.retries = False
    settings.connection_pool_maxsize = 32
    return Api(client.ApiClient(settings), namespace, timeout=timeout)


class Api:
    """The API server, for one namespace. Thread-safe. All methods raise ApiError."""

    def __init__(self, wire: client.ApiClient, namespace: str, *, timeout: float = 5.0) -> None:
        self._wire, self.namespace, self._timeout = wire, namespace, timeout
        self.may_write: Callable[[], bool] = lambda: True  # set by the operator: whether it leads

    def get(self, resource: Resource, name: str) -> Object | None:
        """One object, as it is now; None if there is none."""
        try:
            return self._ask("GET", resource.path(self.namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, resource: Resource, selector: str = "") -> tuple[list[Object], str]:
        """All objects, as they are now (read with quorum), and the resource version to watch from."""
        items: list[Object] = []
        query = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = self._ask("GET", resource.path(self.namespace), query)
            items += page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = following

    def watch(self, resource: Resource, version: str, selector: str, seconds: int) -> Iterator[tuple[str, Object]]:
        """Changes after a version, as (ADDED | MODIFIED | DELETED | BOOKMARK, object), for so long. An expired version
        is ApiError 410. A connection that gives nothing at all for that time ends with ApiError 0."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
            "allowWatchBookmarks": "true",
            **({"labelSelector": selector} if selector else {}),
        }
        answer = self._send("GET", resource.path(self.namespace), query, timeout=(self._timeout, seconds + 5.0))
        try:
            for line in _lines(answer):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(int(status.get("code", 500)), str(status.get("message", status)))
                yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError) as error:
            raise ApiError(0, f"watch of {resource.plural}: {error}") from error
        finally:
            answer.close()

    def apply(self, resource: Resource, item: Object, part: str = "") -> Object:
        """Server-side apply of the fields in ``item``; conflicts go to us."""
        query = {"fieldManager": MANAGER, "force": "true"}
        return self._write("PATCH", resource.path(self.namespace, name_of(item), part), query, item, APPLY)

    def merge(self, resource: Resource, name: str, changes: Object, part: str = "") -> Object:
        """A merge patch; with metadata.resourceVersion in it, only if the object is still at that version."""
        return self._write(
            "PATCH", resource.path(self.namespace, name, part), {"fieldManager": MANAGER}, changes, MERGE
        )

    def create(self, resource: Resource, item: Object) -> Object:
        """A new object; ApiError 409 if there is one of its name."""
        return self._write("POST", resource.path(self.namespace), {"fieldManager": MANAGER}, item)

    def replace(self, resource: Resource, item: Object) -> Object:
        """The whole object, if it is still at the version given in it."""
        return self._write("PUT", resource.path(self.namespace, name_of(item)), {"fieldManager": MANAGER}, item)

    def delete(self, resource: Resource, item: Object) -> None:
        """Delete this very object (by uid), what it owns after it. One that is gone already is no error."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": item["metadata"]["uid"]}}
        try:
            self._write("DELETE", resource.path(self.namespace, name_of(item)), {}, body)
        except ApiError as error:
            if error.status != 404:
                raise

    def _write(
        self, verb: str, path: str, query: dict[str, str], body: Object, form: str = "application/json"
    ) -> Object:
        if not self.may_write():
            raise NotLeaderError(f"{verb} {path}: another replica may lead now")
        return self._ask(verb, path, query, body, form)

    def _ask(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        form: str = "application/json",
    ) -> Object:
        answer = self._send(verb, path, query or {}, body, form, timeout=(self._timeout, self._timeout))
        try:
            parsed = json.loads(answer.read())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiError(0, f"{verb} {path}: answer broken off: {error}") from error
        finally:
            answer.release_conn()
        if not isinstance(parsed, dict):
            raise ApiError(0, f"{verb} {path}: answer is no object")
        return parsed

    def _send(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        form: str = "application/json",
        *,
        timeout: tuple[float, float],
    ) -> urllib3.BaseHTTPResponse:
        status = 0
        try:
            answer: urllib3.BaseHTTPResponse = self._wire.call_api(
                path,
                verb,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": form, "User-Agent": MANAGER},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeout,
            )
            status = answer.status
        except client.ApiException as error:
            status = error.status or 0
            raise ApiError(status, f"{verb} {path}: {_reason(error)}", _retry_after(error)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(0, f"{verb} {path}: {error}") from error
        finally:
            REQUESTS.labels(verb, str(status)).inc()
        return answer


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of a stream as they come. Raises ValueError for one that is too long."""
    rest = b""
    for piece in answer.stream(1 << 16, decode_content=True):
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > MOST_LINE:
            raise ValueError(f"a line of more than {MOST_LINE} bytes")
        yield from (line for line in whole if line.strip())


def _reason(error: client.ApiException) -> str:
    """What a Status object says, or the bare reason."""
    try:
        return f"{error.status} {json.loads(error.body)['message']}"
    except (ValueError, TypeError, KeyError):
        return f"{error.status} {error.reason}"


def _retry_after(error: client.ApiException) -> float | None:
    value = (error.headers or {}).get("Retry-After")
    return float(value) if value and value.isdecimal() else None
