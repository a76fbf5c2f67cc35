"""Names of what levels and routers measure, as Prometheus has them (without ``_total``); see docs/signals.md."""

from __future__ import annotations

# Levels.
STEP = "specrouter_level_step_seconds"
ROWS = "specrouter_level_step_rows"
SEQUENCES = "specrouter_level_step_sequences"
QUEUE = "specrouter_level_queue_seconds"
BUSY = "specrouter_level_busy_seconds"
CALLS = "specrouter_level_calls"
FED = "specrouter_level_tokens_fed"
PROPOSALS = "specrouter_level_proposals"
HELD = "specrouter_level_sequences_held"
COST = "specrouter_level_step_cost_seconds"

# Routers.
TOKENS = "specrouter_tokens"
ROUND = "specrouter_round_seconds"
REQUESTS = "specrouter_requests"
PROMPT = "specrouter_prompt_tokens"
LENGTH = "specrouter_generated_tokens"
RUNNING = "specrouter_sequences"
AGREEMENT = "specrouter_agreement"
TPOT = "gen_ai_server_time_per_output_token_seconds"
TTFT = "gen_ai_server_time_to_first_token_seconds"

READ = frozenset(
    {STEP, ROWS, SEQUENCES, QUEUE, BUSY, CALLS, FED, PROPOSALS, HELD, COST}
    | {TOKENS, ROUND, REQUESTS, PROMPT, LENGTH, RUNNING, AGREEMENT, TPOT, TTFT}
)
FAULTS = frozenset({"internal", "expired"})  # outcomes of calls that are the level's fault
