"""What the tests of whole runs share: a driver that something happens to."""


def at(driver, chunk: int, act):
    """The driver, with `act` applied to the state that goes into a chunk (from 1)."""
    calls = []

    def step(state):
        calls.append(1)
        return driver.step(act(state) if len(calls) == chunk else state)

    return driver._replace(step=step)
