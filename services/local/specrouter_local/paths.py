"""Where the command keeps what it makes: model weights and the state of running meshes."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """SPECROUTER_CACHE, else specrouter under XDG_CACHE_HOME, else ~/.cache/specrouter."""
    own = os.environ.get("SPECROUTER_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser().absolute() if shared else Path.home() / ".cache") / "specrouter"


def models() -> Path:
    """One directory per model."""
    return cache() / "models"


def downloads() -> Path:
    """What is fetched and not yet converted."""
    return cache() / "downloads"


def runs() -> Path:
    """One directory per mesh that was started."""
    return cache() / "run"
