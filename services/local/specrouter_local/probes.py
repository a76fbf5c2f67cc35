"""Whether a part is really ready: it is asked, as its users will ask it."""

from __future__ import annotations

import socket
from http.client import HTTPConnection, HTTPException

import grpc

from specrouter.v1 import level_pb2, level_pb2_grpc

PATIENCE = 0.5  # seconds a part may take to answer


def redis(host: str, port: int) -> str | None:
    """Something to say when the server answers PING, else None."""
    try:
        with socket.create_connection((host, port), PATIENCE) as connection:
            connection.sendall(b"PING\r\n")
            return "" if connection.recv(64).startswith(b"+PONG") else None
    except OSError:
        return None


def http(address: str, path: str) -> str | None:
    """Something to say when a GET of ``path`` answers 200, else None. ``address``: host:port."""
    connection = HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return "" if connection.getresponse().status == 200 else None
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def level(http_address: str, address: str) -> str | None:
    """What the level says of itself when both its ports answer, else None."""
    if http(http_address, "/v2/health/ready") is None:
        return None
    try:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = level_pb2_grpc.LevelServiceStub(channel)
            about = stub.Describe(level_pb2.DescribeRequest(), timeout=PATIENCE)
    except grpc.RpcError:
        return None
    words = [about.engine]
    if about.dtype != "none":
        words.append(about.dtype)
    if about.device != "none":
        words.append(f"on {about.device}")
    return " ".join(words)
