"""The ``specrouter`` command."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from specrouter_local import advice, launch, models, scenario, screen, simulation, state, weights
from specrouter_local import demo as demonstration
from specrouter_local import drain as draining
from specrouter_local.chat import Talk
from specrouter_local.client import Answer, Router, Settings
from specrouter_local.decisions import decisions
from specrouter_local.errors import UserError

app = typer.Typer(
    help="Exact text of the largest model of a family, sooner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Model weights on this machine.", no_args_is_help=True)
app.add_typer(models_app, name="models")
console = Console()


class BuiltIn(StrEnum):
    """The families that come with the command."""

    DEMO = "demo"
    STUB = "stub"


class Pullable(StrEnum):
    """What can be pulled."""

    DEMO = "demo"


NameOption = Annotated[str | None, typer.Option("--name", help="Which mesh, when several are up.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of an answer at most.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, max=2.0, help="0: the likeliest token always.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Same seed, same text. Default: drawn.")]
Chain = Annotated[str, typer.Option("--chain", metavar="LEVEL,...", help="Levels to use, lowest first, target last.")]


@models_app.command("pull")
def pull(what: Annotated[Pullable, typer.Argument(help="Which weights.")]) -> None:
    """Fetch, check and convert the demo's weights (93 MB to download, 540 MB on disk). Quick when they are there."""
    with screen.pull_bar(console) as progress:
        directory = models.pull(progress)
    console.print(f"{what.value}: {directory}", highlight=False, soft_wrap=True)


@app.command()
def up(
    *,
    family: Annotated[Path | None, typer.Option("--family", help="Family file; else a built-in family.")] = None,
    engine: Annotated[BuiltIn, typer.Option("--engine", help="stub: no weights, for trying things.")] = BuiltIn.DEMO,
    redis_url: Annotated[
        str | None, typer.Option("--redis-url", envvar="SPECROUTER_REDIS_URL", help="Else one is started here.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="OpenAI API; 0 takes any free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option("--grpc-port", min=0, max=65535, help="gRPC; 0 takes any free.")] = 8001,
    routers: Annotated[int, typer.Option("--routers", min=1, max=8, help="The others take any free ports.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is ready.")] = False,
) -> None:
    """Start the levels, the router and Redis as processes here; Ctrl-C ends them."""
    wanted = launch.Wanted(family, engine.value, redis_url, port, grpc_port, routers)
    placed = launch.prepare(console, wanted)
    if not detach:
        raise typer.Exit(launch.up(console, placed, wanted))
    launcher = launch.Launcher(placed.name, wanted, tied=False)
    try:
        mesh = launcher.wait(console)
    except (KeyboardInterrupt, UserError):
        launcher.end()
        raise
    console.print(screen.addresses(mesh), highlight=False, soft_wrap=True)


@app.command()
def down(name: NameOption = None) -> None:
    """End a mesh."""
    run, mesh = state.find(name)
    launch.down(run, mesh)
    console.print(f"{run.name} is down", highlight=False)


@app.command()
def drain(
    part: Annotated[str, typer.Argument(help="As status names it; or a level, or router: all of them.")],
    name: NameOption = None,
) -> None:
    """Have a router or a replica hand its work over and start anew; several one after the other."""
    run, mesh = state.find(name)
    with console.status(f"draining {part}"):
        for done in draining.drain(run, mesh, part):
            said = f"{done.name}: handed over in {done.ended:.1f} s, back after {done.back:.1f} s"
            console.print(said, highlight=False)


@app.command()
def status(name: NameOption = None) -> None:
    """Show the parts of a mesh and what its levels are."""
    run, mesh = state.find(name)
    console.print(f"{run.name}: {mesh.phase}, up for {screen.duration(time.time() - mesh.started)}", highlight=False)
    console.print(screen.process_table(mesh))
    console.print(f"  logs: {run.directory}", highlight=False, soft_wrap=True)
    router = Router(mesh.router)
    try:
        seen = router.status()
    finally:
        router.close()
    chain = seen["chain"]
    console.print(screen.level_table(seen["levels"]))
    if (replicas := screen.replica_table(seen["levels"])) is not None:
        console.print(replicas)
    if seen["adaptive"] is not None:
        console.print(decisions(seen["adaptive"], chain["levels"]))
        how = f"adaptive, {chain['mode']}"
    else:
        windows = ", ".join(f"{level} {chain['windows'][level]}" for level in chain["levels"])
        how = f"{chain['mode']}, windows {windows}, lookahead {chain['lookahead']}"
    console.print(
        f"  chain: {how}; {seen['sequences']} sequences running; redis {seen['redis']}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def chat(
    name: NameOption = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    seed: Seed = None,
    chain: Chain = "",
) -> None:
    """Talk with the model; the text comes in the colours of the levels."""
    _, mesh = state.find(name)
    router = Router(mesh.router)
    try:
        settings = Settings(mesh.name, max_tokens, temperature, seed, _levels(chain))
        Talk(console, router, mesh.levels).loop(settings)
    finally:
        router.close()


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the user says.")],
    *,
    name: NameOption = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    chain: Chain = "",
    as_json: Annotated[bool, typer.Option("--json", help="Text, tokens and account as one JSON object.")] = False,
) -> None:
    """Answer one prompt: in colours on a terminal, as plain text elsewhere."""
    _, mesh = state.find(name)
    router = Router(mesh.router)
    settings = Settings(mesh.name, max_tokens, temperature, seed, _levels(chain))
    messages = [{"role": "user", "content": prompt}]
    answer = Answer()
    try:
        if console.is_terminal and not as_json:
            Talk(console, router, mesh.levels).say(settings, messages)
            return
        for piece in router.chat(settings, messages, answer):
            if not as_json:
                typer.echo(piece.text, nl=False)
        typer.echo(json.dumps(_plain(answer)) if as_json else "")
    finally:
        router.close()


