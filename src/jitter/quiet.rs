//! When background is made up for whoever listens as it happens.
//!
//! In silence a sender says nothing for a while, and a listener must not wait until it hears what comes next: background is given out
//! by the clock. When something comes it may be a little earlier or later than the clock thought; its place is then moved, so that
//! nothing of it is cut, and what is ahead of the clock is taken back from the next silence.

use std::time::{Duration, Instant};

use super::Moment;

/// How late a bundle may be before background takes its place.
const SLACK: Duration = Duration::from_millis(40);

/// Frames that are given out at once.
const STEP: u8 = 5;

/// Frames after a description that are made up: see docs/bitstream.md, section 1.
const MOST: u64 = 50;

/// The silence of one stream. Time is an argument.
#[derive(Debug, Clone)]
pub struct Quiet<T = Instant> {
    frame: Duration,
    /// The frame after the last one given out, as they are numbered here, and what was added to the sender's numbers.
    next: u64,
    shift: u64,
    /// When what was given out will have been played.
    ends: Option<T>,
    /// In silence: the frames made up since the last description.
    made: Option<u64>,
}

/// What is to be done with a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Frames of background to be made up in front of it, and the first one's number.
    pub fill: u64,
    /// See `fill`.
    pub first_fill: u64,
    /// Number of the bundle's first frame here.
    pub first_frame: u64,
}

impl<T: Moment> Quiet<T> {
    /// Before the first bundle; `frame` is the length of a frame.
    pub fn new(frame: Duration) -> Self {
        Self { frame, next: 0, shift: 0, ends: None, made: None }
    }

    /// Places a bundle that came at `now` and is given out at once.
    pub fn place(&mut self, first_frame: u64, frames: u8, is_background: bool, now: T) -> Placed {
        let mut place = first_frame.wrapping_add(self.shift);
        let (mut fill, first_fill) = (0, self.next);
        if let Some(made) = self.made.take() {
            let gap = place.wrapping_sub(self.next) as i64;
            let left = MOST.saturating_sub(made);
            // More than a silence explains is a loss, and stays one.
            if gap <= left as i64 {
                fill = self.behind(now).min(gap.max(0) as u64);
                place = self.next.wrapping_add(fill);
                self.shift = place.wrapping_sub(first_frame);
            }
        }
        self.next = place.wrapping_add(u64::from(frames));
        let gone = self.ends.map_or(now, |e| (e + self.length(fill)).max(now));
        self.ends = Some(gone + self.length(u64::from(frames)));
        self.made = is_background.then_some(0);
        Placed { fill, first_fill, first_frame: place }
    }

    /// Whole frames by which what was given out has been played.
    fn behind(&self, now: T) -> u64 {
        let behind = self.ends.map_or(Duration::ZERO, |e| now.since(e));
        // What is nearly a frame is one: clocks are not that good.
        ((behind + self.frame / 4).as_micros() / self.frame.as_micros().max(1)) as u64
    }

    fn length(&self, frames: u64) -> Duration {
        self.frame.saturating_mul(u32::try_from(frames).unwrap_or(u32::MAX))
    }

    /// Frames did not come that were no silence.
    pub fn lose(&mut self, frames: u64) {
        self.next = self.next.wrapping_add(frames);
        self.ends = self.ends.map(|e| e + self.length(frames));
        self.made = None;
    }

    /// When [`Quiet::fill`] will give something if nothing comes before; None: only a bundle helps.
    pub fn due(&self) -> Option<T> {
        let made = self.made?;
        if made >= MOST { None } else { self.ends.map(|e| e + SLACK) }
    }

    /// Background to be made up at `now`: its first frame and how many.
    pub fn fill(&mut self, now: T) -> Option<(u64, u8)> {
        if self.due()? > now {
            return None;
        }
        let (made, ends) = (self.made.as_mut()?, self.ends.as_mut()?);
        let frames = u64::from(STEP).min(MOST - *made);
        *made += frames;
        *ends = *ends + self.frame * frames as u32;
        let first = self.next;
        self.next = self.next.wrapping_add(frames);
        Some((first, frames as u8))
    }
}

/// How much time bundles stand for, the silence before them included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spans {
    /// The frame after the last bundle, if that was background.
    silent_from: Option<u64>,
}

