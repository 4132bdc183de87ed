"""Numbers in README.md and docs/ are those of the committed results, and what they link to or run is there."""

import csv
import io
import json
import re
import statistics
from pathlib import Path

import federated_table
import numpy as np
import pytest
from rich.console import Console

import dqn_jax
from dqn_jax.runner.progress import Display, describe_end
from dqn_jax.runner.statistics import bootstrap_ci95

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments/results"
DOCS = ROOT / "docs"
PAGES = sorted(page for page in (DOCS / "results").glob("*.md") if page.name != "README.md")
TEXTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# Where a page has a file of its own name but another extension or place.
SOURCES = {
    "scoreboard": "scoreboard/origins.json",
    "ingredients": "ingredients/origins.json",
    "arcade": "arcade/origins.json",
    "image_clients": "image_clients/origins.json",
    "quickstart": "quickstart/summary.json",
    "federated_comparison": "federated/comparison.json",
    "speed": "benchmark-cpu.json",
}


def text_of(page):
    """A page of results."""
    return (DOCS / "results" / f"{page}.md").read_text()


def prose_of(page):
    """The same in one line, as its sentences are wrapped."""
    return " ".join(text_of(page).split())


def kept(name):
    """A committed result."""
    return json.loads((RESULTS / name).read_text())


def rows_of(name):
    """Rows of a committed table."""
    with open(RESULTS / name, newline="") as file:
        return list(csv.DictReader(file))


def table(text, after=""):
    """Cells of the rows of the first table after a string, its header and ruler left out."""
    lines = text.split(after, 1)[1].splitlines() if after else text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[2:]


