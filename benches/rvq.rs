//! Codebook search: 16 stages x 1024 entries x 64 values, one frame alone or eight together.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use undertone::rvq::{BeamWidth, Codebooks, Searcher, SimdLevel, Wanted};
use undertone::units::StageCount;

fn noise(n: usize) -> Vec<f32> {
    let mut x = 0x0123_4567_89AB_CDEF_u64;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / 8_388_608.0 - 1.0
    })
    .take(n)
    .collect()
}

fn search(c: &mut Criterion) {
    let books = Arc::new(Codebooks::new(noise(16 * 1024 * 64), 16, 1024, 64).expect("well-formed"));
    let latents = noise(64 * 50);
    let mut group = c.benchmark_group("rvq, one frame");
    let mut run = |name: String, beam: u8, level: SimdLevel, stages: u8| {
        let mut searcher = Searcher::new(Arc::clone(&books), BeamWidth::new(beam).expect("in range"), level);
        let stages = StageCount::new(stages).expect("in range");
        let mut codes = vec![0; stages.index()];
        let mut frames = latents.chunks_exact(64).cycle();
        group.bench_function(name, |b| {
            b.iter(|| {
                let latent = frames.next().expect("cycles");
                searcher.encode_into(black_box(latent), stages, &mut codes).expect("fits");
            });
        });
    };
    for level in SimdLevel::available() {
        run(format!("greedy, 16 stages, {level:?}"), 1, level, 16);
    }
    for beam in [2, 4, 8] {
        run(format!("beam {beam}, 16 stages"), beam, SimdLevel::detect(), 16);
    }
    run("beam 4, 3 stages".to_owned(), 4, SimdLevel::detect(), 3);
    group.throughput(Throughput::Elements(8));
    for beam in [1, 2, 4, 16] {
        let beam_width = BeamWidth::new(beam).expect("in range");
        let mut searcher = Searcher::new(Arc::clone(&books), beam_width, SimdLevel::detect());
        let mut codes = [[0; 12]; 8];
        group.bench_function(format!("8 frames together, beam {beam}, 12 stages"), |b| {
            b.iter(|| {
                let frames = latents.chunks_exact(64).zip(&mut codes);
                let wanted = frames.map(|(latent, codes)| Wanted { latent: black_box(latent), codes });
                searcher.encode(wanted).expect("fits");
            });
        });
    }
}

criterion_group!(benches, search);
criterion_main!(benches);
