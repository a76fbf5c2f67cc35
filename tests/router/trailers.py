"""What a router says beside its status when it ends a call over gRPC."""

from __future__ import annotations

import grpc


def trailers(error: grpc.RpcError) -> dict[str, str]:
    """Its trailing metadata, all of them text."""
    return {one.key: str(one.value) for one in error.trailing_metadata()}
