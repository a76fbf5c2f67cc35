"""The index of the blocks in Redis, when a writer ends half-way."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError
from stepped_level import url

from specrouter_level.block_store import BlockStore
from specrouter_level.checkpoint_settings import where


def written(redis: Redis) -> tuple[set[str], set[str]]:
    """The blocks that are there, and the names in the index."""
    index = b"specrouter:kv:t:index:l"
    blocks = {key.decode().rpartition(":")[2] for key in redis.keys("specrouter:kv:t:*") if key != index}
    return blocks, {name.decode() for name in redis.zrange(index, 0, -1)}


@pytest.mark.parametrize("refused", ["set", "zadd", "unlink", "zrem"])
def test_whichever_write_is_the_last_every_block_is_counted(refused: str, redis: Redis) -> None:
    whole = BlockStore(where(url(redis)), 1.0, "t", "l", 2)
    assert [whole.put(name, b"x") for name in "abc"] == [0, 0, 1]
    assert written(redis) == ({"b", "c"}, {"b", "c"})
    redis.acl_setuser("writer", enabled=True, nopass=True, keys=["*"], commands=["+@all", f"-{refused}"])
    try:
        stopped = BlockStore(where(url(redis).replace("//", "//writer:any@")), 1.0, "t", "l", 2)
        with pytest.raises(NoPermissionError, match=refused):
            stopped.put("d", b"x")
        stopped.close()
    finally:
        redis.acl_deluser("writer")
    blocks, names = written(redis)
    assert blocks <= names
    whole.put("e", b"x")
    assert written(redis)[0] <= written(redis)[1] and len(written(redis)[1]) == 2
    whole.close()