def interval(mean, ci95, digits=1):
    """A mean with its interval, as tables have it."""
    low, high = ci95
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference_of(values, others, digits=1):
    """The mean difference with its interval, paired seed by seed."""
    difference = np.array(values, float) - np.array(others, float)
    return interval(difference.mean(), bootstrap_ci95(difference), digits)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links(path):
    """Every relative link points to a file, and to a heading of it where it names one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", found.read_text(), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_scripts(path):
    """Every script that is run exists, also where another program is given it."""
    for script in re.findall(r"(?:experiments|tests|tools)/[\w/]+\.py", path.read_text()):
        assert (ROOT / script).exists(), f"{path.name} runs {script}"


def test_every_doc_is_linked_from_the_readme():
    linked = re.findall(r"\]\((docs/[^)]+)\)", (ROOT / "README.md").read_text())
    pages = {str(path.relative_to(ROOT)) for path in TEXTS if path != ROOT / "README.md"} - {"docs/results/quickstart.md"}
    assert pages <= set(linked)
    index = re.findall(r"\]\((\w+)\.md\)", (DOCS / "results/README.md").read_text())
    assert sorted(index) == [page.stem for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_says_where_it_comes_from(page):
    """The date is that of its file, the command names the script that the file names, wherever that is now."""
    text = page.read_text()
    parts = ["**Question.**", *(f"- {name}: " for name in ("Command", "Seeds", "Hardware", "Date", "Raw data"))]
    assert [part for part in [*parts, "## What it does not show"] if part not in text] == []
    result = kept(SOURCES.get(page.stem, f"{page.stem}.json"))
    for origin in result if isinstance(result, list) else [result.get("origin", result)]:
        if "command" not in origin:
            continue
        assert re.search("- Date: (.*)", text)[1] == origin["date"]
        script = Path(origin["command"].split()[1]).name.replace("federated.py", "federated_comparison.py")
        assert f"/{script}" in text.split("- Command: ")[1].split("- Seeds: ")[0]


def test_citation():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert {"cff-version: 1.2.0", "type: software", "license: Apache-2.0", f"version: {dqn_jax.__version__}"} <= set(lines)


def test_quickstart():
    summary, lines = kept("quickstart/summary.json"), (RESULTS / "quickstart/metrics.jsonl").read_text().splitlines()
    printed = io.StringIO()
    display = Display(summary["frames_per_seed"], 0, "frames", Console(file=printed))
    for line in map(json.loads, lines):
        display.update(line)
    display.say(describe_end(summary, Path("runs/quickstart")))
    assert text_of("quickstart").split("```")[1].splitlines()[2:] == printed.getvalue().splitlines()
    finals = summary["final_returns"]
    seeds = ", ".join(f"{value:.0f}" for value in finals)
    assert f"mean return {statistics.mean(finals):.1f}, seeds {seeds}." in text_of("quickstart")
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"took {summary['wall_seconds']:.0f} s with compilation" in readme
    assert f"{summary['wall_seconds']:.0f} s including compilation" in text_of("quickstart")
    assert f"every seed ended at a greedy return of {min(finals):.0f}" in readme
    assert max(finals) == min(finals)


def test_reference():
    result = kept("reference.json")
    returns, published = result["returns"], result["published"]
    assert table(text_of("reference")) == [
        ["CleanRL, published", "{mean} +- {std}".format(**published), str(published["seeds"])],
        [
            "here",
            f"{result['mean']:.1f} +- {result['std']:.1f} (median {statistics.median(returns):.1f})",
            str(len(returns)),
        ],
    ]
    assert (
        f"ended at {min(returns):.1f}, and {sum(value > 498 for value in returns)} of the {len(returns)} above 498"
        in prose_of("reference")
    )


def test_scaling():
    arms = {}
    for row in rows_of("scaling.csv"):
        arms.setdefault((row["arm"], row["devices"], row["learning_rate"]), []).append(row)

    def median(rows, column):
        return statistics.median(float(row[column]) for row in rows)

    expected = [
        [
            arm,
            devices,
            f"{float(rate):.3g}",
            *(f"{median(rows, column):,.0f}" for column in ("frames", "updates")),
            f"{median(rows, 'seconds'):.1f}",
            str(sum(row["reached"] == "True" for row in rows)),
        ]
        for (arm, devices, rate), rows in arms.items()
    ]
    assert table(text_of("scaling")) == expected
    reached, seeds = sum(int(row[-1]) for row in expected), sum(map(len, arms.values()))
    prose = prose_of("scaling")
    assert f"{reached} of the {seeds} seeds got there" in prose
    # The order of the table's rows.
    one, fixed_2, fixed_4, *two, same_4, sqrt_4, all_4 = arms.values()
    same_2, *multiplied_2 = two

    def less(rows, others, column, digits=1):
        assert [row["seed"] for row in rows] == [row["seed"] for row in others]
        thousands = ([float(row[column]) / 1000 for row in own] for own in (rows, others))
        return difference_of(*thousands, digits)

    fixed = [less(rows, one, "updates") for rows in (fixed_2, fixed_4)]
    assert "{} updates on 2 and {} on 4, so no difference shows".format(*fixed) in prose
    frames = [less(rows, one, "frames", 0) for rows in (same_2, same_4)]
    assert "more frames than one: by {} on 2 and by {} on 4".format(*frames) in prose
    assert f"fewer updates than one, by {less(one, same_4, 'updates')}; with two, {less(one, same_2, 'updates')} fewer" in prose
    for same, others in ((same_2, multiplied_2), (same_4, [sqrt_4, all_4])):
        assert all("[-" in less(same, rows, "updates") for rows in others)
    assert min(median(rows, "seconds") for rows in (*two, same_4, sqrt_4, all_4)) > median(one, "seconds")


def test_staleness():
    import staleness

    def name_of(arm):
        kind, workers = arm.split(", ") if ", " in arm else (arm, "")
        remedies = {"drop beyond W": f"drop beyond a lag of {workers}", "scale by lag": "divide by 1 + lag"}
        return f"asynchronous, {workers}, {remedies[kind]}" if kind in remedies else arm

    rows = staleness.read()
    lines = {line["arm"]: line for line in staleness.table_of(rows) if line["rates"] == "tuned"}
    expected = {
        name_of(arm): [
            f"{line['learning_rate']:g}",
            f"{line['area']:.0f}",
            interval(line["difference"], line["ci95"], 0) if line["difference"] else "",
            f"{line['last']:.0f}",
            f"{line['lag']:.1f}" if line["lag"] else "0",
            f"{line['updates']:,.0f}",
            f"{line['virtual_time']:,.0f}",
        ]
        for arm, line in lines.items()
    }
    assert {name: cells for name, *cells in table(text_of("staleness"))} == expected
    for arm, other, before in (
        ("asynchronous, 16", "barrier, 16", "above a barrier by "),
        ("asynchronous, 16", "drop beyond W, 16", "above dropping by "),
        ("asynchronous, 16", "bounded, 16", "above the bounded server, "),
        ("asynchronous, 16", "scale by lag, 16", "above shrinking, "),
        ("asynchronous, 64", "scale by lag, 64", "better than shrinking by "),
        ("asynchronous, 64", "drop beyond W, 64", "no difference that shows, "),
    ):
        assert before + paired(rows, arm, other) in prose_of("staleness")
    assert f"above one worker by {paired(rows, 'asynchronous, 16', 'one worker', of=-1)}." in prose_of("staleness")
    assert f"at 227: {paired(rows, 'drop beyond W, 64', 'asynchronous, 64', of=-1)}," in prose_of("staleness")
    # At one worker's rate: which of sixteen workers' arms are above which.
    arms = [f"{kind}, 16" for kind in ("asynchronous", "bounded", "barrier", "drop beyond W", "scale by lag")]
    above = {(arm, other) for arm in arms for other in arms if arm != other and is_above(rows, arm, other)}
    assert above == {(arm, other) for arm in arms[:2] for other in arms[2:]}

    last = {name: cells[3] for name, *cells in table(text_of("staleness"))}
    assert "dropping ended at {}, applying all at {}".format(
        last["asynchronous, 64, drop beyond a lag of 64"], last["asynchronous, 64"]
    ) in prose_of("staleness")
    settings = kept("staleness.json")
    assert f"{settings['frames']:,} frames of all workers" in prose_of("staleness")
    seeds = settings["reporting_seeds"], settings["tuning_seeds"]
    assert [f"- Seeds: {len(seeds[0])} ({seeds[0][0]} to {seeds[0][-1]});", f"({seeds[1][0]} to {seeds[1][-1]})"] == re.findall(
        r"- Seeds: .*?;|\(\d{4} to \d{4}\)", text_of("staleness")
    )


def returns_of(rows, arm, rates):
    """Returns [seeds, evaluations] of an arm of the study of staleness."""
    by_seed = {}
    for row in rows:
        if (row["arm"], row["rates"]) == (arm, rates):
            by_seed.setdefault(row["seed"], []).append(row["return"])
    return np.array([by_seed[seed] for seed in sorted(by_seed)])


def paired(rows, arm, other, of=slice(None)):
    """By how much one arm is above another, at their own rates: in area, or in one evaluation."""
    own, others = (returns_of(rows, name, "tuned")[:, of].reshape(8, -1).mean(axis=1) for name in (arm, other))
    return difference_of(own, others, 0)


def is_above(rows, arm, other):
    """Whether the area of one arm is shown to be larger than that of another, at the rate of one worker."""
    own, others = (returns_of(rows, name, "fixed").mean(axis=1) for name in (arm, other))
    return bootstrap_ci95(own - others)[0] > 0


def test_engines():
    runs, expected = {}, []
    for run in kept("engines.json")["runs"]:
        runs.setdefault(run["arm"].replace(", ray", ", Ray"), []).append(run)
    for arm, own in runs.items():
        finals = [run["return"] for run in own]
        pace, waits, lag = (statistics.median(run[name] for run in own) for name in ("frames_per_second", "wait_share", "lag"))
        final = f"{statistics.mean(finals):.1f} ({', '.join(f'{value:.0f}' for value in finals)})"
        expected.append([arm, final, f"{pace:,.0f}", f"{waits:.{0 if waits > 0.01 else 1}%}", f"{lag:.1f}"])
    assert table(text_of("engines")) == expected
    prose = prose_of("engines")
    server, server_on_ray, actors, actors_on_ray, shared = runs.values()

    def of(runs, name):
        return np.array([run[name] for run in runs])

    pairs = [[of(run, "frames_per_second") for run in pair] for pair in ((server, server_on_ray), (actors, actors_on_ray))]
    medians = [np.median(threads) / np.median(ray) for threads, ray in pairs]
    assert "have {:.1f} times the pace of Ray for the server and {:.1f} times for".format(*medians) in prose
    ends = [end for threads, ray in pairs for end in ((threads / ray).min(), (threads / ray).max())]
    assert "seed by seed it is {:.1f} to {:.1f} and {:.1f} to {:.1f} times".format(*ends) in prose
    slowest = max(of(own, "frames_per_second").max() / of(own, "frames_per_second").min() for own in runs.values())
    assert f"up to {slowest:.1f} times the pace of its slowest" in prose
    # Bars of two updates: 20 and 21, 10 and 11, 62 or more; all lags are multiples of five.
    on_threads, on_ray = (of(own, "lag_histogram").sum(axis=0) for own in (actors, actors_on_ray))
    shares = on_threads[10] / on_threads.sum(), *(on_ray[[5, 31]] / on_ray.sum())
    assert "threads {:.0%} of the blocks have just these 20; on Ray {:.0%} have 10, and {:.0%} have 62".format(*shares) in prose
    assert f"how they end: {difference_of(of(actors, 'return'), of(shared, 'return'))}." in prose


def test_engines_are_drawn_in_updates():
    """The histogram, as it is drawn, has the mean lag that was recorded beside it, up to the width of its bars."""
    import engines

    assert (engines.lags_of("parameter server, ray")[1], engines.lags_of("actor-learner, ray")[1]) == (1, 2)
    closed = [run for run in kept("engines.json")["runs"] if not run["lag_histogram"][-1]]
    assert {run["arm"] for run in closed} >= {"parameter server, threads", "actor-learner, threads"}
    for run in closed:
        middles, width = engines.lags_of(run["arm"])
        assert abs(statistics.fmean(middles, run["lag_histogram"]) - run["lag"]) <= width / 2


def test_federated_comparison():
    result = kept("federated/comparison.json")
    splits = result["equal_frames_per_client"]
    less = "federated_minus_this_area"
    expected = [
        [
            series,
            *(interval(**splits[split][series]["area"]) for split in ("seen", "inside", "beyond")),
            interval(**splits["inside"][series][less]) if less in splits["inside"][series] else "",
        ]
        for series in splits["seen"]
    ]
    assert table(text_of("federated_comparison")) == expected
    prose = prose_of("federated_comparison")
    assert f"- Seeds: {result['draws']} draws of clients" in prose
    assert f"after {result['equal_total_frames']['inside']['frames_per_client']:,.0f} frames of each of" in prose
    gains = {
        ("inside", "independent client, mean"): "gains {} on the mean",
        ("seen", "pooled, all clients' samples"): "is {} below the federation where clients train",
        ("beyond", "independent client, best"): "is {} below it beyond the range",
        ("seen", "federated, then K local steps"): "by {} of area where clients train",
        ("inside", "federated, then K local steps"): "by {} unseen inside the range",
        ("beyond", "federated, then K local steps"): "by {} beyond it. What K steps",
    }
    for (split, series), form in gains.items():
        assert form.format(interval(**splits[split][series][less])) in prose
    forms = {
        "inside": "reach {:.1f}, one client alone after {:,} frames {:.1f}, difference {}",
        "beyond": "Beyond the range it does: {:.1f} against {:.1f}, +{}",
    }
    for split, form in forms.items():
        row = result["equal_total_frames"][split]
        frames = [row["frames_alone"]] if split == "inside" else []
        means = row["federated"]["mean"], *frames, row["alone"]["mean"]
        assert form.format(*means, interval(**row["federated_minus_alone"])) in prose
    curves = federated_table.read_curves(RESULTS / "federated")
    beyond = {series: returns for (series, split), (_, returns) in curves.items() if split == "beyond"}
    forms = {
        "federated": "of the federation changes by {},",
        "independent client, mean": "of independent clients by {},",
        "one-shot average": "of their average by {};",
        "pooled, a client's updates": "with a client's updates by {},",
        "pooled, all clients' samples": "with all clients' samples by {}.",
    }
    for series, form in forms.items():
        assert form.format(difference_of(beyond[series][:, 9], beyond[series][:, 4])) in prose
    ends = [beyond[series][:, -1] for series in ("pooled, all clients' samples", "federated")]
    said = "has {:.1f} at the end, the federation {:.1f}: a difference of {}."
    assert said.format(*(end.mean() for end in ends), difference_of(*ends)) in prose


def test_federated_merge_ablation():
    effects = kept("federated_merge_ablation.json")["effects"]
    expected = [
        [row["choice"], f"{row['area']:.1f}", interval(row["effect"], row["ci95"]) if row["effect"] else ""]
        for row in effects
        if row["level"] == "all"
    ]
    prose = prose_of("federated_merge_ablation")
    assert table(text_of("federated_merge_ablation")) == expected
    total = {row["choice"]: row for row in effects if row["level"] == "all"}
    costs = [
        interval(-total[choice]["effect"], [-x for x in total[choice]["ci95"][::-1]])
        for choice in ("replay: clear", "initial: per client", "epsilon: restart")
    ]
    costs[0] += f" of {total['keep everything']['area']:.0f}"
    said = "clearing the replay costs {}, separate initial parameters {}, restarting epsilon every round {}."
    assert said.format(*costs) in prose
    # Of the choices that make no difference over all cells, every cell where the interval leaves out zero is named.
    quiet = {row["choice"] for row in effects if row["level"] == "all" and row["ci95"][0] <= 0 <= row["ci95"][1]}
    cells = [row for row in effects if row["level"] != "all" and row["choice"] in quiet and row["effect"]]
    sure = [interval(row["effect"], row["ci95"]) for row in cells if not row["ci95"][0] <= 0 <= row["ci95"][1]]
    said = prose.split("In single cells")[1].split("## ")[0]
    assert "four intervals" in said
    assert f"Of {len(cells)} such intervals" in said
    assert sorted(re.findall(r"-?[\d.]+ \[[^]]+\]", said)) == sorted(sure)
    # Of those that cost over all cells, where it shows: as (K, level).
    places = {
        choice: {(row["local_steps"], row["level"]) for row in effects if row["choice"] == choice and row["ci95"][1] < 0}
        - {("all", "all")}
        for choice in ("replay: clear", "initial: per client", "epsilon: restart")
    }
    assert list(places.values()) == [
        {(10, 0.25), (10, 1.0), (100, 0.25), (100, 1.0)},
        {(10, 0.25), (10, 1.0), (1000, 0.25)},
        {(100, 0.25)},
    ]
    assert "by clearing the replay at K = 10 and 100, by separate initial parameters at K = 10 and, at level 0.25" in said
    assert "at K = 1000, and by restarting epsilon at K = 100 and level 0.25 alone" in said


def test_federated_scaling():
    rows = kept("federated_scaling.json")["rows"]

    def returns(equal):
        return [f"{statistics.mean(row['returns'][equal]['inside']):.1f}" for row in rows]

    shown, prose = table(text_of("federated_scaling")), prose_of("federated_scaling")
    assert f"| clients | {' | '.join(str(row['clients']) for row in rows)} |" in text_of("federated_scaling")
    assert [cells[1:] for cells in shown] == [
        [f"{row['seconds_per_round']:.2g}" for row in rows],
        returns("frames per client"),
        returns("frames in all"),
    ]
    one = {point["rounds"]: f"{statistics.mean(point['inside']):.0f}" for point in rows[0]["history"]}
    assert f"(a single client: {', '.join(one[rounds] for rounds in (20, 30, 40, 50))})" in prose
    ten = {point["rounds"]: statistics.mean(point["inside"]) for point in rows[1]["history"]}
    assert f"fell from {ten[466]:.0f} after 466 rounds to {ten[699]:.0f} after 699" in prose
    # By draw: one client ends highest in both, or else the other count of clients that does.
    by_draw = {
        equal: list(zip(*(row["returns"][equal]["inside"] for row in rows), strict=True))
        for equal in ("frames per client", "frames in all")
    }
    assert [draw.index(max(draw)) for draw in by_draw["frames per client"]] == [0, 0]
    assert [draw.index(max(draw)) for draw in by_draw["frames in all"]] == [2, 0]
    assert "at {2:.0f} against {0:.0f}".format(*by_draw["frames in all"][0]) in prose


def test_speed():
    benchmark, text = kept("benchmark-cpu.json"), text_of("speed")
    shown = {
        "iteration_over_floor": "{:.2f}x",
        "pmap_over_jit": "{:.3f}x",
        "sixteen_seeds_over_one": "{:.2f}x",
        "compile_cartpole_over_floor": "{:.1f}x",
        "compile_breakout_over_floor": "{:.1f}x",
        "replay_breakout_over_floor": "{:.2f}x",
    }
    rows = table(text, "## The agent")
    assert [row[1].split()[0] for row in rows] == [form.format(benchmark[name]) for name, form in shown.items()]
    beside = [
        ("iteration_microseconds", "{:.0f} against"),
        ("floor_microseconds", "{:.0f} us"),
        ("compile_seconds_cartpole", "{:.1f} s"),
    ]
    beside += [("compile_seconds_breakout", "{:.1f} s"), ("bytes_per_transition_breakout", "({:.0f})")]
    assert all(form.format(benchmark[name]) in " ".join(row[1] for row in rows) for name, form in beside)
    rates = [f"{rate:,.0f}" for name, rate in benchmark.items() if name.startswith("frames_per_second")]
    section = text.split("## The agent")[1].split("\n## ")[0]
    assert re.findall(r"\| (\d+,\d{3})(?= \|)", section) == rates


def test_speed_of_clients_and_server():
    clients, server = kept("federated_benchmark-cpu.json"), kept("server_benchmark-cpu.json")
    steps = ", ".join(f"{clients[f'microseconds_per_client_step_{count}_clients']:.1f}" for count in (10, 100, 1000))
    assert [row[1] for row in table(text_of("speed"), "## Clients")] == [
        f"{clients['mebibytes_above_start_1000_clients']:.0f} MiB",
        f"{steps} us",
        f"{clients['thousand_over_ten']:.2f}x",
        f"{clients['round_with_mean_over_none']:.3f}x",
        f"{clients['round_with_transforms_over_none']:.3f}x",
    ]
    pushes = [f"{server[f'microseconds_per_push_{count}_workers']:.0f}" for count in (4, 64, 1024)]
    assert f"takes {server['barrier_over_data_parallel']:.3f} times as long" in prose_of("speed")
    assert "push takes {}, {} and {} us".format(*pushes) in prose_of("speed")


def test_faults():
    faults = kept("faults.json")
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
    assert table(text_of("faults").split("Three real workers")[0]) == expected
    rows = {
        ("threads", "a task raises"): ("threads", "error"),
        ("threads", "a task never ends"): ("threads", "wait"),
        ("Ray", "a worker is killed"): ("ray", "kill"),
        ("Ray", "a worker is stopped"): ("ray", "stop"),
        ("Ray", "the raylet is killed"): ("ray", "raylet"),
    }
    counts = {kind: faults["drivers"][kind[0]]["worker"] for kind in rows.values()}
    ends = ("status 0", "status 1", "resumed")
    expected = [[*words, *(str(counts[kind].get(f"{kind[1]}, {end}", 0)) for end in ends)] for words, kind in rows.items()]
    assert table(text_of("faults").split("Three real workers")[1]) == expected
    assert f"{faults['minutes']:.0f} minutes" in text_of("faults")


def test_test_times():
    times = kept("test_times.json")
    shown = {
        name: f"{runs['seconds'] // 60} min {runs['seconds'] % 60} s" for name, runs in times.items() if name.startswith("make")
    }
    text = " ".join((DOCS / "testing.md").read_text().split("Test time, cache cold")[1].split())
    cold, check, warm = (shown[name] for name in ("make test, cache cold", "make check, cache cold", "make check"))
    assert f"`make test` {cold}; `make check` {check}, and {warm} where programs are compiled already" in text
