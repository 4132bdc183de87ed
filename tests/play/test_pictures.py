"""Proves that pictures show what is observed, by pixels found by hand, and that a film has one for the start and each step."""

import gymnasium
import jax
import numpy as np
import pytest
from PIL import Image

from dqn_jax.config import DataParallelExperiment, InputError, NetworkConfig
from dqn_jax.envs import env_of
from dqn_jax.networks import make_network
from dqn_jax.play.episodes import film, play
from dqn_jax.play.load import Trained
from dqn_jax.play.pictures import BLACK, BLUE, GREEN, GREY, ORANGE, WHITE, grid, picture_of
from dqn_jax.runner.gif import write_gif


def drawn(obs, name: str, **changes) -> np.ndarray:
    """The picture of an observation in an environment, with its own parameters but for changes."""
    config = DataParallelExperiment(env=name)
    env = env_of(config)
    return picture_of(config, env).draw(np.asarray(obs), env.params.replace(**changes))


def colour(image: np.ndarray, row: int, column: int) -> tuple:
    return tuple(image[row, column].tolist())


def untrained(name: str, seed: int = 0, **changes) -> Trained:
    config = DataParallelExperiment(env=name, num_seeds=1, network=NetworkConfig(hidden_sizes=(4,)), **changes)
    env = env_of(config, on_host=True)
    network = make_network(config.network, env.spec)
    return Trained(config, network.init(jax.random.key(seed)), lambda obs: obs, env, network, jax.random.key(seed))


def test_the_cart_is_where_it_is():
    """60 pixels to a unit, from -2.6 to 2.6 and, downwards, from 2 to -0.4: the cart has 30 by 18, the pole ends at 60."""
    for position, column in ((-2.0, 36), (0.0, 156), (1.0, 216)):
        image = drawn([position, 9.0, 0.0, 9.0], "CartPole-v1")
        assert image.shape == (144, 312, 3)
        dark = np.argwhere((image == BLACK).all(axis=-1))
        assert (dark.min(axis=0).tolist(), dark.max(axis=0).tolist()) == ([111, column - 15], [128, column + 14])
        # Half of the pole's width is 3 pixels, beyond its end at (0, 1) too.
        pole = np.argwhere((image == ORANGE).all(axis=-1))
        assert (pole.min(axis=0).tolist(), pole.max(axis=0).tolist()) == ([57, column - 3], [122, column + 2])


def test_the_pole_leans_and_is_as_long_as_the_parameter_says():
    """Lying to the right, twice 0.25 long: 30 pixels."""
    image = drawn([0.0, 0.0, np.pi / 2, 0.0], "CartPole-v1", length=0.25)
    assert colour(image, 119, 156 + 29) == ORANGE
    assert colour(image, 119, 156 + 34) == GREY == colour(image, 119, 156 - 34)
    assert colour(drawn([0.0, 0.0, -np.pi / 2, 0.0], "CartPole-v1"), 119, 156 - 59) == ORANGE


def test_the_car_is_on_its_hill():
    """150 pixels to a unit, from -1.2 and, downwards, from 1.3; the valley is at -pi / 6, 0.1 high."""
    valley = -np.pi / 6
    image = drawn([valley, 0.0], "MountainCar-v0")
    assert image.shape == (195, 270, 3)
    row, column = 195 - int(0.14 * 150), int((valley + 1.2) * 150)
    assert colour(image, row, column) == BLACK
    assert colour(image, 194, column) == GREY
    assert colour(image, 10, column) == WHITE
    right = drawn([0.5, 0.0], "MountainCar-v0")
    assert colour(right, row, column) == WHITE
    # The goal, at 0.5 and sin(1.5) * 0.45 + 0.55 = 0.999, and 0.2 above it its flag.
    assert colour(image, 195 - int(1.19 * 150), int(1.75 * 150)) == GREEN
    assert colour(right, 195 - int(1.03 * 150), int(1.7 * 150)) == BLACK


def test_the_links_hang_and_swing():
    """40 pixels to a unit, the joint in the middle, at 88."""
    hanging = drawn([1.0, 0.0, 1.0, 0.0, 0.0, 0.0], "Acrobot-v1")
    assert hanging.shape == (176, 176, 3)
    assert (colour(hanging, 88 + 20, 88), colour(hanging, 88 + 60, 88)) == (BLACK, ORANGE)
    # The first to the right, the second folded upwards to the height to reach.
    folded = drawn([0.0, 1.0, 0.0, 1.0, 0.0, 0.0], "Acrobot-v1")
    assert (colour(folded, 88, 88 + 20), colour(folded, 88 - 20, 88 + 40)) == (BLACK, ORANGE)
    assert colour(folded, 47, 5) == GREEN == colour(hanging, 47, 170)


def test_rooms_have_walls_an_agent_and_a_goal():
    """Cells of 12 pixels, 13 by 13."""
    image = drawn([4, 1, 8, 9], "FourRooms-misc")
    cells = image[6::12, 6::12]
    assert image.shape == (156, 156, 3)
    assert (colour(cells, 4, 1), colour(cells, 8, 9)) == (BLUE, ORANGE)
    assert (colour(cells, 6, 2), colour(cells, 6, 0), colour(cells, 10, 6)) == (WHITE, BLACK, WHITE)
    np.testing.assert_array_equal(cells.repeat(12, axis=0).repeat(12, axis=1), image)


