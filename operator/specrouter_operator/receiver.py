"""The OTLP/gRPC metrics receiver: levels and routers, or collectors for them, push to it.

opentelemetry.proto.collector.metrics.v1.MetricsService/Export. What cannot be used is answered with INVALID_ARGUMENT
and the field's name, points of strangers are counted in ``partial_success``. Where a token is set, who sends without
it (``authorization: Bearer TOKEN``, RFC 6750) is answered UNAUTHENTICATED before anything is read; who sends more than
its allowance, RESOURCE_EXHAUSTED (without RetryInfo: the next push has the same totals).
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from specrouter_family.tls import Tls
from specrouter_operator import metric_names, otlp
from specrouter_operator.allowance import RATE, Allowances
from specrouter_operator.store import Store

log = logging.getLogger(__name__)

SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
WORKERS = 2
MAX_WAITING = 128  # calls at once; more are refused
OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
)


class Receiver:
    """One server that fills one store. ``clock``: seconds, of the clock that the store is asked with. ``token``: what
    senders must show; "": nothing. ``tls``: its certificates; None: in the clear."""

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.monotonic, token: str = "", tls: Tls | None = None
    ) -> None:
        self.requests = 0
        self.points = 0  # taken
        self.refused = 0  # requests that could not be used
        self.denied = 0  # without the token
        self.throttled = 0  # beyond their sender's allowance
        self.skipped = 0  # points of resources that are no level or router
        self._store = store
        self._clock = clock
        self._shown = f"Bearer {token}".encode() if token else b""
        self._tls = tls
        self._allowances = Allowances()
        self._server: grpc.Server | None = None

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    def start(self, address: str) -> int:
        """Listen on ``host:port``; returns the port. May be stopped and started again. Raises OSError when the port is
        taken, ValueError when a certificate can't be used."""
        server = grpc.server(ThreadPoolExecutor(WORKERS, "otlp"), options=OPTIONS, maximum_concurrent_rpcs=MAX_WAITING)
        # Requests come as bytes: what gRPC itself can't parse, it answers with INTERNAL and a traceback in the log.
        handler: grpc.RpcMethodHandler[bytes, ExportMetricsServiceResponse] = grpc.unary_unary_rpc_method_handler(
            self._export, None, ExportMetricsServiceResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),))
        try:
            port: int = (
                server.add_insecure_port(address)
                if self._tls is None
                else server.add_secure_port(address, self._tls.credentials())
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        server.start()
        self._server = server
        log.info("OTLP metrics are received on %s", address)
        return port

    def stop(self, grace: float = 1.0) -> None:
        """End; calls that run may end within ``grace`` seconds."""
        if self._server is not None:
            self._server.stop(grace).wait(grace + 1)
            self._server = None

    def _export(self, data: bytes, context: grpc.ServicerContext) -> ExportMetricsServiceResponse:
        self._admit(len(data), context)
        self.requests += 1
        try:
            found = otlp.read(_parse(data), metric_names.READ)
        except ValueError as error:
            self.refused += 1
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self._store.take(found.updates, self._clock())
        self.points += len(found.updates)
        self.skipped += found.skipped
        if not found.skipped:
            return ExportMetricsServiceResponse()
        partial = ExportMetricsPartialSuccess(rejected_data_points=found.skipped, error_message=found.why)
        return ExportMetricsServiceResponse(partial_success=partial)

    def _admit(self, size: int, context: grpc.ServicerContext) -> None:
        """Ends the call if its sender isn't allowed to make it."""
        given = next((value for key, value in context.invocation_metadata() if key == "authorization"), "")
        if self._shown and not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._shown):
            self.denied += 1
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "authorization: not the bearer token of this receiver")
        address = context.peer().rpartition(":")[0]  # without the port
        if not self._allowances.take(address, size, self._clock()):
            self.throttled += 1
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {RATE >> 20} MiB a second from {address}")


def _parse(data: bytes) -> ExportMetricsServiceRequest:
    try:
        return ExportMetricsServiceRequest.FromString(data)
    except DecodeError as error:
        raise ValueError("request: not an ExportMetricsServiceRequest") from error
