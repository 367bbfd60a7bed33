//! Packing, dropping stages, reading containers.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use undertone::bitstream::{Bundle, ContainerReader, ContainerWriter, ReaderOptions, StreamHeader};
use undertone::fake;
use undertone::units::StageCount;

fn bundles(n: u64) -> Vec<Bundle> {
    let stages = StageCount::new(12).expect("in range");
    (0..n)
        .map(|i| {
            let codes = (0..60).map(|k| ((i * 131 + k * 37) % 1024) as u16).collect();
            Bundle::new(i * 5, 5, stages, codes).expect("well-formed")
        })
        .collect()
}

fn bench(c: &mut Criterion) {
    let (stages, few) = (StageCount::new(12).expect("in range"), StageCount::new(6).expect("in range"));
    let bundle = &bundles(1)[0];
    let mut packed = Vec::new();
    bundle.pack_into(&mut packed);
    let mut out = Vec::with_capacity(200);
    c.bench_function("pack 5 frames of 12 stages", |b| {
        b.iter(|| {
            out.clear();
            black_box(bundle).pack_into(&mut out);
        });
    });
    c.bench_function("unpack 5 frames of 12 stages", |b| b.iter(|| Bundle::unpack(0, 5, stages, black_box(&packed))));
    c.bench_function("drop 12 stages to 6", |b| {
        b.iter(|| {
            out.clear();
            Bundle::truncate_packed(5, stages, few, black_box(&packed), &mut out)
        });
    });
    let mut file = Vec::new();
    let mut writer = ContainerWriter::new(StreamHeader::packed(&fake::profile(16), stages, 5), &mut file);
    bundles(600).iter().for_each(|b| writer.write(b, &mut file).expect("in order"));
    writer.finish(None, &mut file);
    let mut group = c.benchmark_group("container");
    group.throughput(Throughput::Bytes(file.len() as u64));
    group.bench_function("read a minute", |b| {
        b.iter(|| {
            let (mut reader, mut frames) = (ContainerReader::new(ReaderOptions::default()), 0);
            for chunk in file.chunks(4096) {
                reader.push(chunk);
                while let Some(item) = reader.next().expect("well-formed") {
                    frames += usize::from(matches!(item, undertone::bitstream::Item::Bundle(_)));
                }
            }
            frames
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
