"""Atari 2600 games, stepped on the host. The only module that needs the Arcade Learning Environment (extra "atari").

`atari:Pong` follows Machado et al. (2018), section 5: actions stick with probability 0.25, games are cut after five minutes a
life of 60 frames a second, 108,000 in all, and losing a life ends nothing. An action is repeated for four frames, of which the
last two are joined by their maximum; frames are grey, 84 x 84 bytes, and an observation has four. A game begins with up to 30
frames without an action. The older protocol (Mnih et al. 2015) is a choice of wrappers.

The environment is licensed under the GPL, version 2; it is imported where a user installed it, and nothing of it is copied.

Shapes: E games, K frames of an observation.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dqn_jax.config import InputError, not_installed, require
from dqn_jax.envs.environment import Environment, Running, TimeStep, on_host
from dqn_jax.envs.wrappers import LIFE_LOSS, REWARD_CLIP, wrapper_of
from dqn_jax.lookup import is_users
from dqn_jax.types import EnvSpec

PREFIX = "atari:"
"""Prefix of the names of games."""
ATARI_WRAPPERS = ("no-op:30", "sticky:0.25", "frame-stack:4", f"{REWARD_CLIP}:1")
"""Where a config names none."""
_SKIP, _MAX_FRAMES, _ENLARGED = 4, 108_000, 4


class _Protocol(NamedTuple):
    """How a game is played."""

    no_ops: int = 0
    sticky: float = 0.0
    stack: int = 1
    bound: float | None = None
    """Of rewards; None leaves them as they are."""
    life_loss: bool = False
    """Whether losing a life is a termination."""
    max_steps: int = _MAX_FRAMES // _SKIP


_CHANGES: dict[str, Callable[..., _Protocol]] = {
    "no-op": lambda protocol, number: protocol._replace(no_ops=int(number)),
    "sticky": lambda protocol, probability: protocol._replace(sticky=probability),
    "frame-stack": lambda protocol, number: protocol._replace(stack=int(number)),
    REWARD_CLIP: lambda protocol, bound=1.0: protocol._replace(bound=bound),
    LIFE_LOSS: lambda protocol: protocol._replace(life_loss=True),
    "time-limit": lambda protocol, limit: protocol._replace(max_steps=min(protocol.max_steps, int(limit))),
}
"""What wrappers change, by name."""


class _Games:
    """E games that start again in the step that ends one."""

    def __init__(self, make: Callable[[int], Any], seeds: Sequence[int], protocol: _Protocol, draws: bool) -> None:
        self._games, self._protocol = make(len(seeds)), protocol
        first = self._games.reset(seed=np.array(seeds))[0][:, 0]
        self.obs = self._begun(first)
        self._pictures = [first[0]] if draws else None

    def step(self, actions: np.ndarray) -> TimeStep:
        frames, rewards, terminated, truncated, info = self._games.step(np.asarray(actions, np.int32))
        frames, ended = frames[:, 0], terminated | truncated
        reached = np.where(ended[:, None, None], info["final_obs"][:, 0], frames) if ended.any() else frames
        final = np.concatenate([self.obs[..., 1:], reached[..., None]], axis=-1)
        # The games' own stacks begin with black frames, not with the first one, and go on when a life is lost.
        self.obs = np.where(ended[:, None, None, None], self._begun(frames), final)
        if self._pictures is not None:
            self._pictures += [reached[0], frames[0]] if ended[0] else [frames[0]]
        bound = self._protocol.bound
        return TimeStep(
            obs=jnp.asarray(self.obs),
            final_obs=jnp.asarray(final),
            reward=jnp.asarray(rewards if bound is None else np.clip(rewards, -bound, bound), jnp.float32),
            terminated=jnp.asarray(terminated),
            truncated=jnp.asarray(truncated & ~terminated),
        )

    def _begun(self, frames: np.ndarray) -> np.ndarray:
        """Stacks the first frames [E, H, W] of games."""
        return np.repeat(frames[..., None], self._protocol.stack, axis=-1)

    def pictures(self) -> list[np.ndarray]:
        assert self._pictures is not None
        return [np.repeat(frame.repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)[..., None], 3, axis=-1) for frame in self._pictures]

    def close(self) -> None:
        self._games.close()


def make_atari(name: str, max_episode_steps: int | None, kwargs: Mapping[str, Any], wrappers: Sequence[str]) -> Environment:
    """Builds a game, which is stepped on the host and cannot be traced.

    Args:
      name: "atari:" and a game, as Pong or MsPacman.
      max_episode_steps: time limit in steps, of four frames each; None is the games' own, 27,000.
      kwargs: arguments of the games' vector environment, as full_action_space=True or img_height=42.
      wrappers: no-op:N, sticky:P, frame-stack:K, reward-clip:B, life-loss, time-limit:N, in any order.

    Raises:
      InputError: where the Arcade Learning Environment is not installed, has no such game or argument, or for another wrapper.
    """
    try:
        import ale_py.roms
        import ale_py.vector_env
    except ImportError:
        raise not_installed(f"env is {name!r}", "the Arcade Learning Environment", "atari") from None
    game = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removeprefix(PREFIX)).lower()
    games = ale_py.roms.get_all_rom_ids()
    require(game in games, f"env is {name!r}, which is none of {len(games)} games: take one, as atari:Pong or atari:MsPacman")
    protocol = _Protocol() if max_episode_steps is None else _Protocol(max_steps=max_episode_steps)
    for spec in wrappers:
        require(not is_users(spec), f"wrappers has {spec!r}, and games know {', '.join(_CHANGES)} alone: leave it out")
        protocol = wrapper_of(spec, _CHANGES)(protocol)
    options = dict(kwargs)
    draws = options.pop("render_mode", None) == "rgb_array"

    def make(number: int) -> Any:
        return ale_py.vector_env.AtariVectorEnv(
            game,
            number,
            **{
                # Actors share the cores among themselves.
                "num_threads": 1,
                "autoreset_mode": "SameStep",
                "frameskip": _SKIP,
                "max_num_frames_per_episode": _SKIP * protocol.max_steps,
                "noop_max": protocol.no_ops,
                "repeat_action_probability": protocol.sticky,
                "life_loss_info": protocol.life_loss,
                "stack_num": 1,
                "reward_clipping": False,
                "use_fire_reset": False,
            }
            | options,
        )

    try:
        one = make(1)
    except TypeError as error:
        raise InputError(f"env_kwargs has {', '.join(options)}, and atari games: {error}") from None
    height, width = one.single_observation_space.shape[1:3]
    spec_of_game = EnvSpec(
        name,
        (height, width, protocol.stack),
        np.dtype(np.uint8),
        int(one.single_action_space.n),
        protocol.max_steps,
        protocol.stack,
    )
    one.close()

    def start(seeds: Sequence[int]) -> Running:
        return _Games(make, seeds, protocol, draws)

    return on_host(spec_of_game, start)
