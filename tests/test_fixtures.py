"""Images that something went wrong with once: check names the damage, nothing ends with a traceback, and sound ones read as ever."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from fixtures.make import CORPUS, HERE
from nvmtool.errors import NvmtoolError
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.purge import purge
from nvmtool.region.recall import recall
from nvmtool.region.transfer import export_file
from tests.damage.images import KINDS
from tests.damage.probe import limited, read_state

ARCHIVES = sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz"))


def _unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "disk.nvm"


def _attempt(path: Path, *, writable: bool, action) -> bool:  # type: ignore[no-untyped-def]
    """Do something with an image; False when it ended with one of the library's errors."""
    try:
        with limited(), Device.open(path, writable=writable) as device:
            action(device)
    except NvmtoolError:
        return False
    return True


def test_every_image_has_its_function_and_is_small() -> None:
    assert sorted(CORPUS) == ARCHIVES
    assert all((HERE / f"{name}.tar.xz").stat().st_size < 50_000 for name in ARCHIVES)


@pytest.mark.parametrize("name", [name for name in ARCHIVES if not name.startswith("sound")])
def test_damage_of_the_corpus_is_named_and_nothing_trips_over_it(name: str, tmp_path: Path) -> None:
    path = _unpacked(name, tmp_path)
    try:
        assert not check_device(path, scrub=True).clean
    except NvmtoolError as error:
        assert str(error)
    before = path.read_bytes()
    for snapshot in (None, "old", "new"):
        _attempt(path, writable=False, action=lambda device, s=snapshot: export_file(device.region(), str(tmp_path / "out"), s))
    assert path.read_bytes() == before
    for change in (
        lambda device: device.region().write(0, b"x" * 5000),
        lambda device: purge(device, mode="pointer-elimination"),
        lambda device: recall(device, snapshot="old"),
        lambda device: device.delete_region("vm"),
    ):
        path.write_bytes(before)
        _attempt(path, writable=True, action=change)


@pytest.mark.parametrize("name", [name for name in ARCHIVES if name.startswith("sound")])
def test_sound_images_of_the_corpus_read_as_they_were_made(name: str, tmp_path: Path) -> None:
    path = _unpacked(name, tmp_path)
    assert check_device(path, scrub=True).clean
    (tmp_path / "model").mkdir()
    model = KINDS[CORPUS[name][0]](tmp_path / "model", 7).model
    with Device.open(path) as device:
        assert {key: read_state(device, *key) for key in model} == model
