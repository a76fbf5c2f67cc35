"""Settings of checkpoints: what is wrong is named, and secrets are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from specrouter_level import checkpoint_settings


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"short")
    for options, word in (
        (("all", "", "exact", 1, None, "shape"), "kv-url"),
        (("all", "http://h", "exact", 1, None, "shape"), "kv-url"),
        (("all", "redis+sentinel://h", "exact", 1, None, "shape"), "kv-url"),
        (("all", "redis://h", "int8", 1, None, "bitwise"), "kv-codec"),
        (("all", "redis://h", "exact", 1, key, "shape"), "kv-key-file"),
        (("all", "redis://h", "exact", 1, tmp_path / "none", "shape"), "kv-key-file"),
    ):
        with pytest.raises(ValueError, match=f"^{word}: "):
            checkpoint_settings.of(*options)
    with pytest.raises(ValueError, match=r"^kv-url: ") as caught:
        checkpoint_settings.where("redis://:secret@h:port/0")
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__
    assert checkpoint_settings.of("off", "", "int8", 1, None, "bitwise") is None
    made = checkpoint_settings.of("all", "redis://:secret@h", "exact", 2, None, "shape")
    assert made is not None and made.budget == 2 << 20 and "secret" not in repr(made)
