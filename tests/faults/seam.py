"""A store that fails by itself: the n-th store or fence raises, once or from then on, as a medium would."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from nvmtool.errors import NoSpaceError, NvmtoolError, StorageError
from nvmtool.media.pagefile import PageFile
from nvmtool.media.store import FileStore
from nvmtool.region import mass

if TYPE_CHECKING:
    from collections.abc import Iterator

_METHODS_OF: dict[type, tuple[str, ...]] = {
    FileStore: ("store_word", "store_bytes", "store_logged", "store_durable", "fence"),
    mass.MassStore: ("write", "fence", "punch", "show_tag"),
    PageFile: ("write", "allocate", "punch", "fence"),
}


class Seam:
    """Counts the stores and fences of an image and its mass store, or of a swap file; fails from number `at` on, or only there.

    A failed fence kills a real handle; so does one that this seam fails.
    """

    def __init__(self, at: int = 0, *, once: bool = True, error: type[NvmtoolError] = StorageError) -> None:
        self.at, self.once, self.error = at, once, error
        self.calls = 0
        self.struck = ""

    def tick(self, name: str, owner: object) -> None:
        """Count a call; raise where it is to fail."""
        self.calls += 1
        if self.calls == self.at or (self.at and not self.once and self.calls > self.at):
            self.struck = self.struck or name
            if name in ("fence", "store_durable"):
                owner._dead = True  # type: ignore[attr-defined]
            raise self.error(f"injected: {name} number {self.calls}")


@contextmanager
def failing(seam: Seam) -> Iterator[Seam]:
    """Let every store that is opened inside go through the seam."""
    originals = {(cls, name): getattr(cls, name) for cls in _METHODS_OF for name in _METHODS_OF[cls]}
    for (cls, name), original in originals.items():
        setattr(cls, name, _wrapped(seam, name, original))
    try:
        yield seam
    finally:
        for (cls, name), original in originals.items():
            setattr(cls, name, original)


def _wrapped(seam: Seam, name: str, original):  # type: ignore[no-untyped-def]
    def method(self, *arguments, **options):  # type: ignore[no-untyped-def]
        seam.tick(name, self)
        return original(self, *arguments, **options)

    return method


ERRORS = (StorageError, NoSpaceError)
