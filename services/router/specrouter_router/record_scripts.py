"""The keys of a record, and the scripts that change it.

A sequence has three keys under one hash tag, so that they live on one node of a cluster:

    specrouter:{ID}:spec     SequenceSpec, serialized; written once
    specrouter:{ID}:state    hash of epoch, round, owner, finish; of an ended one also length, in bytes of tokens
    specrouter:{ID}:tokens   committed tokens, 4 bytes each, appended to

Who may write is decided by (epoch, owner). A higher epoch always wins: after a Redis lost its last writes it may
show an older owner, whose record is then written anew. Two owners of the same epoch can only come of such a loss; the
one that Redis knows stays. Scripts see small values only: tokens are appended unread.
"""

from __future__ import annotations

TTL_S = 3600  # of a record, after its last write

# KEYS: state, tokens, spec. ARGV: epoch, owner, round expected (0: none), bytes of tokens expected, round, tokens,
# finish, TTL, next owner.
# Answers 1: written. 2: written, but the spec is missing. 0: there is no record, or only an older owner's, and all of
# it must be written. Else [epoch, round, bytes of tokens, owner, finish]: what there is instead.
APPEND = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'round', 'owner', 'finish')
if not state[1] or tonumber(state[1]) < tonumber(ARGV[1]) then
  if ARGV[3] ~= '0' then return 0 end
  redis.call('DEL', KEYS[2])
else
  local size = redis.call('STRLEN', KEYS[2])
  if state[1] ~= ARGV[1] or state[2] ~= ARGV[3] or state[3] ~= ARGV[2] or size ~= tonumber(ARGV[4]) then
    return {tonumber(state[1]), tonumber(state[2]), size, state[3] or '', tonumber(state[4] or '0')}
  end
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'round', ARGV[5], 'owner', ARGV[9], 'finish', ARGV[7])
if ARGV[6] ~= '' then redis.call('APPEND', KEYS[2], ARGV[6]) end
if ARGV[7] ~= '0' then redis.call('HSET', KEYS[1], 'length', redis.call('STRLEN', KEYS[2])) end
redis.call('EXPIRE', KEYS[1], ARGV[8])
redis.call('EXPIRE', KEYS[2], ARGV[8])
return 2 - redis.call('EXPIRE', KEYS[3], ARGV[8])
"""

# KEYS: state, tokens, spec. ARGV: epoch and owner expected, new owner, TTL. Answers 1: it is the new owner's, with the
# next epoch. 0: it is somebody else's, or has ended.
TAKE = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'finish')
if state[1] ~= ARGV[1] or (state[2] or '') ~= ARGV[2] or (state[3] or '0') ~= '0' then return 0 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1] + 1, 'owner', ARGV[3])
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[4]) end
return 1
"""

# KEYS: state. ARGV: finish. Ends it over its owner's head, who hears that at its next write. Answers whether it ran.
END = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'finish')
if not state[1] or (state[2] or '0') ~= '0' then return 0 end
redis.call('HSET', KEYS[1], 'epoch', state[1] + 1, 'owner', '', 'finish', ARGV[1])
return 1
"""


def keys(sequence: str) -> tuple[str, str, str]:
    """State, tokens, spec."""
    tag = f"specrouter:{{{sequence}}}"
    return f"{tag}:state", f"{tag}:tokens", f"{tag}:spec"


def family_key(family: str, what: str) -> str:
    """A key that the routers of a family share; all of them lie on one node."""
    return f"specrouter:family:{{{family}}}:{what}"
