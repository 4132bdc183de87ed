"""Pictures of observations, in numpy and without a display. Not here: files, environments that draw themselves.

An observation is drawn, and not a state, because the last one of an episode is known after the reset.

Shapes: H height and W width in pixels or cells, C channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dqn_jax.config import Experiment, require
from dqn_jax.envs import Environment, EnvParams, make_env, parameter
from dqn_jax.envs.wrappers import WRAPPERS

WHITE, BLACK, GREY = (255, 255, 255), (40, 40, 40), (190, 190, 190)
BLUE, ORANGE, GREEN, RED = (38, 98, 170), (226, 125, 30), (60, 150, 80), (200, 50, 60)
CHANNELS = (BLUE, ORANGE, GREY, BLACK, GREEN, RED, (140, 90, 170), (120, 80, 60), (90, 180, 190), (220, 200, 60))
"""Colours of the channels of a grid, over and over."""
_GRID = 160
"""Pixels of a grid's longer side, about."""
_ROOMS = (
    "xxxxxxxxxxxxx",
    "x     x     x",
    "x     x     x",
    "x           x",
    "x     x     x",
    "x     x     x",
    "xx xxxx     x",
    "x     xxx xxx",
    "x     x     x",
    "x     x     x",
    "x           x",
    "x     x     x",
    "xxxxxxxxxxxxx",
)
"""Walls of gymnax's FourRooms, which its observations leave out."""


class Picture(NamedTuple):
    """How an environment is drawn."""

    draw: Callable[[np.ndarray, EnvParams], np.ndarray]
    """(observation [...], parameters) -> [H, W, 3] uint8."""
    per_second: int
    """Pictures a second at a speed that can be followed."""


def picture_of(config: Experiment, env: Environment) -> Picture:
    """Finds the picture of a config's environment: by its name, or a grid of cells for observations [H, W] or [H, W, C].

    Args:
      config: names the environment and its wrappers.
      env: the environment with wrappers; of joined observations the newest is drawn.

    Raises:
      InputError: where there is none.
    """
    users = [spec for spec in (*config.wrappers, *(config.runner.eval_wrappers or ())) if spec.split(":")[0] not in WRAPPERS]
    require(not users, f"wrappers has {', '.join(users)}, which may change what is observed: pictures are of observations")
    own = make_env(config.env, config.max_episode_steps, config.env_kwargs).spec
    is_grid = len(own.obs_shape) in (2, 3) and own.obs_dtype != np.uint8
    found = None if is_grid else PICTURES.get(config.env)
    if is_grid:
        found = Picture(lambda obs, params: grid(obs if obs.ndim == 3 else obs[..., None]), 15)
    require(
        found is not None,
        f"env is {config.env!r}, with observations {own.obs_shape}, and has no picture: there are those of "
        f"{', '.join(PICTURES)}, of gymnasium:NAME, and of observations of cells [H, W] or [H, W, C]",
    )
    assert found is not None
    depth, stacked = own.obs_shape[-1], env.spec.obs_shape != own.obs_shape
    if not stacked:
        return found
    newest = (lambda obs: obs[..., -1]) if len(own.obs_shape) == 2 else (lambda obs: obs[..., -depth:])
    draw = found.draw
    return found._replace(draw=lambda obs, params: draw(newest(obs), params))


