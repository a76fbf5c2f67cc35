"""What a Redis URL says, and that it keeps its secrets."""

from __future__ import annotations

import pytest

from specrouter_family.redis_url import parse


@pytest.mark.parametrize(
    ("url", "kind", "address", "settings"),
    [
        ("redis://h", "single", "h:6379", {}),
        ("redis://h:1/3", "single", "h:1", {"db": 3}),
        ("redis://[::1]:7", "single", "::1:7", {}),
        ("redis://:p%40ss@h", "single", "h:6379", {"password": "p@ss"}),
        ("redis://me:a%2Fb@h:1", "single", "h:1", {"username": "me", "password": "a/b"}),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            "single",
            "h:6379",
            {"ssl": True, "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
        ),
        ("redis+sentinel://a,b:2/main/1", "sentinel", "sentinel a:26379,b:2/main", {"db": 1}),
        ("rediss+cluster://u:p@a:1,b:2", "cluster", "cluster a:1,b:2", {"ssl": True, "username": "u", "password": "p"}),
        ("redis+cluster://a/0", "cluster", "cluster a:6379", {}),
    ],
)
def test_urls(url: str, kind: str, address: str, settings: dict[str, object]) -> None:
    found = parse(url)
    assert (found.kind, found.address, found.settings) == (kind, address, settings)


def test_sentinels_have_users_of_their_own() -> None:
    found = parse("redis+sentinel://u:p@a/main?sentinel_username=s&sentinel_password=t")
    assert found.settings == {"username": "u", "password": "p"}
    assert found.sentinel_settings == {"username": "s", "password": "t"}
    assert "'p'" not in repr(found) and "'t'" not in repr(found)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://secret@h", "must begin"),
        ("secret", "must begin"),
        ("redis://", "a host is missing"),
        ("redis://:secret@", "a host is missing"),
        ("redis://:secret@h:x", "a port"),
        ("redis://:secret@h:99999", "a port"),
        ("redis://a,b", "several hosts"),
        ("redis://:secret@h/x", "database"),
        ("redis+cluster://:secret@h/1", "database 0"),
        ("redis+sentinel://:secret@h", "service"),
        ("redis+sentinel://:secret@h/a/b", "database"),
        ("redis://:secret@h?ssl_ca_certs=/x", "rediss"),
        ("rediss://:secret@h?ssl_ca=/x", "ssl_ca_certs"),
        ("rediss://:secret@h?ssl_check_hostname=secret", "true or false"),
        ("redis://:secret@h?password=secret", "unknown"),
    ],
)
def test_bad_urls_name_the_fault_and_no_secret(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        parse(url)
    assert str(caught.value).startswith("redis_url: ") and "secret" not in str(caught.value)
