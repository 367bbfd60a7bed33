//! The token model: what a frame of 8 stages costs to code, and what drafting gives.

use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use undertone::bitstream::{Bundle, ContextRule};
use undertone::entropy::{Decoder, Encoder};
use undertone::model::Manifest;
use undertone::rvq::SimdLevel;
use undertone::sampling::speculative::Speculative;
use undertone::sampling::{Params, Sampler, TokenSource};
use undertone::token::{Context, TokenModel};
use undertone::units::StageCount;

const STAGES: u8 = 8;

struct Models {
    target: Arc<TokenModel>,
    draft: Option<Arc<TokenModel>>,
    codes: Vec<u16>,
}

/// The shipped models, and the codes of the codec's golden example.
fn models() -> Models {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("the shipped model can be read");
    let m = Manifest::parse(&read("manifest.toml")).expect("a manifest");
    let books = m.read_codebooks(&read(&m.codebooks.path)).expect("books");
    let model = |name: &str| TokenModel::parse(&read(name), m.id, &books).expect("a token model");
    let golden = read("golden.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&golden).expect("golden example");
    let data = tensors.tensor("codes").expect("codes").data().to_vec();
    let all: Vec<u16> = data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as u16).collect();
    let codes = all.chunks_exact(m.stages).flat_map(|f| &f[..usize::from(STAGES)]).copied().collect();
    let draft = folder.join("draft.safetensors").exists().then(|| model("draft.safetensors"));
    Models { target: model("tokens.safetensors"), draft, codes }
}

fn coding(c: &mut Criterion) {
    let m = models();
    let stages = StageCount::new(STAGES).expect("in range");
    let bundle = Bundle::new(0, 50, stages, m.codes[..50 * usize::from(STAGES)].to_vec()).expect("a bundle");
    let mut group = c.benchmark_group("tokens/50 frames of 8 stages");
    for level in SimdLevel::available() {
        group.bench_function(format!("encode {level:?}"), |b| {
            b.iter(|| {
                let mut out = Vec::new();
                Encoder::new(Arc::clone(&m.target), ContextRule::Continuous, level).encode(&bundle, true, &mut out)
            });
        });
    }
    let mut payload = Vec::new();
    let mut encoder = Encoder::new(Arc::clone(&m.target), ContextRule::Continuous, SimdLevel::detect());
    encoder.encode(&bundle, true, &mut payload).expect("coded");
    group.bench_function("decode", |b| {
        b.iter(|| {
            let mut decoder = Decoder::new(Arc::clone(&m.target), ContextRule::Continuous, SimdLevel::detect());
            decoder.decode(0, 50, stages, true, &payload).expect("decodes")
        });
    });
    group.finish();
}

fn primed(model: &Arc<TokenModel>, codes: &[u16]) -> Context {
    let stages = StageCount::new(STAGES).expect("in range");
    let mut context = Context::new(Arc::clone(model), stages, SimdLevel::detect());
    codes.iter().for_each(|&c| context.push(c));
    context
}

fn sampling(c: &mut Criterion) {
    let m = models();
    let Some(draft) = &m.draft else { return };
    let (target, draft) = (primed(&m.target, &m.codes), primed(draft, &m.codes));
    let mut group = c.benchmark_group("tokens/sample 200 codes");
    group.bench_function("plain", |b| {
        b.iter(|| {
            let (mut context, mut sampler, mut logits) =
                (target.clone(), Sampler::new(Params::default(), 1), Vec::new());
            for _ in 0..200 {
                TokenSource::logits(&mut context, &mut logits);
                let code = sampler.sample(&logits);
                context.push(code);
            }
        });
    });
    for ahead in [1, 2, 4, 8] {
        let mut acceptance = 0.0;
        group.bench_function(format!("speculative {ahead}"), |b| {
            b.iter(|| {
                let (mut target, mut draft) = (target.clone(), draft.clone());
                let (mut sampler, mut machine, mut out) =
                    (Sampler::new(Params::default(), 1), Speculative::new(ahead, false), Vec::new());
                while out.len() < 200 {
                    machine.round(&mut draft, &mut target, &mut sampler, 200 - out.len(), &mut out);
                }
                acceptance = machine.stats().acceptance();
            });
        });
        eprintln!("drafts of {ahead}: {:.1} % kept", 100.0 * acceptance);
    }
    group.finish();
}

criterion_group!(benches, coding, sampling);
criterion_main!(benches);
