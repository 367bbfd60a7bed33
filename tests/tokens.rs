//! The token model and the coding that rests on it: the same numbers on every machine, and not a code lost.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use undertone::bitstream::{ABSENT, Bundle, ContextRule};
use undertone::entropy::{Coded, Decoder, Encoder, EntropyError};
use undertone::model::Manifest;
use undertone::rvq::{Codebooks, SimdLevel};
use undertone::token::{Context, Frequencies, TokenError, TokenModel};
use undertone::units::{ModelId, StageCount};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")
}

fn parts() -> (Vec<u8>, ModelId, Codebooks) {
    let read = |name: &str| std::fs::read(folder().join(name)).unwrap();
    let m = Manifest::parse(&read("manifest.toml")).unwrap();
    let books = m.read_codebooks(&read(&m.codebooks.path)).unwrap();
    (read("tokens.safetensors"), m.id, books)
}

fn model() -> Arc<TokenModel> {
    static MODEL: std::sync::OnceLock<Arc<TokenModel>> = std::sync::OnceLock::new();
    Arc::clone(MODEL.get_or_init(|| {
        let (bytes, id, books) = parts();
        TokenModel::parse(&bytes, id, &books).unwrap()
    }))
}

fn stages(n: u8) -> StageCount {
    StageCount::new(n).unwrap()
}

