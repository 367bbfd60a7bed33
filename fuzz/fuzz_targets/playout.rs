//! A playout buffer under packets of anybody: no panic, bounded memory, frames in order and none twice.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use undertone::jitter::{Played, Playout, PlayoutOptions};

/// Most frames that a receiver is told are lost at once.
const MOST_LOST: u64 = 250;

fuzz_target!(|data: &[u8]| {
    let Some((&how, mut rest)) = data.split_first() else { return };
    let options = PlayoutOptions { eager: how & 1 == 1, ..PlayoutOptions::default() };
    let mut playout = Playout::new(options);
    let (start, mut now) = (Instant::now(), Duration::ZERO);
    let mut expected: Option<u64> = None;
    while let Some((head, tail)) = rest.split_first_chunk::<12>() {
        rest = tail;
        now += Duration::from_millis(u64::from(head[1]) * u64::from(head[1]) / 16);
        let at = start + now;
        // Small numbers mostly, as streams have them, and now and then any.
        let number = |low: u8, high: u8, far: u8| match far {
            0xFF => u64::MAX - u64::from(low),
            0xF0.. => u64::from(low) << (far & 0xF) << (high % 32),
            _ => u64::from(low) | u64::from(high & 3) << 8,
        };
        let (sequence, frame) = (number(head[2], head[3], head[4]), number(head[5], head[6], head[7]));
        match head[0] % 8 {
            0..=3 => {
                playout.push(sequence, frame, head[8], (frame, head[8]), at);
            }
            4 => playout.push_copy(frame, frame.saturating_add(u64::from(head[8])), (frame, 1)),
            5 => playout.announce(sequence),
            _ => {
                for _ in 0..600 {
                    match playout.pop(at) {
                        Some(Played::Packet((first, frames))) => {
                            let end = first.checked_add(u64::from(frames)).expect("what was taken has an end");
                            // A packet that is late in part begins before the frame that is expected, and ends behind it.
                            assert!(frames > 0 && expected.is_none_or(|e| end > e), "{first} + {frames}, {expected:?}");
                            expected = Some(end);
                        }
                        Some(Played::Lost { first_frame, frames }) => {
                            assert!((1..=MOST_LOST).contains(&frames));
                            assert!(expected.is_none_or(|e| e == first_frame), "{first_frame}, {expected:?}");
                            expected = first_frame.checked_add(frames);
                        }
                        Some(Played::Quiet { frames }) => {
                            assert!((1..=50).contains(&frames));
                            expected = expected.map(|e: u64| e.saturating_add(frames));
                        }
                        Some(Played::Restart) => expected = None,
                        None => break,
                    }
                }
            }
        }
        let report = playout.report();
        assert!(report.received <= (data.len() / 12) as u64 + 1);
        assert!(playout.wake().is_none_or(|w| w >= start));
        let _ = (playout.has_all(sequence), playout.is_empty(), playout.delay());
    }
});
