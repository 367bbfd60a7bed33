//! A file in pieces, with the token model that it may ask for: no panic, bounded memory, and every bundle is a valid one.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use undertone::bitstream::{Item, ReaderOptions};
use undertone::entropy::StreamReader;
use undertone::fake;
use undertone::token::{TokenModel, fake as fake_tokens};

static MODEL: LazyLock<Arc<TokenModel>> = LazyLock::new(|| fake_tokens::model(&fake::codebooks(4, 7), 7));

fuzz_target!(|data: &[u8]| {
    let mut reader = StreamReader::new(ReaderOptions::default(), Some(Arc::clone(&MODEL)));
    let mut frames = 0u64;
    for piece in data.chunks(1 + data.first().map_or(0, |&b| usize::from(b))) {
        reader.push(piece);
        while let Ok(Some(item)) = reader.next() {
            if let Item::Bundle(bundle) = item {
                frames += u64::from(bundle.frames);
                assert_eq!(bundle.codes.len(), usize::from(bundle.frames) * bundle.stages.index());
            }
            // Fake weights cost as much as real ones: a second of codes is enough for one input.
            if frames > 50 {
                return;
            }
        }
    }
    let _ = reader.finish();
});
