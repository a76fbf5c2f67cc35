"""The demo family's chains against the target alone, and against transformers, in one run on one machine.

Through the mesh (real processes, HTTP, Redis): the target alone, two levels (mid > target), and three (draft > mid >
target).
In this process: transformers `generate` on the same float32 weights, and its assisted generation with the
same drafts (the int4 copy as assistant; prompt lookup). All greedy, so all texts must be equal.

ms per token = whole request over tokens generated, prompt included; of the repeats the fastest counts, for every
contestant alike, since other work on the machine only ever adds. The contestants take turns within each repeat.

    .venv/bin/python benchmarks/chain.py [--tokens 96] [--repeats 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

import results
from prompts import LONG, SHORT
from specrouter_level import quantize
from specrouter_local.client import Answer, Router, Settings
from specrouter_local.launch import Launcher, Wanted, prepare

Run = Callable[[str, int], tuple[list[int], float]]  # prompt, tokens -> (ids, seconds)


def through_mesh(router: Router, model: str, chain: tuple[str, ...], accounts: dict[str, dict[str, Any]]) -> Run:
    """A contestant that asks the router for a chain, and keeps each prompt's account."""

    def run(prompt: str, tokens: int) -> tuple[list[int], float]:
        answer = Answer()
        settings = Settings(model, tokens, temperature=0.0, seed=1, chain=chain)
        list(router.chat(settings, [{"role": "user", "content": prompt}], answer))
        accounts[prompt] = answer.report or {}
        return answer.tokens, answer.seconds

    return run


def in_process(model: Any, tokenizer: Any, **extra: Any) -> Run:
    """A contestant that is transformers' generate with the given extras."""

    def run(prompt: str, tokens: int) -> tuple[list[int], float]:
        begin = time.perf_counter()
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **extra)
        return out[0, inputs["input_ids"].shape[1] :].tolist(), time.perf_counter() - begin

    return run


def assistant(directory: Path) -> Any:
    """The int4 copy, as the mid level makes it, as a model for transformers' assisted generation."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    kind = quantize.best("int4", torch.device("cpu"))
    quantize.replace_linears(model, kind, model.get_output_embeddings())
    return model.to(torch.bfloat16)


def accepted_by_level(accounts: dict[str, dict[str, Any]]) -> str:
    """Proposals that the levels above the lowest took, over all prompts."""
    taken: dict[str, list[int]] = {}
    for account in accounts.values():
        for level in account.get("levels", [])[1:]:
            counts = taken.setdefault(level["level"], [0, 0])
            counts[0] += level["accepted"]
            counts[1] += level["offered"]
    return ", ".join(f"{name} {a}/{o}" for name, (a, o) in taken.items() if o)


def measure(
    contestants: dict[str, Run], prompts: tuple[str, ...], tokens: int, repeats: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[int]]]]:
    """Per contestant and prompt: the fastest ms per token, and the ids."""
    best: dict[str, dict[str, float]] = {name: {} for name in contestants}
    texts: dict[str, dict[str, list[int]]] = {name: {} for name in contestants}
    for _ in track(range(repeats), description="repeats"):
        for prompt in prompts:
            for name, run in contestants.items():
                ids, seconds = run(prompt, tokens)
                ms = 1000 * seconds / max(len(ids), 1)
                best[name][prompt] = min(ms, best[name].get(prompt, ms))
                texts[name][prompt] = ids
    return best, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    console = Console(stderr=True)
    wanted = Wanted(family=None, engine="demo", redis_url=None, port=0, grpc_port=0)
    family = prepare(console, wanted)
    launcher = Launcher(family.name, wanted, tied=True)
    try:
        state = launcher.wait(console)
        router = Router(state.router)
        assert family.target.model is not None, "the demo family has weights"
        directory = Path(family.target.model)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
        small = assistant(directory)
        accounts: dict[str, dict[str, dict[str, Any]]] = {"alone": {}, "chain2": {}, "chain3": {}}
        levels = state.levels
        contestants: dict[str, Run] = {
            "alone": through_mesh(router, state.name, tuple(levels[-1:]), accounts["alone"]),
            "chain2": through_mesh(router, state.name, tuple(levels[-2:]), accounts["chain2"]),
            "chain3": through_mesh(router, state.name, tuple(levels), accounts["chain3"]),
            "generate": in_process(model, tokenizer),
            "assisted": in_process(model, tokenizer, assistant_model=small),
            "prompt lookup": in_process(model, tokenizer, prompt_lookup_num_tokens=4),
        }
        for run in contestants.values():  # the first request to each pays for things that stay
            run("Say hello.", 8)
        report(contestants, accounts, args.tokens, args.repeats)
    finally:
        launcher.end()


def report(contestants: dict[str, Run], accounts: dict[str, dict[str, Any]], tokens: int, repeats: int) -> None:
    """Measure both kinds of prompt, print the table, write the JSON."""
    rows, mean, identical = [], {}, True
    for kind, prompts in (("short", SHORT), ("long", LONG)):
        for account in accounts.values():
            account.clear()
        best, texts = measure(contestants, prompts, tokens, repeats)
        for name in contestants:
            same = all(texts[name][p] == texts["generate"][p] for p in prompts)
            identical = identical and (same or name not in accounts)
            mean[name, kind] = statistics.mean(best[name].values())
            rows.append(
                {
                    "prompts": kind,
                    "contestant": name,
                    "ms_per_token": round(mean[name, kind], 2),
                    "vs_alone": round(mean["alone", kind] / mean[name, kind], 3),
                    "text_as_generate": same,
                    "accepted": accepted_by_level(accounts.get(name, {})),
                }
            )

    def over_both(name: str) -> float:
        return mean[name, "short"] + mean[name, "long"]

    summary = {
        "identical": float(identical),
        "chain3_vs_alone_short": mean["alone", "short"] / mean["chain3", "short"],
        "chain3_vs_alone_long": mean["alone", "long"] / mean["chain3", "long"],
        "chain2_vs_alone_short": mean["alone", "short"] / mean["chain2", "short"],
        "alone_vs_generate": over_both("alone") / over_both("generate"),
        "chain3_vs_assisted": min(over_both("assisted"), over_both("prompt lookup")) / over_both("chain3"),
    }
    results.write("chain", rows, {name: round(value, 3) for name, value in summary.items()})


if __name__ == "__main__":
    main()
