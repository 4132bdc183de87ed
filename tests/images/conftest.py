"""These tests need packages that `make test-images` installs; without them there is nothing to collect here."""

import importlib.util

collect_ignore_glob = (
    [] if all(map(importlib.util.find_spec, ("ale_py", "octax", "pgx", "craftax", "jumanji"))) else ["test_*.py"]
)
