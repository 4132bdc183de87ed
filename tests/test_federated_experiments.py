"""The federated experiments compare what they say they compare."""

import numpy as np
import pytest
from laws.common import load_experiment


@pytest.fixture(scope="module")
def ablation():
    return load_experiment("studies/federated_merge_ablation")


def row(choice, local_steps, level, seed, area):
    return {"choice": choice, "local_steps": local_steps, "level": level, "seed": seed, "area": area}


def test_effects_are_paired_by_seed_and_averaged_over_cells(ablation, monkeypatch):
    monkeypatch.setattr(ablation, "CHOICES", {ablation.KEEP: {}, "moments: reset": {}})
    monkeypatch.setattr(ablation, "LOCAL_STEPS", (10, 100))
    monkeypatch.setattr(ablation, "LEVELS", (1.0,))
    rows = []
    # Seeds differ by hundreds, the choice by 10 less at K = 10 and by 2 more at K = 100: only a pairing sees it.
    for seed, offset in ((1, 0.0), (2, 100.0), (3, 500.0)):
        for local_steps, effect in ((10, -10.0), (100, 2.0)):
            rows.append(row(ablation.KEEP, local_steps, 1.0, seed, offset))
            rows.append(row("moments: reset", local_steps, 1.0, seed, offset + effect))
    effects = {(e["choice"], e["local_steps"]): e for e in ablation.effects_of(rows)}
    assert effects["moments: reset", "all"]["effect"] == pytest.approx(-4.0)
    np.testing.assert_allclose(effects["moments: reset", "all"]["ci95"], [-4.0, -4.0], atol=1e-9)
    assert effects["moments: reset", 10]["effect"] == pytest.approx(-10.0)
    assert effects["moments: reset", 100]["effect"] == pytest.approx(2.0)
    assert effects[ablation.KEEP, "all"]["effect"] == 0.0
    assert effects["moments: reset", 100]["area"] == pytest.approx(202.0)


def test_each_choice_changes_one_thing(ablation):
    base = ablation.config_of(ablation.KEEP, 100)
    for choice in ablation.CHOICES:
        config = ablation.config_of(choice, 100)
        merge = [name for name in vars(base.merge) if getattr(config.merge, name) != getattr(base.merge, name)]
        rest = [name for name in vars(base) if name != "merge" and getattr(config, name) != getattr(base, name)]
        if choice == ablation.KEEP:
            assert merge == rest == []
        elif choice == "budget: episodes":
            assert (merge, rest) == ([], ["local_episodes"])
        else:
            assert (merge, rest) == ([choice.split(":")[0]], [])


def test_tuning_seeds_are_not_reported(ablation):
    assert not set(ablation.TUNING) & set(ablation.REPORTING)
    # The same number of lanes, so that both are one program.
    assert len(ablation.RATES) * len(ablation.TUNING) == len(ablation.REPORTING)


def test_scaling_arms_have_equal_frames():
    scaling = load_experiment("studies/federated_scaling")
    assert {scaling.rounds_of(clients, "frames per client") for clients in scaling.CLIENTS} == {scaling.ROUNDS}
    in_all = {clients: clients * (1 + scaling.rounds_of(clients, "frames in all")) for clients in scaling.CLIENTS}
    assert scaling.AGENT.warm_up_frames == scaling.LOCAL_STEPS
    assert len(set(in_all.values())) == 1
