"""Whether a part is really ready: it is asked, as its users will ask it."""

from __future__ import annotations

import socket

import grpc
import httpx
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


def http(url: str) -> str | None:
    """Something to say when ``url`` answers 200, else None."""
    try:
        return "" if httpx.get(url, timeout=PATIENCE, trust_env=False).status_code == 200 else None
    except httpx.HTTPError:
        return None


def level(ready_url: str, address: str) -> str | None:
    """What the level says of itself when both its ports answer, else None."""
    if http(ready_url) is None:
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
