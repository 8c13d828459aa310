"""Recording what the policy saw, as a scenario that can be planned and replayed elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ExistsError
from .scenario import scenario_line

if TYPE_CHECKING:
    from .facts import Facts
    from .settings import Settings


class Recorder:
    """Writes facts to a new file, a line each time; times begin at 0."""

    def __init__(self, path: str | Path, settings: Settings) -> None:
        """Raises ExistsError where there is such a file: a scenario is one run."""
        self._settings: Settings | None = settings
        self._started = time.monotonic()
        try:
            self._file = Path(path).open("x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError as error:
            raise ExistsError(f"{path}: exists already") from error

    def add(self, facts: Facts, now: float) -> None:
        """Write what was seen at a time of the monotonic clock; it is in the file when this returns."""
        self._file.write(scenario_line(facts, round(max(0.0, now - self._started), 3), self._settings) + "\n")
        self._file.flush()
        self._settings = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
