"""All of it behind one name: `dqn-jax train data-parallel --num-seeds 16`, also as `python -m dqn_jax`."""

import difflib
import importlib
import sys

from dqn_jax import __version__

TRAIN = {
    "data-parallel": "gradients averaged over devices, or many seeds at once",
    "parameter-server": "workers that push to a server, in a model or on threads or Ray",
    "actor-learner": "actors that explore for one learner",
    "federated": "clients whose parameters are averaged; experience never leaves them",
    "reference": "a published result, and ours beside it",
}
COMMANDS = {
    "play": "evaluate what was trained; --gif draws it",
    "export": "write parameters and config to one file",
    "plot": "draw a run's figures again",
    "compare": "learning curves and a table of several runs",
    "scoreboard": "train every algorithm in every environment, and compare them",
    "envs": "list the environments that need no code of yours",
    "presets": "list the configs to start from",
}


def main() -> int:
    """Runs the command that the arguments name, and returns its exit status."""
    args = sys.argv[1:]
    if args == ["--version"]:
        print(__version__)
        return 0
    if args[:1] == ["train"]:
        return _dispatch(args[1:], TRAIN, "train ")
    return _dispatch(args, COMMANDS, "")


def _dispatch(args: list[str], known: dict[str, str], group: str) -> int:
    """Runs the module of the command that the first argument names, with the other arguments."""
    name = args[0].replace("_", "-") if args else ""
    if name in known:
        sys.argv = [f"dqn-jax {group}{name}", *args[1:]]
        return importlib.import_module(f"dqn_jax.commands.{name.replace('-', '_')}").main()
    if name in ("-h", "--help"):
        print(_usage(group))
        return 0
    close = difflib.get_close_matches(name, [*known, *([] if group else ["train"])], n=1)
    hint = f"did you mean {close[0]}?" if close else "see dqn-jax --help"
    print(f"{name} is no command of dqn-jax {group}".rstrip() + f": {hint}" if name else _usage(group), file=sys.stderr)
    return 2


def _usage(group: str) -> str:
    train = {f"train {name}": words for name, words in TRAIN.items()}
    lines = [f"  {name:24s}{words}" for name, words in (train if group else train | COMMANDS).items()]
    end = ["", "dqn-jax COMMAND --help lists a command's flags; dqn-jax --version says which version this is."]
    return "\n".join([f"usage: dqn-jax {group}COMMAND [flags]", "", *lines, *end])


if __name__ == "__main__":
    sys.exit(main())
