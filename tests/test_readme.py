"""Numbers in README.md are those of the committed results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def table(heading):
    """Cells of the rows of the first table after a text, its header and ruler left out."""
    lines = README.split(heading, 1)[1].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = [line.strip("|").split("|") for line in lines[first:] if line.startswith("|") or not line]
    rows = rows[: rows.index([""])] if [""] in rows else rows
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.fixture(scope="module")
def benchmark():
    return json.loads((ROOT / "experiments/results/benchmark-cpu.json").read_text())


def test_speed(benchmark):
    shown = {
        "iteration_over_floor": "{:.2f}x",
        "pmap_over_jit": "{:.3f}x",
        "sixteen_seeds_over_one": "{:.2f}x",
        "compile_cartpole_over_floor": "{:.1f}x",
        "compile_breakout_over_floor": "{:.1f}x",
        "replay_breakout_over_floor": "{:.2f}x",
    }
    rows = table("## How fast")
    assert [row[1].split()[0] for row in rows] == [form.format(benchmark[name]) for name, form in shown.items()]
    beside = [
        ("iteration_microseconds", "{:.0f} against"),
        ("floor_microseconds", "{:.0f} us"),
        ("compile_seconds_cartpole", "{:.1f} s"),
    ]
    beside += [("compile_seconds_breakout", "{:.1f} s"), ("bytes_per_transition_breakout", "({:.0f})")]
    assert all(form.format(benchmark[name]) in " ".join(row[1] for row in rows) for name, form in beside)
    rates = [f"{rate:,.0f}" for name, rate in benchmark.items() if name.startswith("frames_per_second")]
    section = README.split("## How fast")[1].split("\n## ")[0]
    assert re.findall(r"\| (\d+,\d{3})(?= \|)", section) == rates


def test_faults():
    faults = json.loads((ROOT / "experiments/results/faults.json").read_text())
    assert faults["differences"] == 0
    drivers = {"data-parallel": "data_parallel", "federated": "federated", "parameter server, modelled": "server"}
    drivers["data-parallel, two processes"] = "hosts"
    columns = [("kill", "hit"), ("kill", "hit before the first checkpoint"), ("kill", "hit while saving"), ("signal", "hit")]
    columns += [("damage", name) for name in ("resumed", "named, resumed from the one before", "refused, none was left")]
    columns += [("damage", "in an older one, not read")]
    expected = [
        [name, *(str(faults["drivers"][driver][fault].get(what, 0)) for fault, what in columns)]
        for name, driver in drivers.items()
    ]
    assert table("`make faults` kills") == expected


def test_test_times():
    kept = json.loads((ROOT / "experiments/results/test_times.json").read_text())
    shown = {
        name: f"{runs['seconds'] // 60} min {runs['seconds'] % 60} s" for name, runs in kept.items() if name.startswith("make")
    }
    text = " ".join(README.split("Test time, cache cold")[1].split("`make faults`")[0].split())
    cold, check, warm = (shown[name] for name in ("make test, cache cold", "make check, cache cold", "make check"))
    assert f"`make test` {cold}; `make check` {check}, and {warm} where programs are compiled already" in text
