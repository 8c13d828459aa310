"""What a file is that was taken for something else: named in the error, so that the mistake is seen at once."""

from __future__ import annotations

# (offset in the file, bytes there, what such a file is)
_SIGNATURES = (
    (0, b"NVMTOOL\0", "a device image"),
    (0, b"NVMMASS\0", "a mass store"),
    (0, b"NVMSWAP\0", "a swap file of nvmtool"),
    (0, b"NVMRSRV\0", "a reservation file"),
    (0, b"NVMSTMP\0", "a stamps file of swap run"),
    (0, b"NVMTSTRM", "a stream of nvmtool send"),
    (4086, b"SWAPSPACE2", "a Linux swap area (mkswap)"),
    (4086, b"SWAP-SPACE", "an old Linux swap area (mkswap)"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"\x7fELF", "a program or core dump (ELF)"),
    (0, b"XFSB", "an XFS file system"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
)


def identify(head: bytes) -> str:
    """Return what a file is by its first 8 KiB, with an article; an empty string when that is not known."""
    for offset, signature, what in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return what
    return "" if any(head) else "a file of zeros"
