"""Each store and each fence of each operation failed, once and from then on: the image is clean, and as before or as after."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from nvmtool.errors import NvmtoolError
from nvmtool.region.check import check_device
from nvmtool.region.convert import convert_region
from nvmtool.region.device import Device
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.receive import receive
from nvmtool.region.snapshots import create_snapshot, delete_snapshot, revert_region
from tests.damage.images import BLOCK, Model

from .commands import IMAGE, MASS, make_templates, states
from .seam import ERRORS, Seam, failing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPERATIONS: dict[str, tuple[str, Callable[[Device], object]]] = {
    "region create": ("plain", lambda device: device.create_region("other", 1 << 20)),
    "region delete": ("purged", lambda device: device.delete_region("vm")),
    "write": ("plain", lambda device: device.region().write(0, b"w" * 3 * BLOCK)),
    "small write": ("purged", lambda device: device.region().write(BLOCK + 7, b"w" * 99)),
    "discard": ("plain", lambda device: device.region().discard(0, 2 * BLOCK)),
    "snapshot create": ("plain", lambda device: create_snapshot(device.region(), "third")),
    "snapshot delete": ("purged", lambda device: delete_snapshot(device.region(), "old")),
    "revert": ("purged", lambda device: revert_region(device.region(), "old")),
    "purge virtblock": ("plain", lambda device: purge(device, mode="virtblock")),
    "purge pointers": ("direct", lambda device: purge(device, mode="pointer-elimination")),
    "recall": ("purged", lambda device: recall(device, snapshot="old")),
    "receive": ("behind", lambda device: receive(device, str(device.path.parent / "full.nvms"), "copy")),
    "receive of what changed": ("behind", lambda device: receive(device, str(device.path.parent / "next.nvms"), force=True)),
    "convert": ("plain", lambda device: convert_region(device.region(), "direct")),
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    make_templates(folder)
    return folder


def _run(folder: Path, operation: Callable[[Device], object]) -> None:
    with Device.open(folder / IMAGE, writable=True) as device:
        operation(device)


def _between(read: Model, before: Model, after: Model) -> bool:
    """Tell whether each state is as before or as after: deleting takes several steps."""
    return all(state in (before.get(key), after.get(key)) for key, state in read.items())


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failed_store_or_fence_loses_nothing(name: str, templates: Path, tmp_path: Path) -> None:
    template, operation = OPERATIONS[name]
    before = states(templates / template)
    shutil.copytree(templates / template, tmp_path / "good")
    with failing(Seam()) as counted:
        _run(tmp_path / "good", operation)
    after = states(tmp_path / "good")
    work = tmp_path / "work"
    shutil.copytree(templates / template, work)
    for at in range(1, counted.calls + 1):
        for once, error in ((True, ERRORS[0]), (False, ERRORS[at % 2])):
            for file in (IMAGE, MASS):
                shutil.copyfile(templates / template / file, work / file)
            where = f"{name}: call {at} of {counted.calls}, once {once}, {error.__name__}"
            with failing(Seam(at, once=once, error=error)) as seam:
                try:
                    _run(work, operation)
                    failed = False
                except NvmtoolError:
                    failed = True
            assert seam.struck, where
            result = check_device(work / IMAGE, scrub=True)
            assert result.clean, (where, seam.struck, result.findings[:3])
            read = states(work)
            assert failed or read == after, (where, seam.struck)
            assert read in (before, after) if name.startswith("receive") else _between(read, before, after), (where, seam.struck)
            # The next writable open works, and gives back what was left over.
            with Device.open(work / IMAGE, writable=True) as device:
                if device.regions():
                    device.regions()[0].write(40 * BLOCK, b"n" * BLOCK)
            assert check_device(work / IMAGE, scrub=True).clean, (where, seam.struck)
