"""Open, check and read a damaged image as a reader would, and say what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nvmtool.errors import NvmtoolError
from nvmtool.findings import CheckResult
from nvmtool.media import word
from nvmtool.region import layout as lay
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.extents import map_arrays
from nvmtool.region.info import device_info
from nvmtool.region.purge import purge
from nvmtool.region.snapshots import diff_states, list_snapshots
from tests.limits import HANG_SECONDS, Hang, limited

if TYPE_CHECKING:
    from .images import Image, Model, State


@dataclass
class Outcome:
    """What became of one damage.

    `reads` is "same", "error", "earlier" (a state before a torn log record) or "different"; `check` is "clean", "found" or the name of
    the error that it ended with; `faults` are what must never be: a traceback, a hang, a changed file.
    """

    reads: str = "same"
    check: str = "clean"
    errors: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    result: CheckResult | None = None

    @property
    def silent(self) -> bool:
        """Whether somebody may get other data, or lose some, and nothing says so."""
        return bool(self.faults) or self.reads == "different" or (self.check == "clean" and self.reads == "error")


def read_state(device: Device, region_name: str, snapshot: str | None) -> State:
    """Return a state's blocks, reached the way export does."""
    region = device.region(region_name)
    blocks = device.store.view.reshape(-1, lay.BLOCK_SIZE)
    found: State = {}
    for indexes, words in region.pages.tables.iter_words(region.root_of(snapshot), 8):
        present = np.flatnonzero(words)
        kinds, values = region.pages.tables.decode(words[present], indexes[present])
        kinds, values = region.pages.follow(kinds, values, indexes[present])
        numbers = indexes[present].tolist()
        on_mass = np.flatnonzero(kinds == word.SLOT)
        contents = dict(zip(on_mass.tolist(), device.slots.read(values[on_mass]), strict=True)) if len(on_mass) else {}
        for position, number in enumerate(numbers):
            found[number] = contents[position].tobytes() if position in contents else blocks[values[position]].tobytes()
    return found


def listing(device: Device) -> list[tuple[str, int, list[str]]]:
    """Return (name, blocks, names of snapshots) of every region."""
    return [(region.name, region.nblocks, [record.name for record in region.snapshots]) for region in device.regions()]


def overview(device: Device) -> bool:
    """Ask for everything else that a reading command shows."""
    device_info(device)
    for region in device.regions():
        for snapshot in list_snapshots(region):
            map_arrays(region, snapshot.name)
            list(diff_states(region, snapshot.name, None))
        map_arrays(region)
        purge(device, mode="pointer-elimination", region=region.name, dry_run=True)
    return True


class Probe:
    """Probes damages of one image; `keys` of the model are the states that are read each time."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.slowest = 0.0
        with Device.open(image.path) as device:
            self.listing = listing(device)

    def read(self, outcome: Outcome, keys: list[tuple[str, str | None]], *, all_readers: bool, same_names: bool) -> None:
        """Open the image and read states; note errors and differences."""
        image = self.image
        models = [image.model, *image.earlier]
        try:
            with Device.open(image.path) as device:
                self._try(outcome, lambda: listing(device) == self.listing or not same_names, "listing")
                right = set(range(len(models)))
                for key in keys:
                    right &= self._read_one(outcome, device, models, key)
                if not right:
                    outcome.reads = "different"
                elif 0 not in right and outcome.reads != "different":
                    outcome.reads = "earlier"
                if all_readers:  # last: a dry run rehearses in this device's own view
                    self._try(outcome, lambda: overview(device), "overview")
        except NvmtoolError as error:
            self._note(outcome, error)

    def _read_one(self, outcome: Outcome, device: Device, models: list[Model], key: tuple[str, str | None]) -> set[int]:
        every = set(range(len(models)))
        try:
            found = read_state(device, *key)
        except NvmtoolError as error:
            absent = {number for number, model in enumerate(models) if key not in model}
            if type(error).__name__ == "NotFoundError" and absent:
                return absent
            self._note(outcome, error)
            return every
        return {number for number, model in enumerate(models) if model.get(key) == found}

    def _try(self, outcome: Outcome, action, name: str) -> None:
        try:
            if not action():
                outcome.reads = "different"
                outcome.errors.append(f"{name} differs")
        except NvmtoolError as error:
            self._note(outcome, error)

    @staticmethod
    def _note(outcome: Outcome, error: NvmtoolError) -> None:
        if outcome.reads == "same":
            outcome.reads = "error"
        outcome.errors.append(f"{type(error).__name__}: {error}")

    def check(self, outcome: Outcome, *, scrub: bool = True) -> None:
        """Check the image."""
        try:
            outcome.result = check_device(self.image.path, scrub=scrub)
            outcome.check = "clean" if outcome.result.clean else "found"
        except NvmtoolError as error:
            outcome.check = type(error).__name__

    def repair(self) -> CheckResult:
        """Check the image and repair it."""
        return check_device(self.image.path, repair=True, scrub=True)

    def run(
        self, keys: list[tuple[str, str | None]] | None = None, *, scrub: bool = True, all_readers: bool = True, same_names: bool = True
    ) -> Outcome:
        """Check and read the image as it is now; every exception that is no NvmtoolError is a fault."""
        outcome = Outcome()
        started = time.monotonic()
        try:
            with limited():
                self.check(outcome, scrub=scrub)
                self.read(
                    outcome,
                    list(self.image.model) if keys is None else keys,
                    all_readers=all_readers,
                    same_names=same_names and not self.image.earlier,
                )
        except Hang:
            outcome.faults.append(f"hang: more than {HANG_SECONDS} s")
        except Exception as error:  # noqa: BLE001 - what must never be is what is looked for
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            outcome.faults.append(f"traceback: {type(error).__name__}: {error} in {last and last.tb_frame.f_code.co_qualname}")
        self.slowest = max(self.slowest, time.monotonic() - started)
        return outcome