impl Spans {
    /// Frames from the end of the bundle before to the end of this one, if there was silence in between; otherwise its own.
    pub fn frames(&mut self, first_frame: u64, frames: u8, is_background: bool) -> u64 {
        let silence = self.silent_from.map_or(0, |from| first_frame.saturating_sub(from));
        self.silent_from = is_background.then(|| first_frame.saturating_add(u64::from(frames)));
        u64::from(frames) + if silence <= MOST { silence } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Duration = Duration::from_millis(20);

    /// Frames given out and when, for bundles `(ms at which it comes, first frame, frames, background)`.
    fn run(bundles: &[(u64, u64, u8, bool)], until_ms: u64) -> Vec<(u64, u64, u64)> {
        let (start, mut quiet, mut out) = (Instant::now(), Quiet::new(FRAME), Vec::new());
        let mut waiting = bundles.iter().peekable();
        for ms in 0..until_ms {
            let now = start + Duration::from_millis(ms);
            while let Some(&(_, first, frames, background)) = waiting.next_if(|b| b.0 <= ms) {
                let placed = quiet.place(first, frames, background, now);
                if placed.fill > 0 {
                    out.push((ms, placed.first_fill, placed.fill));
                }
                out.push((ms, placed.first_frame, u64::from(frames)));
            }
            while let Some((first, frames)) = quiet.fill(now) {
                out.push((ms, first, u64::from(frames)));
            }
        }
        // No number twice, none left out in silence.
        assert!(out.windows(2).all(|w| w[1].1 >= w[0].1 + w[0].2), "{out:?}");
        out
    }

    fn frames(out: &[(u64, u64, u64)]) -> u64 {
        out.iter().map(|o| o.2).sum()
    }

    #[test]
    fn silence_lasts_as_long_as_it_did_and_nothing_is_late_after_it() {
        // A minute of speech in which every other second is silent, described every 400 ms.
        let mut bundles = Vec::new();
        for n in 0..600u64 {
            let (second, tenth) = (n / 10, n % 10);
            if second % 2 == 0 || tenth % 4 == 0 {
                bundles.push((100 * (n + 1), 5 * n, 5, second % 2 == 1));
            }
        }
        let out = run(&bundles, 61_000);
        assert!(out.windows(2).all(|w| w[1].1 == w[0].1 + w[0].2), "no gap");
        let by = |ms: u64| out.iter().filter(|o| o.0 <= ms).map(|o| o.2).sum::<u64>();
        for second in 1..60 {
            // What has been given out fits the clock, at the end of each second, by a step.
            let (got, right) = (by(1_000 * second + 50), 50 * second);
            assert!(got.abs_diff(right) <= 10, "{got} of {right} frames after {second} s");
        }
        assert!(frames(&out).abs_diff(3_050) <= 12, "{}", frames(&out));
    }

    #[test]
    fn what_comes_earlier_than_the_clock_thought_is_not_cut_and_is_made_up_for() {
        // Background at 100 ms; speech of frames 10 to 14 comes 60 ms late, when background has taken its place.
        let out = run(&[(100, 0, 5, true), (360, 10, 5, false), (460, 15, 5, true), (900, 40, 5, false)], 950);
        let speech = out.iter().find(|o| o.0 == 360).unwrap();
        assert_eq!(speech.2, 5, "whole: {out:?}");
        // All that was given out by the end is what the clock says, not more.
        assert!(frames(&out) <= 47, "{out:?}");
    }

    #[test]
    fn a_silence_without_descriptions_ends_after_a_second_and_losses_stay_losses() {
        let out = run(&[(100, 0, 5, true), (5_000, 245, 5, false), (5_100, 255, 5, false)], 6_000);
        assert_eq!(frames(&out[..out.len() - 2]), 55, "{out:?}");
        let (back, after) = (out[out.len() - 2], out[out.len() - 1]);
        assert!(back.1 > 55, "a gap stays: {out:?}");
        assert_eq!(after.1, back.1 + 10, "a loss outside of silence keeps its place");
    }

    #[test]
    fn silence_takes_time_and_losses_do_not() {
        let mut spans = Spans::default();
        let bundles = [(0, 5, false), (10, 5, true), (30, 5, true), (42, 5, false), (60, 5, true), (200, 5, false)];
        assert_eq!(bundles.map(|(first, frames, b)| spans.frames(first, frames, b)), [5, 5, 20, 12, 5, 5]);
    }
}
