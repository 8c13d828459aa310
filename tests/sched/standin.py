"""Modelled guests in the place of QEMU's, so that the commands can be tried without any: `--qmp x=SCENARIO`, an interval a look."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType

from nvmtool.errors import StorageError
from nvmtool.sched.facts import Facts
from nvmtool.sched.model import ModelWorld
from nvmtool.sched.scenario import read_scenario


class StandIn(ModelWorld):
    """One scenario's first moment; a VM called `mute` fails at every step."""

    def __init__(self, sockets: Mapping[str, str]) -> None:
        """Take the scenario from where a socket would be."""
        (path,) = sockets.values()
        super().__init__(read_scenario(path).moments[0])
        self._told = False

    def facts(self) -> Facts:
        """Let ten seconds pass before each look."""
        self.pass_time(10)
        return super().facts()

    def set_balloon(self, name: str, size_bytes: int) -> None:
        """Fail for one."""
        if name == "mute":
            raise StorageError(f"{name}: no answer in 5 s")
        self._told = True
        super().set_balloon(name, size_bytes)

    def close(self) -> None:
        """Tell how the balloons were left, where they were touched."""
        if self._told:
            print("left:", {name: guest.target >> 20 for name, guest in self.guests.items()}, file=sys.stderr)


def module() -> ModuleType:
    """Return a module to stand where nvmtool.live.world is."""
    made = ModuleType("nvmtool.live.world")
    made.QemuWorld = StandIn  # type: ignore[attr-defined]
    return made


def main() -> None:
    """Run nvmtool with the stand-in: python -m tests.sched.standin sched apply ..."""
    sys.modules["nvmtool.live"] = ModuleType("nvmtool.live")
    sys.modules["nvmtool.live.world"] = module()
    from nvmtool.cli import main as run

    run()


if __name__ == "__main__":
    main()
