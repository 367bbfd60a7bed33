//! Where a sound begins out of silence, so suddenly that the distances cannot say when.
//!
//! Their windows are longer than the attack of a castanet or a click; moving latents to please them makes what begins softer and what is
//! heard before it louder. Such frames stay as the encoder, whose blocks are shorter, made them.

/// Parts of a hop, whose powers are compared: 2.5 ms.
const PARTS: usize = 4;

/// Rise over the loudest part of the last hop, 9 dB.
const RISE: f32 = 8.0;

/// Rise over the loudest part of the hop before that, 36 dB.
const RISE_FAR: f32 = 4000.0;

/// Power (-70 dBFS) that is added to all, or noise that nobody hears would begin things.
const LEAST: f32 = 1e-7;

/// For each hop of pcm, whether a sound begins in it; `before` are the two hops before it.
pub(super) fn beginnings(before: &[f32], pcm: &[f32], hop: usize) -> Vec<bool> {
    let size = hop / PARTS;
    let powers: Vec<f32> = (before.chunks_exact(size).chain(pcm.chunks_exact(size)))
        .map(|part| part.iter().map(|x| x * x).sum::<f32>() / size as f32 + LEAST)
        .collect();
    let loudest = |parts: &[f32]| parts.iter().fold(0.0f32, |a, &b| a.max(b));
    let mut begins = powers.windows(2 * PARTS).skip(1).map(|parts| {
        let now = parts[2 * PARTS - 1];
        now > RISE * loudest(&parts[PARTS - 1..2 * PARTS - 1]) && now > RISE_FAR * loudest(&parts[..PARTS])
    });
    (0..pcm.len() / hop).map(|_| begins.by_ref().take(PARTS).fold(false, |a, b| a | b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: usize = 240;

    fn hiss(n: usize, level: f32) -> Vec<f32> {
        let mut x = 1u32;
        std::iter::repeat_with(|| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            level * (x as f32 / 2.0f32.powi(31) - 1.0)
        })
        .take(n)
        .collect()
    }

    #[test]
    fn a_knock_out_of_silence_begins_in_its_hop_only() {
        for at in [0, 130, 700, 1400] {
            let mut pcm = hiss(8 * HOP, 3e-4);
            let end = (at + 200).min(pcm.len());
            pcm[at..end].copy_from_slice(&hiss(end - at, 0.3));
            let begins = beginnings(&hiss(2 * HOP, 3e-4), &pcm, HOP);
            let found: Vec<usize> = (0..8).filter(|&hop| begins[hop]).collect();
            assert_eq!(found, [at / HOP]);
        }
    }

    #[test]
    fn a_knock_just_before_is_none() {
        let mut before = hiss(2 * HOP, 3e-4);
        before[HOP..].copy_from_slice(&hiss(HOP, 0.3));
        assert_eq!(beginnings(&before, &hiss(2 * HOP, 0.3), HOP), [false; 2]);
    }

    #[test]
    fn noise_a_swell_and_what_nobody_hears_begin_nothing() {
        let swell: Vec<f32> = hiss(20 * HOP, 0.5).iter().enumerate().map(|(n, x)| x * (n as f32 / 4800.0)).collect();
        for pcm in [hiss(20 * HOP, 0.3), swell, hiss(20 * HOP, 1e-4), vec![0.0; 20 * HOP]] {
            assert!(!beginnings(&pcm[..2 * HOP], &pcm[2 * HOP..], HOP).contains(&true));
        }
        let steps = [hiss(4 * HOP, 0.05), hiss(4 * HOP, 0.3)].concat();
        assert!(
            !beginnings(&steps[..2 * HOP], &steps[2 * HOP..], HOP).contains(&true),
            "15 dB louder is not out of silence"
        );
    }
}
