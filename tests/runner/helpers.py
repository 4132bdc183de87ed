"""What the tests of whole runs share: a run that nothing happens to, and a driver that something happens to."""

from dqn_jax.runner import loop


def run_in(directory, config_of, driver_and_evaluator):
    """Trains to the end, and returns the run directory."""
    run_dir = directory / "whole"
    driver, evaluator = driver_and_evaluator
    loop.run(driver, config_of(run_dir), evaluator)
    return run_dir


def at(driver, chunk: int, act):
    """The driver, with `act` applied to the state that goes into a chunk (from 1)."""
    calls = []

    def step(state):
        calls.append(1)
        return driver.step(act(state) if len(calls) == chunk else state)

    return driver._replace(step=step)
