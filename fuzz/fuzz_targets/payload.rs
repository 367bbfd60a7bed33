//! Coded payloads, one after another, plain and graded: no panic, and what decodes encodes to something that decodes to the same.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use undertone::bitstream::ContextRule;
use undertone::entropy::{Coded, Decoder, Encoder};
use undertone::fake;
use undertone::rvq::SimdLevel;
use undertone::token::{TokenModel, fake as fake_tokens};
use undertone::units::StageCount;

static MODEL: LazyLock<Arc<TokenModel>> = LazyLock::new(|| fake_tokens::model(&fake::codebooks(4, 7), 7));

fuzz_target!(|data: &[u8]| {
    let [flags, rest @ ..] = data else { return };
    let rule = if flags & 1 == 0 { ContextRule::Continuous } else { ContextRule::Bundle };
    let (mut decoder, mut encoder) = (
        Decoder::new(Arc::clone(&MODEL), rule, SimdLevel::Scalar),
        Encoder::new(Arc::clone(&MODEL), rule, SimdLevel::Scalar),
    );
    if flags & 2 != 0 {
        (decoder, encoder) = (decoder.graded(), encoder.graded());
    }
    let mut first_frame = 0;
    for (n, payload) in rest.chunks(24).enumerate().take(4) {
        let (frames, stages) = (1 + (flags >> 2) % 5, 1 + (flags >> 5) % 4);
        let stages = StageCount::new(stages).expect("1 to 4");
        let Ok(bundle) = decoder.decode(first_frame, frames, stages, n == 0, payload) else { return };
        let mut bytes = Vec::new();
        let Ok(coded) = encoder.encode(&bundle, n == 0, &mut bytes) else {
            panic!("a decoded bundle must be encodable")
        };
        if let Coded::Range { .. } = coded {
            let mut again = Decoder::new(Arc::clone(&MODEL), rule, SimdLevel::Scalar);
            if flags & 2 != 0 {
                again = again.graded();
            }
            if n == 0 {
                assert_eq!(again.decode(first_frame, frames, stages, true, &bytes).ok(), Some(bundle));
            }
        }
        first_frame += u64::from(frames);
    }
});
