"""Folders on file systems that move blocks in different ways: images that are mounted once for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
IMAGE_BYTES = 600 << 20
MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q", "-F"],
}


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Path | str]]:
    """Mount points by the name of the file system, or the reason why there is none."""
    found: dict[str, Path | str] = {}
    with ExitStack() as stack:
        for kind, command in MAKE.items():
            if shutil.which(command[0], path=PATH) is None:
                found[kind] = f"{command[0]} is not installed"
                continue
            image, folder = tmp_path_factory.mktemp(kind) / "image", tmp_path_factory.mktemp(f"{kind}-mounted")
            with image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            subprocess.run([*command, image], env={**os.environ, "PATH": PATH}, check=True, capture_output=True)
            done = subprocess.run(["mount", "-o", "loop,discard", image, folder], capture_output=True, text=True, check=False)
            if done.returncode:
                found[kind] = f"mounting needs root: {done.stderr.strip()}"
                continue
            stack.callback(image.unlink)
            stack.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
            found[kind] = folder
        yield found


def _folder(mounted: dict[str, Path | str], kind: str) -> Generator[Path]:
    mount = mounted[kind]
    if isinstance(mount, str):
        pytest.skip(mount)
    folder = mount / "test"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["xfs", "btrfs", "ext4"])
def folder(request: pytest.FixtureRequest, mounted: dict[str, Path | str]) -> Generator[Path]:
    """An empty folder on each of the file systems."""
    yield from _folder(mounted, request.param)


@pytest.fixture(params=["xfs", "btrfs"])
def cloning_folder(request: pytest.FixtureRequest, mounted: dict[str, Path | str]) -> Generator[Path]:
    """An empty folder on each file system that moves blocks by cloning."""
    yield from _folder(mounted, request.param)


@pytest.fixture(params=["xfs", "ext4"])
def overwriting_folder(request: pytest.FixtureRequest, mounted: dict[str, Path | str]) -> Generator[Path]:
    """An empty folder on each file system that overwrites in place, as btrfs does not: there a log in a full one cannot be written."""
    yield from _folder(mounted, request.param)


@pytest.fixture(params=["xfs", "ext4"])
def clone_or_allocate_folder(request: pytest.FixtureRequest, mounted: dict[str, Path | str]) -> Generator[Path]:
    """An empty folder on a file system for each of the two ways in which blocks move."""
    yield from _folder(mounted, request.param)


@pytest.fixture
def ext4_folder(mounted: dict[str, Path | str]) -> Generator[Path]:
    """An empty folder on ext4."""
    yield from _folder(mounted, "ext4")
