"""Is it worth training together? Federated DQN against independent and pooled training, on CartPoles of different lengths.

    python experiments/studies/federated_comparison.py      # every arm, four draws of clients, then table and figure
    python experiments/studies/federated_comparison.py --num-seeds 20 --run-dir runs/federated20
    python experiments/studies/federated_table.py runs/federated_comparison    # both again, from the files

Arms have the same draws of clients, held-out environments, initial parameters and evaluations. `independent` clients are
not merged; the average of their parameters is the one-shot merge. `pooled_updates` and `pooled_samples` are one agent with
all clients' experience: as many updates as one client makes, with one client's batch (rounded up so that every client gives as
much to it), or with all clients' batches together. A federated client's own parameters at the end of a round, before the merge,
are those that the server had before it, after K local steps. With `--federated.personal head` the federated arm plays each
client's policy where it trains, and on held-out environments for the mean over clients, as `independent` does.
"""

import dataclasses
import sys
from pathlib import Path

from dqn_jax import runtime
from dqn_jax.config import InputError
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment, MergeConfig, PooledExperiment
from dqn_jax.federated.presets import CLASSIC, HETEROGENEOUS
from dqn_jax.runner.command_line import exit_code_of, parse

ARMS = ("federated", "independent", "pooled_updates", "pooled_samples")


@dataclasses.dataclass(frozen=True)
class Comparison(FederatedExperiment):
    """A federated experiment, and which arms of the comparison to train."""

    arms: tuple[str, ...] = ARMS
    """Any of federated, independent, pooled_updates, pooled_samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise InputError(f"arms is {' '.join(self.arms) or 'empty'}: choose from {', '.join(ARMS)}")
        unequal = self.federated.varies or self.federated.merge.replay == "clear"
        if unequal and len(self.arms) > 1:
            raise InputError(
                f"arms is {' '.join(self.arms)}, and with partial participation or a cleared replay the federated arm takes "
                "other numbers of frames than the rest: give --arms federated"
            )


def comparison_of(preset: FederatedExperiment) -> Comparison:
    """Makes a preset with all arms."""
    fields = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    return Comparison(**fields | {"run_dir": Path("runs/federated_comparison")})


PRESETS = {"heterogeneous": comparison_of(HETEROGENEOUS), "classic": comparison_of(CLASSIC)}


def config_of(arm: str, comparison: Comparison) -> FederatedExperiment:
    """Makes the config of one arm: the same clients, trained in another way."""
    fields = {field.name: getattr(comparison, field.name) for field in dataclasses.fields(FederatedExperiment)}
    fields["run_dir"] = comparison.run_dir / arm
    federated, clients = comparison.federated, comparison.federated.num_clients
    if arm == "federated":
        return FederatedExperiment(**fields)
    # Only what says which clients there are, how long a round is, and what is played.
    names = ("num_clients", "local_steps", "heterogeneity", "heterogeneity_level", "env_seed", "unseen_envs", "block_size")
    alone = {name: getattr(federated, name) for name in names}
    if arm == "independent":
        keep = FederatedConfig(**alone, merge=MergeConfig(parameters="keep"), eval_clients=federated.eval_clients)
        return FederatedExperiment(**fields | {"federated": keep})
    batch = comparison.agent.batch_size
    batch = batch * clients if arm == "pooled_samples" else -(-batch // clients) * clients
    return PooledExperiment(**fields | {"federated": FederatedConfig(**alone), "batch_size": batch})


def main() -> None:
    """Trains the arms one after the other, each a run of its own, then compares them."""
    comparison = parse(PRESETS, "Trains federated DQN beside independent clients and pooled experience.")
    configs = {arm: config_of(arm, comparison) for arm in comparison.arms}
    runtime.setup(comparison.num_devices)
    # Not at the top: these start jax.
    from federated_table import compare

    from dqn_jax.federated import driver, pooled
    from dqn_jax.runner.loop import run
    from dqn_jax.runner.records import is_complete, provenance

    for arm, config in configs.items():
        if config.resume and is_complete(config.run_dir, config):
            continue
        print(f"{arm}:", flush=True)
        parts = pooled.from_config(config) if isinstance(config, PooledExperiment) else driver.from_config(config)
        run(parts[0], config, parts[1])
    compare(comparison.run_dir, provenance())


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
