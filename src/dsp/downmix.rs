//! Several channels to one, by where their loudspeakers stand.

/// Most channels of a recording that are mixed by their places; the layouts of ITU-R BS.775 and 7.1 have no more.
pub const MAX_PLACED: usize = 8;

/// Bits of a channel mask as WAVE_FORMAT_EXTENSIBLE has them.
const FRONT_LEFT: u32 = 1;
const FRONT_RIGHT: u32 = 1 << 1;
const FRONT_CENTRE: u32 = 1 << 2;
const LOW_FREQUENCIES: u32 = 1 << 3;
const LEFT_OF_CENTRE: u32 = 1 << 6;
const RIGHT_OF_CENTRE: u32 = 1 << 7;
const LOW_FREQUENCIES_2: u32 = 1 << 18;

/// What a recording without a mask has, by its number of channels: mono, stereo, 3.0, quadraphony, 5.0, 5.1, 6.1, 7.1.
const USUAL: [u32; MAX_PLACED] = [0x4, 0x3, 0x7, 0x33, 0x37, 0x3f, 0x70f, 0x63f];

/// Gains of the channels of an interleaved sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Downmix {
    gains: Vec<f32>,
}

impl Downmix {
    /// The mean of `channels` channels (at least one) of which nothing is known.
    pub fn mean(channels: usize) -> Self {
        let channels = channels.max(1);
        Self { gains: vec![1.0 / channels as f32; channels] }
    }

    /// By the coefficients of ITU-R BS.775-3, annex 4, table 2, for one loudspeaker: the centre as it is, left and right 3 dB down,
    /// surrounds 6 dB down, and the channel of low frequencies left out. One channel stays as it is, and of a stereo pair the
    /// mean is taken, so that what both hold keeps its level.
    ///
    /// `mask` names the places of the channels in the order of its bits; None takes what is usual for their number. A mask that
    /// does not have a bit for every channel says nothing: then it is the mean.
    pub fn placed(channels: usize, mask: Option<u32>) -> Self {
        let mask = mask.unwrap_or_else(|| channels.checked_sub(1).and_then(|n| USUAL.get(n)).copied().unwrap_or(0));
        if channels <= 1 || mask.count_ones() as usize != channels || mask == FRONT_LEFT | FRONT_RIGHT {
            return Self::mean(channels);
        }
        let places = (0..32).map(|bit| 1u32 << bit).filter(|place| mask & place != 0);
        let gains: Vec<f32> = places.map(gain).collect();
        // Nothing but low frequencies: better heard than not.
        if gains.iter().all(|&g| g == 0.0) { Self::mean(channels) } else { Self { gains } }
    }

    /// Channels of a sample.
    pub fn channels(&self) -> usize {
        self.gains.len()
    }

    /// One value of an interleaved sample `[channels]`.
    pub fn mix(&self, sample: &[f32]) -> f32 {
        self.gains.iter().zip(sample).map(|(gain, x)| gain * x).sum()
    }
}

fn gain(place: u32) -> f32 {
    match place {
        FRONT_CENTRE => 1.0,
        FRONT_LEFT | FRONT_RIGHT | LEFT_OF_CENTRE | RIGHT_OF_CENTRE => std::f32::consts::FRAC_1_SQRT_2,
        LOW_FREQUENCIES | LOW_FREQUENCIES_2 => 0.0,
        _ => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_in_the_centre_keeps_its_level_and_low_frequencies_are_left_out() {
        let down = Downmix::placed(6, Some(0x3f));
        assert_eq!(down.mix(&[0.0, 0.0, 0.4, 0.0, 0.0, 0.0]), 0.4);
        assert_eq!(down.mix(&[0.0, 0.0, 0.0, 0.9, 0.0, 0.0]), 0.0);
        assert!((down.mix(&[0.5, 0.0, 0.0, 0.0, 0.0, 0.0]) - 0.353_55).abs() < 1e-4);
        assert_eq!(down.mix(&[0.0, 0.0, 0.0, 0.0, 0.5, 0.0]), 0.25);
        assert_eq!(Downmix::placed(6, None), down, "5.1 is what six channels usually are");
        // The same with surrounds at the sides, and 7.1.
        assert_eq!(Downmix::placed(6, Some(0x60f)), down);
        assert_eq!(Downmix::placed(8, None).mix(&[0.0, 0.0, 0.3, 0.9, 0.0, 0.0, 0.0, 0.0]), 0.3);
    }

    #[test]
    fn one_channel_and_two_keep_their_level() {
        for mask in [None, Some(0x1), Some(0x4), Some(0x8), Some(0)] {
            assert_eq!(Downmix::placed(1, mask).mix(&[0.25]), 0.25, "{mask:?}");
        }
        for mask in [None, Some(0x3), Some(0)] {
            assert_eq!(Downmix::placed(2, mask).mix(&[0.5, 0.25]), 0.375, "{mask:?}");
        }
        // Centre and low frequencies are no stereo.
        assert_eq!(Downmix::placed(2, Some(0xc)).mix(&[0.5, 0.9]), 0.5);
    }

    #[test]
    fn a_mask_that_does_not_fit_says_nothing() {
        for mask in [0, 0x3, 0xffff_ffff] {
            assert_eq!(Downmix::placed(4, Some(mask)), Downmix::mean(4), "{mask:#x}");
        }
        assert_eq!(Downmix::mean(0).channels(), 1);
        assert_eq!(Downmix::placed(12, None), Downmix::mean(12));
    }
}
