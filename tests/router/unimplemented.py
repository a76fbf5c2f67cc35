"""A level that implements nothing, for fake ones to begin with: in the types of the generated base all is abstract."""

from __future__ import annotations

from typing import Any

from specrouter.v1 import level_pb2_grpc


class Unimplemented(level_pb2_grpc.LevelServiceServicer):
    """Answers each call as gRPC does where it is not defined."""

    def Extend(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802  # as in the contract
        return super().Extend(request_iterator, context)

    def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802
        return super().Describe(request, context)

    def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        return super().Drain(request, context)

    def Tokenizer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return super().Tokenizer(request, context)
