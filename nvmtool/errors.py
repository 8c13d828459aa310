"""The exception tree. Each class owns its exit code; the table in the README is generated from here."""

from __future__ import annotations


class NvmtoolError(Exception):
    """Any failure that nvmtool explains in one line."""

    exit_code = 7
    meaning = "I/O error"


class UsageError(NvmtoolError):
    """A value that no image could satisfy, or options that do not go together."""

    exit_code = 2
    meaning = "usage"


class FormatError(NvmtoolError):
    """Not an image of this kind, a newer version of it, or not the mass store that belongs to it."""

    exit_code = 3
    meaning = "not such an image, or a newer version of it"


class DamagedError(NvmtoolError):
    """A structure broke one of its own rules; names the structure, where it is, the value and the limit."""

    exit_code = 4
    meaning = "damaged"


class NoSpaceError(NvmtoolError):
    """The device, the mass store's file system or a table is full."""

    exit_code = 5
    meaning = "no space"


class MassFullError(NoSpaceError):
    """The mass store's file system is full: fewer blocks may still fit."""


class BusyError(NvmtoolError):
    """Another process holds what this one needs; names the process where it can be known."""

    exit_code = 6
    meaning = "busy"


class StorageError(NvmtoolError):
    """The operating system failed a read, a write or a flush. After a failed flush the handle stays dead."""

    exit_code = 7
    meaning = "I/O error"


class RefusedError(NvmtoolError):
    """A promise could not be kept, so nothing was done."""

    exit_code = 8
    meaning = "refused"


class NotFoundError(NvmtoolError):
    """No region or snapshot has that name."""

    exit_code = 9
    meaning = "not found, or already exists"


class ExistsError(NotFoundError):
    """A region, a snapshot or a file has that name already."""


def exit_code_table() -> list[tuple[int, str]]:
    """Return every exit code with its meaning, 0 and 1 and 130 included, in order."""
    codes = {
        0: "done",
        1: "a check found problems",
        70: "internal error: a bug, please report it",
        130: "interrupted (Ctrl-C); run the same command again",
    }
    classes = [NvmtoolError]
    while classes:
        cls = classes.pop()
        codes[cls.exit_code] = cls.meaning
        classes.extend(cls.__subclasses__())
    return sorted(codes.items())
