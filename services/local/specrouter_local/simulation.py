"""``specrouter simulate``: a scenario in simulated time, and what came of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from specrouter_core.adaptive import Adaptive, Member
from specrouter_core.adaptive_policy import AdaptivePolicy
from specrouter_core.chain import Plan
from specrouter_core.profile import POINTS
from specrouter_core.simulator import Policy, Simulator
from specrouter_core.workload import Summary
from specrouter_local.errors import UserError
from specrouter_local.scenario import Scenario

FIXED = re.compile(r"([a-z0-9-]+)=(\w+)")
LOOKAHEAD = 16


@dataclass(frozen=True, slots=True)
class Result:
    """A run."""

    scenario: Scenario
    plan: str
    summary: Summary
    utilisation: dict[str, float]  # share of its replicas' time that a level spent in steps

    def plain(self) -> dict[str, Any]:
        """For JSON; milliseconds, tokens a second, shares."""
        s = self.summary
        return {
            "plan": self.plan,
            "requests": s.requests,
            "tokens": s.tokens,
            "seconds": round(s.seconds, 3),
            "ms_per_token_mean": round(1000 * s.per_token_mean, 3),
            "ms_per_token_p50": round(1000 * s.per_token_p50, 3),
            "ms_per_token_p99": round(1000 * s.per_token_p99, 3),
            "first_token_ms_p50": round(1000 * s.to_first_p50, 3),
            "first_token_ms_p99": round(1000 * s.to_first_p99, 3),
            "goodput": round(s.goodput, 3),
            "kept": round(s.kept, 4),
            "utilisation": {name: round(share, 4) for name, share in self.utilisation.items()},
            "chains": {" > ".join(chain): round(share, 4) for chain, share in s.chains.items()},
            "switches_per_100_rounds": round(s.switches, 3),
        }


def parsed(text: str, scenario: Scenario) -> Plan | None:
    """The plan of "fixed:draft=4,target=8[,lookahead=16][,mode=lockstep]"; None for "adaptive". Raises UserError."""
    if text == "adaptive":
        return None
    if not text.startswith("fixed:"):
        raise UserError(f"--plan: must be adaptive or fixed:LEVEL=WINDOW,..., got {text!r}")
    names = [level.name for level in scenario.levels]
    windows: dict[str, int] = {}
    lookahead, overlapped = LOOKAHEAD, True
    for part in text.removeprefix("fixed:").split(","):
        match = FIXED.fullmatch(part.strip())
        if match is None:
            raise UserError(f"--plan: must be LEVEL=WINDOW, got {part!r}")
        key, value = match.groups()
        if key == "mode" and value in ("overlapped", "lockstep"):
            overlapped = value == "overlapped"
        elif not value.isdecimal():
            raise UserError(f"--plan: {key} must be a number, got {value!r}")
        elif key == "lookahead":
            lookahead = int(value)
        elif key in names:
            windows[key] = int(value)
        else:
            raise UserError(f"--plan: no level is named {key!r} (levels: {', '.join(names)})")
    if names[-1] not in windows:
        raise UserError(f"--plan: must end in the target, {names[-1]!r}")
    levels = tuple(name for name in names if name in windows)
    try:
        return Plan(levels, tuple(windows[name] for name in levels), lookahead, overlapped)
    except ValueError as error:
        raise UserError(f"--plan: {error}") from error


def run(scenario: Scenario, plan: str) -> Result:
    """Simulates. Raises UserError."""
    fixed = parsed(plan, scenario)
    levels = scenario.sim_levels()
    members = [Member(x.name, {n: x.curve.seconds(n) for n in POINTS}, x.replicas) for x in levels]
    policy = Policy(fixed) if fixed else AdaptivePolicy(lambda: Adaptive(members), scenario.routers)
    simulator = Simulator(
        levels,
        policy,
        hop=scenario.hop_ms / 1000,
        seed=scenario.seed,
        routers=scenario.routers,
        router_seconds=scenario.router_us / 1e6,
    )
    outcomes = simulator.run(scenario.workload().arrivals(scenario.seed))
    return Result(scenario, plan, Summary.of(outcomes, scenario.objective), simulator.utilisation())


def show(console: Console, result: Result) -> None:
    """Two tables: the run in numbers, and its levels and chains."""
    s = result.summary
    table = Table("", "mean", "p50", "p99", title=f"{s.requests} requests, {result.plan}", title_justify="left")
    table.add_row("ms per token", _ms(s.per_token_mean), _ms(s.per_token_p50), _ms(s.per_token_p99))
    table.add_row("first token, ms", "", _ms(s.to_first_p50), _ms(s.to_first_p99))
    console.print(table)
    levels = Table("level", "replicas", "in steps", title=None)
    for level in result.scenario.levels:
        levels.add_row(level.name, str(level.replicas), f"{result.utilisation[level.name]:.0%}")
    console.print(levels)
    chains = Table("chain", "tokens")
    for chain, share in s.chains.items():
        chains.add_row(" > ".join(chain), f"{share:.1%}")
    console.print(chains)
    objective = result.scenario.objective_ms
    kept = f", {s.kept:.1%} of requests within {objective:g} ms a token" if objective else ""
    console.print(
        f"  {s.tokens} tokens in {s.seconds:.1f} simulated seconds; goodput {s.goodput:.1f} tokens/s{kept}; "
        f"{s.switches:.2f} changes of chain per 100 rounds",
        highlight=False,
        soft_wrap=True,
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"
