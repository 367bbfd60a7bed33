"""A streaming neural audio codec: samples to codes and back.

Samples are NumPy arrays of float32 in -1 to 1, one channel. Codes are arrays ``[frames, stages]``
of uint16; a frame is 20 ms, a stage 0.5 kbit/s. 65535 stands where a frame has fewer stages.
"""

from ._undertone import (
    Decoder,
    Encoder,
    Model,
    StreamDecoder,
    StreamEncoder,
    UndertoneError,
)

__all__ = [
    "Decoder",
    "Encoder",
    "Model",
    "StreamDecoder",
    "StreamEncoder",
    "UndertoneError",
    "read",
    "write",
]


def read(path, model):
    """The samples of a .utn file, at 24 kHz."""
    with open(path, "rb") as file:
        return model.decode(file.read())


def write(path, pcm, model, kbps=3.0, sample_rate=24_000):
    """Encodes samples to a .utn file of at most that rate."""
    data = model.encode(pcm, kbps=kbps, sample_rate=sample_rate)
    with open(path, "wb") as file:
        file.write(data)