def grid(cells: np.ndarray) -> np.ndarray:
    """Draws cells [H, W, C] in the colour of the first channel that is above 0, white where none is."""
    height, width, channels = cells.shape
    image = np.full((height, width, 3), WHITE, np.uint8)
    for channel in reversed(range(channels)):
        image[cells[..., channel] > 0] = CHANNELS[channel % len(CHANNELS)]
    size = max(1, _GRID // max(height, width))
    return image.repeat(size, axis=0).repeat(size, axis=1)


def _cartpole(obs: np.ndarray, params: EnvParams) -> np.ndarray:
    """Draws the cart on its track, 60 pixels to a unit, and the pole, twice as long as the parameter that is half of it."""
    position, _, angle, _ = obs
    length = 2 * float(parameter(params, "length"))
    x, y = _plane(-2.6, 2.6, -0.4, 2.0, 60)
    image = _blank(x)
    image[np.abs(y) < 0.01] = GREY
    image[(np.abs(x - position) < 0.25) & (np.abs(y) < 0.15)] = BLACK
    tip = position + length * np.sin(angle), length * np.cos(angle)
    image[_distance(x, y, (position, 0.0), tip) < 0.05] = ORANGE
    return image


def _mountain_car(obs: np.ndarray, params: EnvParams) -> np.ndarray:
    """Draws the car on its hill, 150 pixels to a unit, and a flag at the goal."""

    def hill(x: np.ndarray | float) -> np.ndarray:
        return 0.45 * np.sin(3 * x) + 0.55

    goal = float(parameter(params, "goal_position"))
    x, y = _plane(-1.2, 0.6, 0.0, 1.3, 150)
    image = _blank(x)
    top = hill(goal) + 0.2
    image[(np.abs(x - goal) < 0.01) & (y < top)] = GREEN
    image[(x >= goal) & (x < goal + 0.08) & (np.abs(y - top + 0.04) < 0.04)] = GREEN
    image[y < hill(x)] = GREY
    image[np.hypot(x - obs[0], y - hill(obs[0]) - 0.04) < 0.05] = BLACK
    return image


def _acrobot(obs: np.ndarray, params: EnvParams) -> np.ndarray:
    """Draws both links, 40 pixels to a unit, and the height to reach."""
    cos_1, sin_1, cos_2, sin_2 = obs[:4]
    first, second = (float(parameter(params, f"link_length_{link}")) for link in (1, 2))
    reach = first + second + 0.2
    x, y = _plane(-reach, reach, -reach, reach, 40)
    image = _blank(x)
    image[np.abs(y - 1) < 0.02] = GREEN
    joint = first * sin_1, -first * cos_1
    # Sine and cosine of the sum of both angles.
    tip = joint[0] + second * (sin_1 * cos_2 + cos_1 * sin_2), joint[1] - second * (cos_1 * cos_2 - sin_1 * sin_2)
    image[_distance(x, y, (0.0, 0.0), joint) < 0.08] = BLACK
    image[_distance(x, y, joint, tip) < 0.08] = ORANGE
    return image


def _four_rooms(obs: np.ndarray, params: EnvParams) -> np.ndarray:
    """Draws where the agent is and where it is to go, [row, column] each, and the walls."""
    row, column, goal_row, goal_column = obs.astype(int)
    walls = np.array([list(line) for line in _ROOMS])
    cells = np.zeros((*walls.shape, 4), bool)
    cells[row, column, 0] = cells[goal_row, goal_column, 1] = True
    cells[..., 3] = walls == "x"
    return grid(cells)


PICTURES = {
    "CartPole-v1": Picture(_cartpole, 50),
    "MountainCar-v0": Picture(_mountain_car, 30),
    "Acrobot-v1": Picture(_acrobot, 15),
    "FourRooms-misc": Picture(_four_rooms, 10),
}
"""Pictures of environments whose observations are a few numbers."""


def _plane(left: float, right: float, bottom: float, top: float, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y [H, W] of the middle of each pixel, `scale` pixels to a unit."""
    width, height = round((right - left) * scale), round((top - bottom) * scale)
    x, y = np.meshgrid(left + (np.arange(width) + 0.5) / scale, top - (np.arange(height) + 0.5) / scale)
    return x, y


def _blank(x: np.ndarray) -> np.ndarray:
    return np.full((*x.shape, 3), WHITE, np.uint8)


def _distance(x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Computes how far points [H, W] are from the line between two others."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx**2 + dy**2), 0.0, 1.0)
    return np.hypot(x - start[0] - share * dx, y - start[1] - share * dy)
