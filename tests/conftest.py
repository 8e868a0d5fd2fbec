"""How tests share out between the workers of pytest-xdist: a file stays together, for what its fixtures make, and real ranks never run beside other real ranks, which have timeouts."""

from pathlib import Path

import pytest

RANKS = Path(__file__).parent / "distributed"
ALSO_RANKS = {"test_cluster.py", "test_docs.py"}  # emulated clusters, of which nothing may be left: one at a time


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            name = "ranks" if RANKS in item.path.parents or item.path.name in ALSO_RANKS else str(item.path)
            item.add_marker(pytest.mark.xdist_group(name))