@app.command()
def demo() -> None:
    """Show a chain of three levels answer exactly as the target alone, and sooner."""
    wanted = launch.Wanted(None, BuiltIn.DEMO.value, None, 0, 0)
    family = launch.prepare(console, wanted)
    if state.Run(family.name).alive():
        _, mesh = state.find(family.name)
        same = demonstration.play(console, mesh)
    else:
        launcher = launch.Launcher(family.name, wanted, tied=True)
        try:
            same = demonstration.play(console, launcher.wait(console))
        finally:
            launcher.end()
    if not same:
        raise UserError("the texts differ: this must not happen, please report it")


@app.command()
def simulate(
    file: Annotated[Path | None, typer.Argument(help="Levels and arrivals as YAML.")] = None,
    *,
    family: Annotated[BuiltIn | None, typer.Option("--family", help="A built-in family, all at once.")] = None,
    chain_plan: Annotated[
        str, typer.Option("--plan", help="adaptive, or fixed:draft=4,target=8[,lookahead=16][,mode=lockstep].")
    ] = "adaptive",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Run levels that are only described, in simulated time: speed, first token, goodput, what is in use."""
    if (file is None) == (family is None):
        raise UserError("FILE or --family is needed, and only one of them")
    wanted = scenario.load(file) if file else scenario.of_family(weights.built_in(family.value if family else ""))
    result = simulation.run(wanted, chain_plan)
    if as_json:
        typer.echo(json.dumps(result.plain(), indent=2))
    else:
        simulation.show(console, result)


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="Levels with prices, and the load, as YAML.")],
    *,
    svg: Annotated[Path | None, typer.Option("--svg", help="Write cost over time per token as a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say which chain and how many replicas carry a load, and what a token costs."""
    wanted = scenario.load(file)
    with Console(stderr=True).status("searching, and trying the best in the simulator"):
        plans = advice.make(wanted)
    if svg is not None:
        svg.write_text(plans.svg(), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(plans.plain(), indent=2))
    else:
        advice.show(console, plans)


@app.command("explain-policy")
def explain_policy(
    name: Annotated[str, typer.Argument(help="The RoutingPolicy in the cluster.")],
    *,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Its namespace.")] = "default",
    kubeconfig: Annotated[str | None, typer.Option("--kubeconfig", help="Default: as kubectl has it.")] = None,
) -> None:
    """Say what a policy in a cluster came to, and why: weights, replicas, conditions."""
    try:
        from specrouter_operator import scripts as operator  # noqa: PLC0415  # only where its extra is installed
    except ImportError as error:
        raise UserError(f"this needs the operator's packages: pip install 'specrouter[operator]' ({error})") from error
    operator.explain_policy(name, namespace=namespace, kubeconfig=kubeconfig)


def _levels(chain: str) -> tuple[str, ...]:
    return tuple(level.strip() for level in chain.split(",") if level.strip())


def _plain(answer: Answer) -> dict[str, object]:
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "origins": answer.origins,
        "finish_reason": answer.finish,
        "usage": answer.usage,
        "seed": answer.seed,
        "report": answer.report,
        "seconds": round(answer.seconds, 4),
    }


def main() -> None:
    """Runs the command; what the user can act on is shown without a traceback."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(Text(str(error), style="red"), soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
