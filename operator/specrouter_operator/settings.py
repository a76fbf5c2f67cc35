"""What the operator was started with, that the objects it makes depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The same for all families of one operator."""

    level_image: str = "specrouter/level:0.1.0"
    storage_image: str = "kserve/storage-initializer:v0.20.0"  # fetches weights where KServe doesn't
    otlp_endpoint: str = ""  # where levels push their metrics, as http://specrouter-operator.ns.svc:4317; "" = nowhere
    otlp_secret: str = ""  # Secret whose key ``token`` they show; "" = none
    kv_secret: str = ""  # Secret for levels with kvCheckpoints: url (of Redis) and key (that signs KV); "" = none
    level_tls_secret: str = ""  # with tls.crt, tls.key, ca.crt: levels speak TLS with clients of that authority
