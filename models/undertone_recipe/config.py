"""Checked configuration: one TOML file describes a network and how it is trained.

Unknown keys and values out of range are refused with the name of the key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE_RATE_HZ = 24_000
HOP = 240  # samples between two MDCT blocks (10 ms)
FRAME = 480  # samples of one codec frame (20 ms, two MDCT blocks)
MODEL_CONFIG = "config.json"  # in a model folder: the configuration that it was made with
# First MDCT bin of each band, and the end; a bin is 50 Hz wide.
BAND_EDGES = (0, 4, 8, 12, 16, 20, 24, 28, 32, 38, 44, 52, 60, 70, 82, 96, 112, 132, 156, 188, 240)
BANDS = len(BAND_EDGES) - 1
FEATURES = 2 * (HOP + BANDS)
# From this band on (7.8 kHz) the decoder sends noise of the decoded band energy: nothing there is coded as a waveform at these
# rates, and a network without an adversary repeats itself there, which shows as dark lines in the spectrogram.
NOISE_BAND = 18
SHAPED = BAND_EDGES[NOISE_BAND]  # MDCT bins whose shape is decoded
NOISE_BINS = HOP - SHAPED
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 60.0, 500.0
PITCHES = 341  # that a voice can have, 11 cents apart
PITCH_STAGE = 1  # the stage that says a pitch or tones: the first one says level and envelope, and frames of one stage have neither
CODES = 1024  # of that stage
PITCH_LATENT = 8  # dimensions of the latents that hold the pitch, the last ones; no other stage writes there
DTMF_HZ = ((697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0, 1633.0))  # ITU-T Q.23: rows and columns


@dataclass(frozen=True)
class Network:
    """Sizes of encoder, quantiser and decoder. Changing one makes a new model id."""

    latent: int = 64  # dimensions, with those of the pitch
    stages: int = 24
    entries: int = 1024
    encoder_width: int = 192
    encoder_blocks: int = 5
    encoder_expand: int = 3
    decoder_width: int = 256
    decoder_blocks: int = 7
    decoder_expand: int = 2
    kernel: int = 7
    fine_blocks: int = 1  # blocks at 10 ms, after the upsampling
    fine_expand: int = 1
    fine_kernel: int = 5
    pitch_width: int = 128  # of the encoder's layers that read the pitch
    pitch_blocks: int = 2
    noise: int = 16  # random numbers a 10 ms block that the network is given, besides those of the highest bands and the signs
    # From this band on (0.8 kHz) what is decoded gets a random sign in each band and block. Nothing there is coded as a waveform
    # either: decoded signs are a mean over what cannot be known, the same in every frame, and that is a buzz at the frame rate.
    sign_band: int = 4
    # A codec with a voice source (docs/voice.md): the second stage is the pitch, and bands are waveform, voice or noise as the decoder
    # decides, instead of signs from a band on. Below voice_band (1 kHz) it starts with a waveform, above with voice and noise.
    voice: bool = False
    voice_band: int = 5
    # A comb over what is decoded, where a voice sounds (postfilter.py); its output is 10 ms later.
    comb: bool = False

    @property
    def delay(self) -> int:
        """Samples by which the decoder's output lags the encoder's input when both run frame by frame: the overlap of the MDCT, and what the
        comb looks ahead."""
        return 2 * HOP if self.comb else HOP

    @property
    def free(self) -> int:
        """Dimensions of the latents besides those of the pitch."""
        return self.latent - PITCH_LATENT if self.voice else self.latent

    @property
    def signs(self) -> int:
        """Random signs of a block."""
        return NOISE_BAND if self.voice else NOISE_BAND - self.sign_band

    @property
    def block_noise(self) -> int:
        """Random numbers of a block of 10 ms: the network's, those of the highest bands, the signs."""
        return self.noise + NOISE_BINS + self.signs

    @property
    def noise_dim(self) -> int:
        """Random numbers of a frame in all."""
        return 2 * self.block_noise


