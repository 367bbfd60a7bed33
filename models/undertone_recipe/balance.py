"""Mending the decoder's gains and the scale of the latents so that training can go on: what is heard stays (nearly) as it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import Codec
from .config import BAND_EDGES, BANDS, HOP, NOISE_BAND, SHAPED
from .data import Batches
from .network import GAIN_RANGE, LOG_GAIN_SCALE, LOG_GAIN_SHIFT

# A band of one of a frame's two blocks is dead if its log gain is below the allowed range in this share of the frames.
DEAD_SHARE = 0.45


@dataclass(frozen=True)
class Observed:
    """What the decoder makes of N frames of training audio, two blocks each, and what it should have made."""

    hidden: Tensor  # [N, 2, width]
    latent: Tensor  # [N, latent]
    shape: Tensor  # [N, 2, SHAPED], decoded
    gain: Tensor  # [N, 2, BANDS], log, decoded
    true_shape: Tensor  # [N, 2, SHAPED]
    true_gain: Tensor  # [N, 2, BANDS]


@torch.no_grad()
def observe(codec: Codec, batches: Batches, count: int) -> Observed:
    """Runs `count` batches, a third unquantised and the others with 8 and 16 stages; frames below -50 dBFS are left out."""
    parts = []
    for i in range(count):
        x = torch.from_numpy(next(batches))
        z, _ = codec.encoder(x)
        f, _ = codec.encoder.features(x, None)
        q = z if i % 3 == 0 else codec.quantiser.decode(codec.quantiser.encode(z, min((8, 16)[i % 3 - 1], codec.cfg.network.stages)))
        b, t, _ = q.shape
        d = codec.decoder
        voice = d.voice(q, {}, {})[0] if d.voiced else None
        h = d.hidden(q, torch.rand(b, 2 * t, d.block_noise) * 2 - 1, voice, {})[0]
        shape, gain = d.heads(h, q)
        truth = f.reshape(b * t, 2, HOP + BANDS)
        part = [h.reshape(b * t, 2, -1), q.flatten(0, 1), shape.reshape(b * t, 2, -1)]
        part += (gain.reshape(b * t, 2, -1), truth[..., :SHAPED], (truth[..., HOP:] - LOG_GAIN_SHIFT) / LOG_GAIN_SCALE)
        power = x.reshape(b * t, -1).pow(2).mean(1)
        parts.append([v[power > 1e-5] for v in part])
    return Observed(*(torch.cat(v) for v in zip(*parts)))


@torch.no_grad()
def rescale(codec: Codec, batches: Batches, count: int) -> float:
    """Brings the latents to the RMS that the configuration asks for, with what writes and reads them to match; returns what it was.

    The entries of the pitch's stage keep their size: beside much larger latents a beam would fill up with wrong pitches.
    """
    free, q = codec.cfg.network.free, codec.quantiser
    latents = [codec.encoder(torch.from_numpy(next(batches)))[0][..., :free] for _ in range(count)]
    was = float(torch.cat(latents).pow(2).mean().sqrt())
    factor = q.cfg.rms / was
    for layer in (codec.encoder.skip, codec.encoder.out):
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
    for stage in q.stages:
        stage.codebook[:, :free] *= factor
        stage.total[:, :free] *= factor
    for layer in (codec.decoder.inp, codec.decoder.shape_skip, codec.decoder.gain_skip):
        layer.weight[:, :free] /= factor
    return was


def least_squares(x: Tensor, y: Tensor, ridge: float = 1e-2) -> Tensor:
    """Coefficients [D, M] that predict y [N, M] from x [N, D], kept small by `ridge`.

    With 1e-5 the weights of the highest bands' gains came out ten times larger than all others, each cancelling another: a run that
    went on from there left the cancellation within 2,000 steps and diverged.
    """
    x = x.double()
    a = x.T @ x
    return torch.linalg.solve(a + ridge * torch.diag(a.diagonal() + 1e-9), x.T @ y.double()).float()


def dead_gains(seen: Observed) -> list[tuple[int, int]]:
    """(band, block) of the gains that are silent in most frames, though no frame is."""
    share = (seen.gain < GAIN_RANGE[0]).float().mean(0)
    return [(b, j) for b in range(BANDS) for j in (0, 1) if float(share[j, b]) > DEAD_SHARE]


@torch.no_grad()
def balance(codec: Codec, seen: Observed) -> list[str]:
    """Brings decoded shapes back to a mean square of 1 in each band, with the gains to match, and revives dead gains.

    Only the product of shape and gain is heard, so training lets one grow while the other falls, until a log gain leaves GAIN_RANGE.
    Without a gradient there it never came back: one of two blocks of a band stayed silent. A dead gain and its shape
    become the best linear prediction from the latents. Returns what was revived.
    """
    d, n = codec.decoder, len(seen.latent)
    ones = torch.ones(n, 1)
    latent, told, all_dead = torch.cat([seen.latent, ones], 1), [], dead_gains(seen)
    for b in range(BANDS):
        lo, hi = BAND_EDGES[b], BAND_EDGES[b + 1]
        dead = [j for j in (0, 1) if (b, j) in all_dead]
        if b >= NOISE_BAND:
            if not dead:
                continue
            # Their shape is noise; both blocks are fitted at once, because the weights over the hidden layer are shared.
            zero = torch.zeros_like(latent)
            x = torch.cat([torch.cat([seen.hidden[:, 0], latent, zero], 1), torch.cat([seen.hidden[:, 1], zero, latent], 1)])
            p = least_squares(x, torch.cat([seen.true_gain[:, 0, b], seen.true_gain[:, 1, b]])[:, None])[:, 0]
            w, k = seen.hidden.shape[2], latent.shape[1]
            d.gain.weight[b], d.gain.bias[b] = p[:w], 0
            for j in (0, 1):
                part = p[w + j * k : w + (j + 1) * k]
                d.gain_skip.weight[j * BANDS + b], d.gain_skip.bias[j * BANDS + b] = part[:-1], part[-1]
            told.append(f"band {b}")
            continue
        alive = [j for j in (0, 1) if j not in dead] or [0, 1]
        size = seen.shape[:, alive, lo:hi].pow(2).mean().sqrt()
        d.shape.weight[lo:hi] /= size
        d.shape.bias[lo:hi] /= size
        for j in (0, 1):
            rows = slice(j * SHAPED + lo, j * SHAPED + hi)
            d.shape_skip.weight[rows] /= size
            d.shape_skip.bias[rows] /= size
        d.gain.bias[b] += size.log()
        for j in dead:
            rows = slice(j * SHAPED + lo, j * SHAPED + hi)
            shared = seen.hidden[:, j] @ d.shape.weight[lo:hi].T + d.shape.bias[lo:hi]
            p = least_squares(latent, seen.true_shape[:, j, lo:hi] - shared)
            d.shape_skip.weight[rows], d.shape_skip.bias[rows] = p[:-1].T, p[-1]
            made = (shared + latent @ p).pow(2).mean(1).sqrt()
            # Half of the level to begin with: a wrong sign at full level is worse than silence.
            want = seen.true_gain[:, j, b] - torch.log(2 * (made + 0.15)) - (seen.hidden[:, j] @ d.gain.weight[b] + d.gain.bias[b])
            p = least_squares(latent, want[:, None])[:, 0]
            d.gain_skip.weight[j * BANDS + b], d.gain_skip.bias[j * BANDS + b] = p[:-1], p[-1]
            told.append(f"band {b} block {j}")
    return told
