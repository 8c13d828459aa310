"""The guests' kernel: Debian's cloud kernel, as it is installed, or unpacked into the project's cache by `make guest-kernel`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "guest"
PACKAGE = "linux-image-cloud-amd64"
DRIVERS = ("virtio_pci", "virtio_balloon", "virtio_blk", "virtio_console")

_WANTED = re.compile(r"^\./(boot/vmlinuz-|lib/modules/[^/]+/kernel/drivers/(virtio/|block/virtio_blk\.|char/virtio_console\.))")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class KernelError(Exception):
    """No kernel is to be had; one line says what to do."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image, and the modules that a guest loads, each behind those it needs."""

    image: Path
    modules: tuple[Path, ...]


def find_kernel() -> Kernel | None:
    """Return the kernel in NVMTOOL_GUEST_KERNEL, in the cache or in /boot (the newest), or None."""
    roots = [Path(os.environ["NVMTOOL_GUEST_KERNEL"])] if "NVMTOOL_GUEST_KERNEL" in os.environ else [CACHE, Path("/")]
    for root in roots:
        for image in sorted((root / "boot").glob("vmlinuz-*cloud-amd64"), reverse=True):
            folder = root / "lib" / "modules" / image.name.removeprefix("vmlinuz-")
            found = {path.name.removesuffix(".ko"): path for path in folder.glob("kernel/drivers/**/virtio*.ko")}
            if found.keys() >= set(DRIVERS):
                return Kernel(image, tuple(_in_order(found)))
    return None


def _in_order(found: dict[str, Path]) -> list[Path]:
    order: list[Path] = []

    def add(name: str) -> None:
        path = found[name]
        depends = _DEPENDS.search(path.read_bytes())
        for needed in filter(None, depends[1].decode().split(",") if depends else []):
            add(needed)
        if path not in order:
            order.append(path)

    for name in DRIVERS:
        add(name)
    return order


def fetch_kernel() -> Kernel:
    """Return the kernel, unpacking Debian's package into the cache where there is none yet; raises KernelError."""
    kernel = find_kernel()
    if kernel is not None:
        return kernel
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        depends = _output("apt-cache", "depends", "--important", PACKAGE, cwd=folder)
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise KernelError(f"{PACKAGE} names no kernel package: {depends.strip()!r}")
        # The sandbox user may not write here, and needs not to: the package's signature is checked all the same.
        _output("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package[1], cwd=folder)
        _unpack(next(Path(folder).glob("*.deb")), Path(folder) / "root")
        for part in ("lib", "boot"):  # the image last: a kernel that is found has its modules
            _move(Path(folder) / "root" / part, CACHE / part)
    kernel = find_kernel()
    if kernel is None:
        raise KernelError(f"{package[1]} has not the drivers {', '.join(DRIVERS)}")
    return kernel


def _output(*command: str, cwd: str) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise KernelError(f"{command[0]} is not installed: set NVMTOOL_GUEST_KERNEL to a folder with boot/ and lib/modules/") from None
    if done.returncode:
        raise KernelError(f"{' '.join(command)}: {done.stderr.strip()} (apt-get update first?)")
    return done.stdout


def _unpack(package: Path, folder: Path) -> None:
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            if member.isfile() and _WANTED.match(member.name):
                archive.extract(member, folder, filter="data")
    if process.returncode:
        raise KernelError(f"{package.name}: dpkg-deb failed")


def _move(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)


def main() -> int:
    """Unpack the kernel where there is none, and say which one guests get."""
    try:
        print(f"guests get {fetch_kernel().image}")
    except KernelError as error:
        print(f"no kernel for guests: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
