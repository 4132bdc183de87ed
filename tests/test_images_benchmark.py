"""The page of speed has what the replay's benchmark measured, and a million transitions fit into 8 GB."""

import json
import re
from pathlib import Path

import pytest

from experiments.benchmarks.images_benchmark import bytes_of

ROOT = Path(__file__).parent.parent
MEASURED = json.loads((ROOT / "experiments/results/images_benchmark-cpu.json").read_text())


def test_the_page_has_what_was_measured():
    text = (ROOT / "docs/results/speed.md").read_text()
    text = text[text.index("## Images") : text.index("## Clients")]
    rows = re.findall(r"^\| [^|]+ \| ([\d.,]+) \| ([\d.,]+) \| ([\d.]+)x \|$", text, re.M)
    found = [tuple(float(x.replace(",", "")) for x in row) for row in rows]
    names = ("bytes", "add_microseconds", "sample_microseconds")
    pairs = [tuple(MEASURED[f"{name}_{kind}"] for kind in ("frames", "stacks")) for name in names]
    pairs.append(tuple(MEASURED[f"gradient_milliseconds_{kind}"] for kind in ("products", "xla")))
    ratios = [pairs[0][0] / pairs[0][1], *(MEASURED[f"{kind}_frames_over_stacks"] for kind in ("add", "sample"))]
    ratios.append(MEASURED["gradient_products_over_xla"])
    assert len(found) == 4
    for (frames, stacks, shown), pair, ratio in zip(found, pairs, ratios, strict=True):
        assert (frames, stacks) == pytest.approx(pair, rel=0.02)
        assert shown == round(ratio, 2)


def test_the_bytes_are_those_of_today():
    assert bytes_of("frames") == MEASURED["bytes_frames"] <= 7_200
    assert bytes_of("stacks") == MEASURED["bytes_stacks"]
