"""``specrouter simulate`` and ``plan``: files in, tables, JSON and a picture out; faults named by field."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from specrouter_local import plot, scenario
from specrouter_local.errors import UserError
from specrouter_local.scripts import app

FILE = """
levels:
  - {name: draft, step_ms: "1:2.5,64:3,512:10", agreement: 0.65, price: 1.0, slots: 256}
  - {name: target, step_ms: "1:35,16:37,64:60,512:400", price: 4.0, replicas: 2}
arrivals: {requests: 12, rate: 4, tokens: [16, 32], prompt: 20, mix: [{share: 1}, {share: 1, ease: -0.1}]}
routers: 2
objective_ms: 40
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(FILE)
    return path


def ran(*argv: str) -> str:
    result = CliRunner().invoke(app, list(argv), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_simulate_adaptive_and_fixed(file: Path) -> None:
    found = json.loads(ran("simulate", str(file), "--json"))
    assert found["requests"] == 12 and 12 * 16 <= found["tokens"] <= 12 * 32
    assert found["ms_per_token_p50"] <= found["ms_per_token_p99"] and 0 < found["utilisation"]["target"] <= 1
    assert sum(found["chains"].values()) == pytest.approx(1, abs=0.001)
    fixed = json.loads(ran("simulate", str(file), "--json", "--plan", "fixed:target=8"))
    assert fixed["chains"] == {"target": 1.0} and fixed["switches_per_100_rounds"] == 0
    assert 35 < fixed["ms_per_token_mean"] < 50 and fixed["kept"] == 1
    assert ran("simulate", str(file), "--json") == ran("simulate", str(file), "--json")


def test_simulate_a_built_in_family_as_tables() -> None:
    said = ran("simulate", "--family", "stub", "--plan", "fixed:draft=4,target=8,lookahead=12,mode=lockstep")
    assert "draft > target" in said and "goodput" in said and "ms per token" in said


def test_plan_says_chain_replicas_and_cost(file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    found = json.loads(ran("plan", str(file), "--json", "--svg", str(picture)))
    best = found["chains"][0]
    assert best["keeps_objective"] and best["ms_per_token_simulated"] <= 40
    assert best["cost_per_hour"] == sum({"draft": 1, "target": 4}[n] * r for n, r in best["replicas"].items())
    assert found["frontier"]
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")  # noqa: S314  # written here
    said = ran("plan", str(file))
    assert "cost/1M" in said and "requests/s" in said


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("rate: 4", "rate: -4", "arrivals.rate"),
        ('"1:35,16:37,64:60,512:400"', '"1:x"', "levels.1.step_ms"),
        ('"1:35,16:37,64:60,512:400"', '"0"', "levels.1.step_ms"),
        ("price: 4.0, replicas", "price: 4.0, replica", "levels.1.replica"),
        ("name: target", "name: draft", "levels.1.name"),
        ("price: 4.0", "price: 4.0, agreement: 0.9", "levels.1.agreement"),
        ("[16, 32]", "[32, 16]", "tokens"),
        ("objective_ms: 40", "objective_ms: 0", "objective_ms"),
    ],
)
def test_faults_are_named(file: Path, old: str, new: str, field: str) -> None:
    assert old in FILE
    file.write_text(FILE.replace(old, new))
    with pytest.raises(UserError, match=f"{file}: {field}: "):
        scenario.load(file)


@pytest.mark.parametrize("text", ["fast", "fixed:", "fixed:draft=4", "fixed:mid=4,target=8", "fixed:target=99"])
def test_a_plan_that_makes_no_sense_is_refused(file: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"^--plan: "):
        ran("simulate", str(file), "--plan", text)


def test_a_plan_needs_a_rate_and_simulate_one_source(file: Path) -> None:
    file.write_text(FILE.replace("rate: 4, ", ""))
    with pytest.raises(UserError, match=r"arrivals\.rate"):
        ran("plan", str(file))
    with pytest.raises(UserError, match="--family"):
        ran("simulate")


def test_a_picture_escapes_its_words() -> None:
    text = plot.line([plot.Point(3, 4, "a < b"), plot.Point(1, 20, "c")], title="x & y", x="x", y="y")
    words = [e.text for e in ET.fromstring(text).iter() if e.text]  # noqa: S314  # written here
    assert "a < b" in words and "x & y" in words and "20" in words
    with pytest.raises(ValueError, match="points"):
        plot.line([], title="", x="", y="")
