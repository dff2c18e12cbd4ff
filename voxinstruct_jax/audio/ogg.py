"""Ogg files that are the same whenever they are written.

libsndfile draws the serial number of a stream from the clock. `fix_serial` replaces it.

Source:
    RFC 3533, sections 6 (page header) and 6.1 (checksum).
"""

import functools
import struct
import zlib

__all__ = ["fix_serial"]

HEADER = struct.Struct("<4sBBqIIIB")
"""Capture pattern, version, type, granule position, serial number, page number, checksum, number of segments."""
SERIAL, CHECKSUM = slice(14, 18), slice(22, 26)
POLYNOMIAL = 0x04C11DB7


def fix_serial(content: bytes) -> bytes:
    """Returns a file of one stream with a serial number that follows from its content.

    Args:
        content: Of an Ogg file.

    Raises:
        ValueError: It is none.
    """
    pages = []
    at = 0
    while at < len(content):
        if content[at : at + 4] != b"OggS" or at + HEADER.size > len(content):
            raise ValueError("no Ogg file")
        segments = content[at + HEADER.size - 1]
        start = at + HEADER.size + segments
        end = start + sum(content[at + HEADER.size : start])
        page = bytearray(content[at:end])
        page[SERIAL] = page[CHECKSUM] = bytes(4)
        pages.append(page)
        at = end
    serial = struct.pack("<I", zlib.crc32(b"".join(pages)))
    for page in pages:
        page[SERIAL] = serial
        page[CHECKSUM] = struct.pack("<I", _checksum(page))
    return b"".join(pages)


def _checksum(page: bytes | bytearray) -> int:
    table, remainder = _table(), 0
    for byte in page:
        remainder = ((remainder << 8) & 0xFFFFFFFF) ^ table[(remainder >> 24) ^ byte]
    return remainder


@functools.cache
def _table() -> tuple[int, ...]:
    """Remainder of each byte."""
    found = []
    for byte in range(256):
        remainder = byte << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (POLYNOMIAL if remainder & 0x80000000 else 0)
        found.append(remainder & 0xFFFFFFFF)
    return tuple(found)
