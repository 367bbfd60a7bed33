//! A WAV file or pipe: no panic, bounded memory, no sample that cannot be used, and the same as file and as pipe where both can know.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use undertone::capture::WavReader;

/// Samples of 8 kHz become three times as many.
const MOST: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    for length in [Some(data.len() as u64), None] {
        let Ok(mut wav) = WavReader::open(Cursor::new(data.to_vec()), length) else { continue };
        let mut pcm = Vec::new();
        let mut all = 0;
        while let Ok(true) = wav.read(&mut pcm) {
            assert!(pcm.iter().all(|x| x.is_finite()));
            all += pcm.len();
            pcm.clear();
        }
        assert!(all <= MOST + 3 * data.len(), "{all} samples of {} bytes", data.len());
        assert!(wav.remarks().len() <= 2 * data.len());
    }
});
