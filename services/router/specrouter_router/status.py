"""What the router says of itself: health, readiness, status, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from specrouter_router.adaptive_status import adaptive_body
from specrouter_router.planner import AdaptivePlanner
from specrouter_router.replica_status import replica_body
from specrouter_router.replicas import Replicas
from specrouter_router.router import Router


def status_routes(router: Router) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the process lives."""
        return "ok\n"

    @routes.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "not ready"}})
    async def readyz() -> Response:
        """Whether requests are taken: 200 or 503."""
        why = router.why_not_ready
        ready = "ready" if router.protected else "ready, unprotected: Redis is lost"
        return PlainTextResponse(f"{why or ready}\n", 503 if why else 200)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(router.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/v1/status")
    async def status() -> dict[str, Any]:
        """The family's levels as they are now, and how chains are chosen."""
        family = router.family
        planner, judge, adaptive = router.planner, router.judge, None
        if isinstance(planner, AdaptivePlanner) and judge is not None:
            adaptive = adaptive_body(planner, judge)
        return {
            "model": family.name,
            "levels": [_level(link) for link in router.links.values()],
            "chain": {
                "policy": family.chain.policy,
                "mode": family.chain.mode,
                "levels": [level.name for level in family.levels],
                "windows": dict(family.chain.windows),
                "lookahead": family.chain.lookahead,
            },
            "adaptive": adaptive,
            "policy": {"version": router.steering.version, "problem": router.steering.problem},
            "sequences": len(router.running),
            "router": {"id": router.lease.id, "address": router.lease.address, "draining": router.draining},
            "redis": "lost" if router.store.lost_s else "ok",
        }

    return routes


def _level(link: Replicas) -> dict[str, Any]:
    info = link.info
    return {
        "name": link.name,
        "address": link.address,
        "ready": link.ready,
        "model_digest": info.model_digest if info else "",
        "dtype": info.dtype if info else "",
        "device": info.device if info else "",
        "engine": info.engine if info else "",
        "max_length": info.max_length if info else 0,
        "moves": link.moves,
        "hedges": {"sent": link.hedges.sent, "won": link.hedges.won},
        "replicas": [replica_body(each) for each in link.fleet.links.values()],
    }
