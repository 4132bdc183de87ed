"""Ray's node process on this machine, its raylet: whether it is there, and a last word where it takes this process with it.

Where its raylet is gone, Ray ends a process without a word (status 1) once it needs the object store, and nothing in it can
prevent that. So another process waits beside it, and says why. It sees only that this one has ended, not whether Ray or
somebody else did that: Linux ends the raylet of a process that is killed, too. Standard library alone: this file is its script.
"""

import atexit
import socket
import subprocess
import sys

_REMEDY = "the same command with --resume goes on from the last checkpoint"
GONE = f"the Ray node process (raylet) of this machine is gone: {_REMEDY}"
KILLED = f"this run was killed, or the Ray node process (raylet) of this machine was: {_REMEDY}"
_FAREWELL = b"farewell"


class Raylet:
    """The raylet that this process depends on, and a process beside this one that has the last word."""

    def __init__(self, path: str) -> None:
        """Connects to the raylet's socket, and starts that process."""
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect_ex(path)
        # In a session of its own: a terminal's Ctrl-C is not for it.
        command = [sys.executable, "-I", "-S", __file__]
        self._witness = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        atexit.register(self.leave)

    def is_there(self) -> bool:
        """Tells whether the raylet is running: the connection, in which nothing is ever sent, is open."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def leave(self) -> None:
        """Ends the other process, which says nothing then."""
        atexit.unregister(self.leave)
        if self._witness.poll() is None:
            self._witness.communicate(_FAREWELL)
        self._connection.close()


if __name__ == "__main__" and not sys.stdin.buffer.read():
    print(KILLED, file=sys.stderr)