/// Codes of the golden example of the codec: real ones.
fn real_codes(n: StageCount, frames: usize) -> Vec<u16> {
    let bytes = std::fs::read(folder().join("golden.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("codes").unwrap().data().to_vec();
    let all: Vec<u16> = data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as u16).collect();
    let all_stages = parts().2.stages();
    all.chunks_exact(all_stages).take(frames).flat_map(|f| &f[..n.index()]).copied().collect()
}

#[test]
fn every_instruction_set_gives_the_golden_frequencies() {
    for level in SimdLevel::available() {
        model().verify(level).unwrap();
    }
}

#[test]
fn a_model_of_other_codes_is_refused() {
    let (mut bytes, _, books) = parts();
    let e = TokenModel::parse(&bytes, ModelId([7; 8]), &books).unwrap_err();
    assert!(matches!(e, TokenError::Codec { .. }) && e.to_string().contains("0707070707070707"), "{e}");
    let (_, id, _) = parts();
    // A changed weight changes what comes out, and the golden example says so.
    let at = bytes.len() - 100_000;
    bytes[at..at + 50_000].fill(1);
    assert!(TokenModel::parse(&bytes, id, &books).is_err());
    assert!(TokenModel::parse(&bytes[..1000], id, &books).is_err());
    assert!(TokenModel::parse(&[], id, &books).is_err());
}

#[test]
fn memory_slides_and_can_be_taken_back() {
    let n = stages(2);
    let mut context = Context::new(model(), n, SimdLevel::detect());
    let codes: Vec<u16> = (0..400u32).map(|i| (i * 7919 % 1024) as u16).collect();
    // Past the window of 128 frames.
    codes.iter().for_each(|&c| context.push(c));
    assert_eq!(context.frames(), 200);
    let mark = context.mark();
    let before = context.logits().to_vec();
    for c in 0..20 {
        context.push(c);
    }
    assert_ne!(context.logits(), before);
    assert!(context.back_to(&mark));
    assert_eq!(context.logits(), before);
    for c in 0..40 {
        context.push(c);
    }
    context.logits();
    assert!(!context.back_to(&mark), "a mark 20 frames old");
    context.restart();
    let fresh = Context::new(model(), n, SimdLevel::Scalar).logits().to_vec();
    assert_eq!(context.logits(), fresh);
}

#[test]
fn real_codes_get_shorter_and_come_back() {
    for (rule, n) in [(ContextRule::Continuous, 3), (ContextRule::Continuous, 12), (ContextRule::Bundle, 6)] {
        let n = stages(n);
        let mut encoder = Encoder::new(model(), rule, SimdLevel::detect());
        let mut decoder = Decoder::new(model(), rule, SimdLevel::Scalar);
        let (mut coded, mut packed) = (0, 0);
        for (i, codes) in real_codes(n, 50).chunks(10 * n.index()).enumerate() {
            let bundle = Bundle::new(10 * i as u64, 10, n, codes.to_vec()).unwrap();
            let mut payload = Vec::new();
            let Coded::Range { restart } = encoder.encode(&bundle, false, &mut payload).unwrap() else {
                panic!("no gain on real codes");
            };
            assert_eq!(restart, i == 0 || rule == ContextRule::Bundle);
            assert_eq!(decoder.decode(10 * i as u64, 10, n, restart, &payload).unwrap(), bundle);
            coded += payload.len();
            packed += Bundle::payload_len(10, n);
        }
        assert!(coded * 100 < packed * 95, "{coded} bytes coded, {packed} packed");
        assert!((coded as f64 - encoder.model_bits() / 8.0) <= 6.0);
    }
}

#[test]
fn a_lost_bundle_is_noticed_until_the_next_restart() {
    let n = stages(3);
    let mut encoder = Encoder::new(model(), ContextRule::Continuous, SimdLevel::detect());
    let mut decoder = Decoder::new(model(), ContextRule::Continuous, SimdLevel::detect());
    let codes = real_codes(n, 50);
    let mut results = Vec::new();
    for (i, codes) in codes.chunks(10 * n.index()).enumerate() {
        let at = 10 * i as u64;
        let bundle = Bundle::new(at, 10, n, codes.to_vec()).unwrap();
        let mut payload = Vec::new();
        let Coded::Range { restart } = encoder.encode(&bundle, i == 3, &mut payload).unwrap() else { panic!() };
        if i != 1 {
            results.push(decoder.decode(at, 10, n, restart, &payload).map(|b| b == bundle));
        }
    }
    let lost = EntropyError::NoContext { first_frame: 20, missing: 10 };
    assert_eq!(results, [Ok(true), Err(lost), Ok(true), Ok(true)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_codes_survive(frames in 1u8..6, n in 1u8..=16, seed: u64, level in 0usize..3) {
        let n = stages(n);
        let mut x = seed;
        let codes: Vec<u16> = (0..usize::from(frames) * n.index()).map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 54) as u16
        }).collect();
        let bundle = Bundle::new(9, frames, n, codes).unwrap();
        let levels = SimdLevel::available();
        let mut payload = Vec::new();
        let mut encoder = Encoder::new(model(), ContextRule::Bundle, levels[level % levels.len()]);
        match encoder.encode(&bundle, false, &mut payload).unwrap() {
            Coded::Range { .. } => {
                let mut decoder = Decoder::new(model(), ContextRule::Bundle, SimdLevel::Scalar);
                prop_assert_eq!(decoder.decode(9, frames, n, false, &payload).unwrap(), bundle);
            }
            Coded::Packed { .. } => prop_assert_eq!(Bundle::unpack(9, frames, n, &payload).unwrap(), bundle),
        }
    }

    #[test]
    fn graded_codes_survive(frames in 1u8..8, most in 1u8..=16, seed: u64, bundles in 1u64..5) {
        let n = stages(most);
        let mut x = seed;
        let mut random = move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 54) as u16
        };
        let mut encoder = Encoder::new(model(), ContextRule::Continuous, SimdLevel::detect()).graded();
        let mut decoder = Decoder::new(model(), ContextRule::Continuous, SimdLevel::Scalar).graded();
        let real = real_codes(n, 50);
        for i in 0..bundles {
            // The first bundles hold real codes, later ones random codes that do not get shorter.
            let mut codes: Vec<u16> = (0..usize::from(frames) * n.index())
                .map(|k| if i < 2 { real[(i as usize * 7 + k) % real.len()] } else { random() })
                .collect();
            for frame in codes.chunks_exact_mut(n.index()) {
                frame[1 + usize::from(random()) % n.index()..].fill(ABSENT);
            }
            let bundle = Bundle::new(i * u64::from(frames), frames, n, codes).unwrap();
            let mut payload = Vec::new();
            match encoder.encode(&bundle, false, &mut payload).unwrap() {
                Coded::Range { restart } => {
                    let got = decoder.decode(bundle.first_frame, frames, n, restart, &payload).unwrap();
                    prop_assert_eq!(got, bundle);
                }
                Coded::Packed { restart } => {
                    let got = Bundle::unpack_graded(bundle.first_frame, frames, n, &payload).unwrap();
                    decoder.observe(&got, restart).unwrap();
                    prop_assert_eq!(got, bundle);
                }
            }
        }
    }

    #[test]
    fn any_graded_payload_gives_codes_or_an_error(
        payload in prop::collection::vec(any::<u8>(), 0..80), n in 1u8..=16,
    ) {
        let mut decoder = Decoder::new(model(), ContextRule::Continuous, SimdLevel::detect()).graded();
        if let Ok(bundle) = decoder.decode(0, 5, stages(n), true, &payload) {
            prop_assert!(bundle.by_frame().all(|f| !f.is_empty() && f.iter().all(|&c| c < 1024)));
        }
    }

    #[test]
    fn any_payload_gives_codes_or_an_error(payload in prop::collection::vec(any::<u8>(), 0..80), n in 1u8..=16) {
        let mut decoder = Decoder::new(model(), ContextRule::Continuous, SimdLevel::detect());
        if let Ok(bundle) = decoder.decode(0, 5, stages(n), true, &payload) {
            prop_assert!(bundle.codes.iter().all(|&c| c < 1024));
        }
        let good = Frequencies::uniform(1024);
        prop_assert_eq!(good.entries(), 1024);
    }
}
