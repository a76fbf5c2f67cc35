"""What `helm test` runs: the mesh writes a text, by REST and by gRPC, that must be the target's own."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc

from specrouter.v1 import router_pb2 as pb
from specrouter.v1 import router_pb2_grpc

ROUTER, FAMILY, TARGET = os.environ["ROUTER"], os.environ["FAMILY"], os.environ["TARGET"]
CA = os.environ.get("CA", "")  # of routers whose ports are TLS
HTTP = f"{'https' if CA else 'http'}://{ROUTER}:{os.environ['HTTP_PORT']}"
GRPC = f"{ROUTER}:{os.environ['GRPC_PORT']}"
TOKENS = int(os.environ["TOKENS"])
PROMPTS = ("Name three rivers.", "Count from one to twenty, in words.")


def ask(path: str, body: object = None) -> dict:
    """The answer of the REST interface."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(HTTP + path, data, {"Content-Type": "application/json"})  # noqa: S310
    trust = ssl.create_default_context(cafile=CA) if CA else None
    with urllib.request.urlopen(request, timeout=120, context=trust) as answer:  # noqa: S310
        return json.load(answer)


def rest(prompt: str, **wishes: object) -> str:
    """A text by REST."""
    body = {"model": FAMILY, "prompt": prompt, "max_tokens": TOKENS, "seed": 11, "temperature": 0.7}
    return ask("/v1/completions", body | {"specrouter": wishes})["choices"][0]["text"]


def by_grpc(prompt: str) -> str:
    """The same text by gRPC."""
    trust = grpc.ssl_channel_credentials(Path(CA).read_bytes()) if CA else None
    with grpc.secure_channel(GRPC, trust) if trust else grpc.insecure_channel(GRPC) as channel:
        request = pb.GenerateRequest(model=FAMILY, text=prompt, max_tokens=TOKENS)
        request.sampling.seed, request.sampling.temperature = 11, 0.7
        events = router_pb2_grpc.RouterServiceStub(channel).Generate(request, timeout=120)
        return "".join(event.text for event in events)


def wait() -> None:
    """Until the family answers."""
    until = time.monotonic() + float(os.environ["WAIT_SECONDS"])
    while True:
        try:
            rest(PROMPTS[0])
            return
        except (urllib.error.URLError, OSError, KeyError) as error:
            if time.monotonic() > until:
                sys.exit(f"the mesh does not answer: {error}")
            time.sleep(1)


def main() -> None:
    """Compare, and say so."""
    wait()
    for prompt in PROMPTS:
        alone = rest(prompt, chain=[TARGET])
        for how, text in (("REST", rest(prompt)), ("gRPC", by_grpc(prompt))):
            if text != alone or not text:
                sys.exit(f"{how}: the chain wrote {text!r}, the target alone {alone!r}")
        sys.stdout.write(f"equal by REST and gRPC: {alone!r}\n")


main()
