"""Which image changed a mass store last, and whether that ended well (docs/format.md, section 8).

The store's header shows a tag; the image keeps the tag that it must show, and the one before. A process that is about to change
the store makes a new tag durable in the image, beside the one that it found, and only then stores it in the store's header: cut off
anywhere, the store shows one of the two. When a *copy* of the image changes the store, it leaves a tag that this image does not know;
working on would mix up the two copies' blocks.

At the end of orderly work the tag before is set to the tag itself. Where the two differ at open, a process was cut off, and what it left
in free slots is given back.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from ..errors import RefusedError
from ..media import word

if TYPE_CHECKING:
    from ..media.journal import Journal
    from ..media.root import Root
    from .mass import MassStore


def new_tag() -> int:
    """Return a tag that no other process chooses."""
    return secrets.randbits(word.VALUE_BITS - 1) + 1


class Pairing:
    """The tags of one device and its mass store, which is attached once it is open."""

    def __init__(self, journal: Journal, root: Root) -> None:
        """Stand on the root words of an open journal."""
        self.mass: MassStore | None = None
        self._journal = journal
        self._root = root
        self._announced = self._durable = False
        journal.on_commit.append(self._after_commit)
        journal.on_rollback.append(self._after_rollback)

    @property
    def is_sound(self) -> bool:
        """Whether the store was last changed through this image."""
        return self.mass is None or self.mass.tag in (self._root.get("mass_tag"), self._root.get("mass_tag_before"))

    @property
    def is_settled(self) -> bool:
        """Whether the last process that changed the store came to its end; else free slots may hold data."""
        return self._root.get("mass_tag") == self._root.get("mass_tag_before")

    def require_sound(self) -> None:
        """Raise RefusedError when another copy of the image changed the store."""
        if not self.is_sound:
            assert self.mass is not None
            raise RefusedError(
                f"{self.mass.path}: was last changed through another copy of this image, purged blocks may be gone; "
                "see what is lost with check --scrub; where nothing is, check --scrub --repair makes the store this image's own"
            )

    def announce(self) -> None:
        """Say in the open transaction that this process changes the store; once in its life."""
        if not self._announced:
            self._announced = True
            self._root.put("mass_tag_before", self.mass.tag if self.mass is not None else self._root.get("mass_tag"))
            self._root.put("mass_tag", new_tag())

    def begin(self) -> None:
        """Return when the store may be written or punched; the journal must be idle unless the announcement is durable already."""
        if not self._durable:
            self.announce()
            self._journal.commit()
        if self.mass is not None and self._journal.writable:
            self.mass.show_tag(self._root.get("mass_tag"))

    def settle(self) -> None:
        """Say that nothing was left in free slots: after the checkpoint that gave all of them back."""
        if not self.is_settled:
            self.begin()
            if self.mass is not None:
                # What was given back must be gone before the image says so: nobody would look for it again.
                self.mass.fence()
            self._root.put("mass_tag_before", self._root.get("mass_tag"))
            self._journal.commit()
            self._announced = self._durable = False

    def _after_commit(self) -> None:
        self._durable = self._announced

    def _after_rollback(self) -> None:
        self._announced = self._durable