@dataclass(frozen=True)
class Training:
    """Optimisation; times are in minutes so that a run fits the session it is given."""

    batch: int = 8
    segment_s: float = 0.64
    learning_rate: float = 1.2e-3
    betas: tuple[float, float] = (0.8, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 200
    decay_share: float = 0.3  # last part of the run over which the rate falls to zero
    plain_steps: int = 600  # unquantised steps before k-means
    clip_norm: float = 1.0  # 0 switches it off
    clip_value: float = 0.0  # 0 switches it off
    told_pitch_steps: int = 1000  # first steps in which the labels' pitch is coded instead of the one that the encoder reads
    new_heads_factor: float = 1.0  # of the rate, for the decoder's newest heads
    average_steps: float = 1000.0  # over which weights are averaged; the average is what `export` and `report` take
    adversarial_after_step: int = 10**9
    adversarial_share: float = 0.0  # last part of the run in which discriminators judge, from whatever step
    critic_rate: float = 2e-4  # learning rate of the discriminators
    critic_width: int = 96
    checkpoint_minutes: float = 5.0
    precision: str = "auto"  # of the networks: "bf16", "fp32", or bf16 where the device computes with it
    seed: int = 1


@dataclass(frozen=True)
class Quantiser:
    ema_decay: float = 0.98
    dead_count: float = 0.25
    commitment: float = 1.0
    # Weight of log(mean square of the latents / rms^2)^2. The relative commitment does not see scale: without this the latents grow
    # without end (to a standard deviation of 43 in 6,800 steps) and the moving averages lag behind.
    scale: float = 0.1
    rms: float = 1.0  # that the latents are held at; a trained encoder's own, or it moves away from its codebooks
    # Stage counts that a listener asks for most, and how often each is drawn; the rest is uniform.
    favourites: tuple[int, ...] = (4, 8, 16, 22)
    favourite_share: float = 0.75
    # Items whose frames have different stage counts, by their level, as files are encoded (docs/bitstream.md).
    graded_share: float = 0.7
    plain_share: float = 0.0  # items that are not quantised at all


@dataclass(frozen=True)
class Losses:
    mel: float = 5.0
    complex: float = 6.0
    loudness: float = 2.0
    linear: float = 0.0  # log magnitudes on a linear frequency axis
    voicing: float = 0.0
    pitch: float = 0.0
    coded: float = 0.0  # of the share that a coded waveform has above 1 kHz, but for generated sounds
    adversarial: float = 0.8  # size of the critic's gradient at the waveform beside that of the spectral losses together
    matching: float = 1.2  # of feature matching beside the hinge loss, within the critic's


@dataclass(frozen=True)
class Data:
    """Chances of each augmentation."""

    music_share: float = 0.15
    mixture_share: float = 0.12
    noise_share: float = 0.1
    talkers_share: float = 0.04
    room_share: float = 0.1
    telephone_share: float = 0.03
    signal_share: float = 0.08  # generated: tones, dialling, bells, knocks
    silence_share: float = 0.01
    level_share: float = 0.7
    quiet_share: float = 0.06
    loud_share: float = 0.06
    pitch_share: float = 0.25


@dataclass(frozen=True)
class Config:
    name: str = "undertone-24k-v1"
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    quantiser: Quantiser = field(default_factory=Quantiser)
    losses: Losses = field(default_factory=Losses)
    data: Data = field(default_factory=Data)


class ConfigError(ValueError):
    """A key or value of a configuration file that cannot be used."""


def _build(cls: type[Any], raw: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"{where}{key}: unknown key; known: {', '.join(known)}")
        sub = _SECTIONS.get(key)
        if sub is not None:
            values[key] = _build(sub, value, f"{where}{key}.")
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    made = cls(**values)
    for key in known:
        v = getattr(made, key)
        if isinstance(v, (int, float)) and not isinstance(v, bool) and v < 0:
            raise ConfigError(f"{where}{key} = {v}: must not be negative")
        if key.endswith("_share") and v > 1:
            raise ConfigError(f"{where}{key} = {v}: allowed 0 to 1")
    return made


_SECTIONS: dict[str, type[Any]] = {"network": Network, "training": Training, "quantiser": Quantiser, "losses": Losses, "data": Data}


def load(path: str | Path) -> Config:
    """Reads a TOML file; raises ConfigError on anything that is not understood."""
    with open(path, "rb") as f:
        return _build(Config, tomllib.load(f), "")


def of_model(folder: str | Path) -> Config:
    """The configuration of an exported model, which `export` leaves in its folder."""
    path = Path(folder) / MODEL_CONFIG
    if not path.exists():
        raise ConfigError(f"{path}: not there; name the configuration that the model was made with (--config)")
    return from_dict(json.loads(path.read_text()))


def from_dict(raw: dict) -> Config:
    """Inverse of dataclasses.asdict, for configurations stored in checkpoints."""
    return _build(Config, raw, "")
