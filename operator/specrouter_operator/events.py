"""Kubernetes Events: what the operator did, beside the object it did it for. One that can't be written is dropped."""

from __future__ import annotations

import datetime
import logging
import uuid
from typing import Literal

from specrouter_operator.api import MANAGER, Api, ApiError
from specrouter_operator.resource import EVENT, Object, name_of

log = logging.getLogger(__name__)

MOST_MESSAGE = 1024


class Events:
    """Writes events. Only for what changed, so that there are few."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api, self._instance = api, instance

    def tell(self, about: Object, reason: str, message: str, kind: Literal["Normal", "Warning"] = "Normal") -> None:
        """An event about an object. Never raises ApiError: an event is no state."""
        meta = about["metadata"]
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": f"{name_of(about)}.{uuid.uuid4().hex[:16]}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
            "reason": reason,
            "message": message[:MOST_MESSAGE],
            "type": kind,
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": self._instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self._api.create(EVENT, event)
        except ApiError as error:
            log.info("event %s about %s dropped: %s", reason, name_of(about), error)