def test_the_first_channel_is_on_top():
    cells = np.zeros((2, 4, 3))
    cells[0, 0], cells[0, 1, 1], cells[1, 3, 2] = 1, 1, 1
    image = grid(cells)
    assert image.shape == (80, 160, 3)
    assert [colour(image, row, column) for row, column in ((39, 39), (0, 40), (40, 159), (79, 0))] == [
        BLUE,
        ORANGE,
        GREY,
        WHITE,
    ]


def test_of_joined_observations_the_newest_is_drawn():
    config = DataParallelExperiment(env="CartPole-v1", wrappers=("frame-stack:3", "sticky:0.1"))
    env = env_of(config)
    last = np.array([1.0, 0.0, 0.0, 0.0])
    image = picture_of(config, env).draw(np.concatenate([np.zeros(8), last]), env.params)
    np.testing.assert_array_equal(image, drawn(last, "CartPole-v1"))
    config = DataParallelExperiment(env="Catch-bsuite", wrappers=("frame-stack:2",))
    frames = np.zeros((10, 5, 2), bool)
    frames[0, 0, 0] = frames[1, 2, 1] = True
    image = picture_of(config, env_of(config)).draw(frames, ())
    assert (colour(image, 0, 0), colour(image, 17, 33)) == (WHITE, BLUE)


def test_what_has_no_picture_is_refused(mine):
    with pytest.raises(InputError, match=r"^env is 'UmbrellaChain-bsuite', with observations \(3,\), and has no picture"):
        drawn([0.0], "UmbrellaChain-bsuite")
    mine.wrap = lambda env: env
    config = DataParallelExperiment(wrappers=("mine:wrap",))
    with pytest.raises(InputError, match=r"^wrappers has mine:wrap, which may change what is observed"):
        picture_of(config, env_of(config))


@pytest.mark.long
def test_a_film_shows_every_step_of_the_first_episode(tmp_path):
    """Of Catch: the ball falls a row a step, from row 0 to row 9, in cells of 16 pixels."""
    trained = untrained("Catch-bsuite")
    pictures, per_second, result = film(trained)
    assert [tuple(x.tolist()) for x in (result.lengths, result.finished)] == [(9,), (True,)]
    for row, picture in enumerate(pictures):
        cells = (picture[8::16, 8::16] == BLUE).all(axis=-1)
        assert cells[row].any()
        assert cells.sum() == 2 - (row == 9 and cells[9].sum() == 1)
    assert len(pictures) == 10
    many = play([trained], 4)
    assert (result.returns[0], result.lengths[0]) == (many.returns[0, 0], many.lengths[0, 0])

    write_gif(tmp_path / "catch.gif", pictures, per_second)
    with Image.open(tmp_path / "catch.gif") as file:
        assert file.n_frames == 10
        shown, times = [], []
        for number in range(10):
            file.seek(number)
            shown.append(np.asarray(file.convert("RGB")))
            times.append(file.info["duration"])
    assert times == [70] * 9 + [1000]
    np.testing.assert_array_equal([image[:-2] for image in shown], pictures)
    assert (shown[0][-2:, :8], shown[0][-2:, 8:]) == pytest.approx((120, 230))
    assert (shown[9][-2:] == 120).all()


def test_pictures_that_do_not_change_are_all_in_the_file(tmp_path):
    write_gif(tmp_path / "still.gif", [np.zeros((3, 4, 3), np.uint8)] * 30, 50)
    with Image.open(tmp_path / "still.gif") as file:
        assert (file.n_frames, file.size) == (30, (4, 3 + 8))
    with pytest.raises(InputError, match=r"^gif is .*cannot be written \(No such file or directory\): name another file$"):
        write_gif(tmp_path / "not there" / "still.gif", [np.zeros((3, 4, 3), np.uint8)] * 2, 50)


class Painted(gymnasium.Env):
    """Counts four steps; its picture is as bright as the count, and as red as the episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(0, 9, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode, self.episodes = render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.episodes = 0, self.episodes + 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == 4, False, {}

    def render(self):
        return np.full((2, 2, 3), (100 * self.episodes, 10 * self.count, 0), np.uint8)


@pytest.fixture
def painted(monkeypatch):
    gymnasium.register("Painted-v0", Painted, max_episode_steps=9)
    yield "gymnasium:Painted-v0"
    del gymnasium.registry["Painted-v0"]


def test_an_environment_of_the_host_draws_itself(painted):
    """The last picture is that of the episode's end, although the step that ends it resets."""
    pictures, _, result = film(untrained(painted, wrappers=("sticky:0.5",)))
    assert [picture[0, 0].tolist() for picture in pictures] == [[100, 10 * count, 0] for count in range(5)]
    assert float(result.returns[0]) == 4


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
def test_an_environment_that_does_not_draw_itself_is_refused(painted, monkeypatch):
    trained = untrained(painted)
    with monkeypatch.context() as patch:
        patch.setattr(Painted, "metadata", {"render_modes": ["human"]})
        with pytest.raises(InputError, match=r"^env is 'gymnasium:Painted-v0', which does not draw itself .*'human'"):
            film(trained)

    def missing(self):
        raise gymnasium.error.DependencyNotInstalled("a library is missing, install it")

    monkeypatch.setattr(Painted, "render", missing)
    with pytest.raises(InputError, match=r"^env is 'gymnasium:Painted-v0', which cannot start: a library is missing"):
        film(trained)
