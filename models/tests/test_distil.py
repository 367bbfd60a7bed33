"""The encoder that learns what a search finds, and the packed files that it learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import HERE, SMOKE, small_codec, voice

from undertone_recipe.codec import Codec
from undertone_recipe.config import FRAME
from undertone_recipe.container import ContainerError, packed_codes
from undertone_recipe.distil import SEGMENT, Searched, distance, free_latents, learn, raise_level, searched

GOLDEN = HERE.parent / "tests" / "golden" / "container.hex"


def packed(rows: list[list[int]]) -> bytes:
    bits = "".join(f"{code:010b}" for row in rows for code in row)
    return int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big")


def container(frames: int, bundles: list[bytes]) -> bytes:
    head = b"UTN\x01\x00" + bytes(8) + bytes.fromhex("c05d00e001") + bytes([2, frames, 0]) + b"\0\0"
    return head + b"".join(bundles) + bytes.fromhex("0300") + b"\0\0"


def test_codes_of_packed_bundles_are_read_in_order():
    first, last = [[1, 2], [1023, 512]], [[7, 0]]
    data = container(2, [b"\x01" + packed(first) + b"\0\0", b"\x02\x01\x02\x02" + packed(last) + b"\0\0"])
    assert packed_codes(data).tolist() == [*first, *last]
    assert packed_codes(container(2, [])).shape == (0, 2)


def test_what_is_no_packed_file_of_one_rate_is_refused():
    golden = bytes.fromhex("".join(GOLDEN.read_text().split()))
    with pytest.raises(ContainerError, match="1 stages among those of 2"):
        packed_codes(golden)
    whole = container(2, [b"\x01" + packed([[1, 2], [3, 4]]) + b"\0\0"])
    with pytest.raises(ContainerError, match="ends within a bundle"):
        packed_codes(whole[:27])
    with pytest.raises(ContainerError, match="not an undertone file"):
        packed_codes(b"RIFF" + bytes(40))
    with pytest.raises(ContainerError, match="only packed"):
        packed_codes(whole[:20] + b"\x01" + whole[21:])
    with pytest.raises(ContainerError, match="0x08"):
        packed_codes(whole[:-4] + b"\x08\0\0\0")


def moved_items(codec: Codec, count: int) -> list[Searched]:
    """Recordings whose latents a search moved all the same way."""
    way, items = torch.randn(codec.cfg.network.free, generator=torch.Generator().manual_seed(3)), []
    for i in range(count):
        pcm = torch.from_numpy(voice(2.4, i))
        with torch.no_grad():
            latents = free_latents(codec.encoder, pcm[None])[0]
        items.append(Searched(pcm, latents + way, torch.ones(len(latents), 1)))
    return items


def test_an_encoder_learns_what_a_search_found_and_nothing_else_moves():
    codec = small_codec().requires_grad_(False)
    items = moved_items(codec, 3)
    state = {k: v.clone() for k, v in codec.state_dict().items()}
    before, after = learn(codec, items, 60, 3e-3)
    assert after < 0.5 * before
    assert after == pytest.approx(float(distance(codec.encoder, items[0].pcm[None], items[0].latents[None], items[0].counts[None])))
    changed = {k.split(".")[0] for k, v in codec.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == {"encoder"}
    assert not any(p.requires_grad for p in codec.parameters())


def test_what_was_found_is_the_sum_of_entries_and_whole_frames_only():
    codec = small_codec()
    codes = np.random.default_rng(1).integers(0, SMOKE.network.entries, (SEGMENT, 3))
    item = searched(codec, voice(2.0)[: SEGMENT * FRAME - 5], codes)
    assert item.pcm.shape == ((SEGMENT - 1) * FRAME,) and item.latents.shape == (SEGMENT - 1, SMOKE.network.free)
    want = codec.quantiser.decode(torch.from_numpy(codes[None]))[0, : SEGMENT - 1]
    assert torch.equal(item.latents, want) and item.counts.all()


def test_a_raised_level_is_heard():
    codec = small_codec()
    pcm = torch.from_numpy(voice(1.0))[None]
    # Noise above 7.8 kHz stays as it is.
    loud = lambda: float(torch.fft.rfft(codec.round_trip(pcm, 3))[0, :7000].abs().pow(2).mean())
    was = loud()
    raise_level(codec, 6.0)
    assert loud() / was == pytest.approx(4, rel=0.05)
