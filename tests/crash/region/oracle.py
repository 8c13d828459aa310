"""The full judgement of one crash state, by the product's own ways in: open, check, read, recover, open again, write."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nvmtool.errors import NvmtoolError
from nvmtool.region import layout as lay
from nvmtool.region.check import check_device
from nvmtool.region.device import Device

from ..subject import Verdict
from .media import MASS, NVM, write_mass
from .model import BLOCK, digest_of_device
from .operations import pattern

if TYPE_CHECKING:
    from ..trace import Media

_PROBE = pattern(999)


class Oracle:
    """Judges crash states in two memory files that it reuses."""

    def __init__(self) -> None:
        """Make the files."""
        self._image_fd, self._mass_fd = os.memfd_create("image"), os.memfd_create("mass")
        self._path, self._mass = (f"/proc/self/fd/{fd}" for fd in (self._image_fd, self._mass_fd))

    def close(self) -> None:
        """Close the files."""
        os.close(self._image_fd)
        os.close(self._mass_fd)

    def load(self, image: bytes, mass: bytes) -> None:
        """Let the files hold a crash state."""
        os.ftruncate(self._image_fd, len(image))
        os.pwrite(self._image_fd, image, 0)
        write_mass(self._mass_fd, mass)

    def judge(self, media: Media) -> Verdict:
        """Return what a state shows and whether all promises hold in it; any exception is a broken promise."""
        self.load(media[NVM], media[MASS])
        try:
            return self._judge(media[NVM])
        except NvmtoolError as error:
            return Verdict("", f"does not open: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - a traceback is what is looked for
            return Verdict("", f"traceback: {type(error).__name__}: {error}")

    def glance(self, media: Media) -> Verdict:
        """Return what a state shows by reading and checking alone."""
        self.load(media[NVM], media[MASS])
        return self._read()

    def content(self) -> tuple[bytes, bytes]:
        """Return what the files hold."""
        return tuple(os.pread(fd, os.fstat(fd).st_size, 0) for fd in (self._image_fd, self._mass_fd))  # type: ignore[return-value]

    def _judge(self, image: bytes) -> Verdict:
        before = self._read()
        if before.problem:
            return before
        if self.content()[0] != image:
            return Verdict(before.digest, "a reading command wrote")
        with self._open():
            pass
        recovered = self.content()
        if (after := self._read()).problem or after.digest != before.digest:
            return Verdict(before.digest, f"recovery shows another state, or: {after.problem}")
        if after.leaks:
            return Verdict(before.digest, "after recovery free slots of the mass store occupy storage")
        with self._open() as device:
            unfinished = _unfinished(device)
        if unfinished:
            return Verdict(before.digest, f"recovery left {unfinished} half deleted")
        if self.content() != recovered:
            return Verdict(before.digest, "opening again changed something")
        problem = self._next_operation()
        return Verdict(before.digest, problem, before.leaks)

    def _open(self) -> Device:
        return Device.open(self._path, writable=True, mass=self._mass)

    def _read(self) -> Verdict:
        result = check_device(self._path, mass=self._mass, scrub=True)
        wrong = [each for each in result.findings if (each.severity, each.structure) != ("leak", "mass store")]
        with Device.open(self._path, mass=self._mass) as device:
            digest = digest_of_device(device)
        problem = f"check: {wrong[0].structure} {wrong[0].where} {wrong[0].what}" if wrong else ""
        return Verdict(digest, problem, bool(result.findings))

    def _next_operation(self) -> str:
        """Write one block, and read it again after another open; check stays clean."""
        with self._open() as device:
            region = device.regions()[0] if device.regions() else device.create_region("probe", 4 * BLOCK)
            others = [r.name for r in device.regions()[1:]]
            region.write(BLOCK, _PROBE)
            region.flush()
            name = region.name
        with Device.open(self._path, mass=self._mass) as device:
            if device.region(name).read(BLOCK, BLOCK) != _PROBE or [r.name for r in device.regions()[1:]] != others:
                return "the next write is not there"
        problem = self._read().problem
        return f"after the next write: {problem}" if problem else ""


def _unfinished(device: Device) -> list[str]:
    """Return the regions that are being deleted, or that have snapshots which are."""
    found = []
    for record in device.records:
        region = device.any_region(record)
        marks = [snapshot.get("parent") & lay.SNAPSHOT_DELETING for snapshot in region.snapshots]
        if record.get("flags") & (lay.DELETING | lay.SWEEPING) or any(marks):
            found.append(region.name)
    return found


class RepairOracle(Oracle):
    """Judges crash states of a repair: the data read the same, and another repair leaves the image clean."""

    def _judge(self, image: bytes) -> Verdict:
        with Device.open(self._path, mass=self._mass) as device:
            digest = digest_of_device(device)
        result = check_device(self._path, mass=self._mass, scrub=True, repair=True)
        if not result.clean:
            return Verdict(digest, f"another repair leaves: {result.findings[-1]}")
        after = self._read()
        problem = after.problem or ("" if after.digest == digest else "another repair changed what is read")
        return Verdict(digest, problem or self._next_operation(), after.leaks)
