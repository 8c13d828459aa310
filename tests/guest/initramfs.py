"""The guests' first file system: busybox, the drivers, the workload; built once and kept in the project's cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .kernel import CACHE, Kernel

HERE = Path(__file__).parent
SOURCES = ("init", "meminfo", "work.c")
BUSYBOX = Path("/bin/busybox")
# Busybox makes no ext4.
MKE2FS = Path("/sbin/mke2fs")


def build_initramfs(kernel: Kernel) -> Path:
    """Return the packed file system for a kernel, from the cache when nothing it is made of has changed."""
    key = hashlib.sha256()
    for path in (*(HERE / name for name in SOURCES), BUSYBOX, *_program(MKE2FS), *kernel.modules):
        key.update(path.name.encode() + path.read_bytes())
    packed = CACHE / f"initramfs-{key.hexdigest()[:16]}.cpio"
    if not packed.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            folder = Path(name) / "root"
            _fill(folder, kernel)
            fresh = Path(name) / "packed"
            _pack(folder, fresh)
            os.replace(fresh, packed)  # whole or not at all: several test processes may build it at once
    return packed


def _program(path: Path) -> list[Path]:
    """Return a program and the libraries that it loads; nothing where it is not installed."""
    if not path.exists():
        return []
    listed = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=True).stdout
    return [path, *map(Path, re.findall(r"/\S+\.so\S*", listed))]


def _fill(folder: Path, kernel: Kernel) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "modules").mkdir()
    shutil.copy(BUSYBOX, folder / "bin" / "busybox")
    (folder / "bin" / "sh").symlink_to("busybox")
    (folder / "bin" / "stty").symlink_to("busybox")
    shutil.copy(HERE / "meminfo", folder / "meminfo")
    shutil.copy(HERE / "init", folder / "init")
    (folder / "init").chmod(0o755)
    for path in _program(MKE2FS):
        place = folder / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for module in kernel.modules:
        shutil.copy(module, folder / "modules")
    (folder / "modules" / "order").write_text("".join(f"{module.stem}\n" for module in kernel.modules))
    command = ["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", str(folder / "bin" / "work"), str(HERE / "work.c")]
    subprocess.run(command, check=True)


def _pack(folder: Path, packed: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    with packed.open("wb") as file:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=folder, input="\n".join(names).encode(), stdout=file, check=True)
