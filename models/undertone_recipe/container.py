"""Codes of a packed file, as `undertone encode --packed` writes it (docs/bitstream.md, section 3)."""

from __future__ import annotations

import numpy as np

MAGIC = b"UTN\x01"
REGULAR, OTHER, END, INDEX = 0x01, 0x02, 0x03, 0x04
CODE_BITS = 10


class ContainerError(ValueError):
    """What is no whole packed file."""


def header(data: bytes) -> tuple[int, int, int]:
    """Stages and frames of a regular bundle, and where the first record begins."""
    if len(data) < 23 or data[:4] != MAGIC:
        raise ContainerError("not an undertone file of version 1")
    flags, coded = data[4], data[20]
    if coded & 1:
        raise ContainerError("coded with a token model; only packed files are read here")
    return data[18], data[19], 21 + 8 * (flags & 1) + 8 * (flags >> 1 & 1) + 2


def packed_codes(data: bytes) -> np.ndarray:
    """Codes [frames, stages] int16 of a packed file without gaps whose bundles all have the same stages. Sums are not checked."""
    stages, frames, at = header(data)
    rows = []
    while at < len(data) and data[at] in (REGULAR, OTHER):
        start, count = at + 1, frames
        if data[at] == OTHER:
            if data[at + 2] != stages:
                raise ContainerError(f"byte {at}: a bundle of {data[at + 2]} stages among those of {stages}")
            count, start = data[at + 1], at + 3
            while data[start] & 0x80:  # the first frame, a varint
                start += 1
            start += 1
        size = (CODE_BITS * count * stages + 7) // 8
        if start + size + 2 > len(data):
            raise ContainerError(f"byte {at}: the file ends within a bundle")
        bits = np.unpackbits(np.frombuffer(data[start : start + size], np.uint8))[: CODE_BITS * count * stages]
        rows.append(bits.reshape(count, stages, CODE_BITS) @ (1 << np.arange(CODE_BITS - 1, -1, -1)))
        at = start + size + 2
    if at < len(data) and data[at] not in (END, INDEX):
        raise ContainerError(f"byte {at}: record {data[at]:#04x}, which packed files of one rate do not have")
    return np.concatenate(rows).astype(np.int16) if rows else np.zeros((0, stages), np.int16)
