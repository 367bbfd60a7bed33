//! Containers: golden bytes, any chunking, any cut, any damage.

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use undertone::bitstream::{
    ABSENT, BitstreamError, Bundle, CodedBundle, ContainerReader, ContainerWriter, ContextRule, END_INDEXED_LEN, Item,
    PayloadMode, ReaderOptions, SeekIndex, StreamHeader, Tail,
};
use undertone::units::{ModelId, StageCount};

fn stages(n: u8) -> StageCount {
    StageCount::new(n).unwrap()
}

fn header(stage_count: u8, frames: u8) -> StreamHeader {
    StreamHeader {
        model_id: ModelId([1, 2, 3, 4, 5, 6, 7, 8]),
        sample_rate_hz: 24_000,
        frame_samples: 480,
        stages: stages(stage_count),
        frames_per_bundle: frames,
        payload_mode: PayloadMode::Packed,
        context: ContextRule::Bundle,
        graded: false,
        live: false,
        token_model_id: None,
        start_time_us: None,
    }
}

fn bundle(number: u64, frames: u8, stage_count: u8) -> Bundle {
    let n = usize::from(frames) * usize::from(stage_count);
    let codes = (0..n).map(|i| ((number as usize * 131 + i * 37) % 1024) as u16).collect();
    Bundle::new(number * u64::from(frames), frames, stages(stage_count), codes).unwrap()
}

fn container(bundles: u64, total: Option<u64>) -> (Vec<u8>, Vec<Bundle>) {
    let mut bytes = Vec::new();
    let mut writer = ContainerWriter::new(header(3, 5), &mut bytes);
    let all: Vec<_> = (0..bundles).map(|n| bundle(n, 5, 3)).collect();
    all.iter().for_each(|b| writer.write(b, &mut bytes).unwrap());
    writer.finish(total, &mut bytes);
    (bytes, all)
}

fn read(bytes: &[u8], chunk: usize, limits: ReaderOptions) -> Result<(Vec<Item>, Tail), BitstreamError> {
    let mut reader = ContainerReader::new(limits);
    let mut items = Vec::new();
    for piece in bytes.chunks(chunk.max(1)) {
        reader.push(piece);
        while let Some(item) = reader.next()? {
            items.push(item);
        }
        assert!(reader.buffered() <= 1_550, "{} bytes held", reader.buffered());
    }
    let tail = reader.finish();
    Ok((items, tail))
}

fn bundles(items: &[Item]) -> Vec<Bundle> {
    items.iter().filter_map(|i| if let Item::Bundle(b) = i { Some(b.clone()) } else { None }).collect()
}

#[test]
fn golden_bytes() {
    let mut bytes = Vec::new();
    let mut writer = ContainerWriter::new(header(2, 2), &mut bytes);
    writer.write(&Bundle::new(0, 2, stages(2), vec![1, 2, 1023, 512]).unwrap(), &mut bytes).unwrap();
    writer.write(&Bundle::new(300, 1, stages(1), vec![0x2AA]).unwrap(), &mut bytes).unwrap();
    writer.finish(Some(1_000), &mut bytes);
    let hex = HEXLOWER.encode(&bytes);
    assert_eq!(hex, include_str!("golden/container.hex").trim());
}

#[test]
fn overheads_are_what_the_documentation_says() {
    let (bytes, all) = container(10, Some(24_000));
    let payload: usize = all.iter().map(|b| Bundle::payload_len(b.frames, b.stages)).sum();
    assert_eq!(bytes.len() - payload, 23 + 10 * 3 + 6);
    assert_eq!(Bundle::payload_len(5, stages(8)), 50);
}

#[test]
fn every_cut_decodes_up_to_the_cut() {
    let (bytes, all) = container(7, Some(16_000));
    for cut in 0..bytes.len() {
        let (items, tail) = read(&bytes[..cut], 64, ReaderOptions::default()).unwrap();
        let got = bundles(&items);
        assert_eq!(got, all[..got.len()]);
        let whole = cut.saturating_sub(23) / (19 + 3);
        assert_eq!(got.len(), whole.min(7), "cut at {cut}");
        assert!(matches!(tail, Tail::CutAt { frames, .. } if frames == got.len() as u64 * 5));
    }
    let (items, tail) = read(&bytes, 1, ReaderOptions::default()).unwrap();
    assert_eq!(items.last(), Some(&Item::End { total_samples: Some(16_000) }));
    assert_eq!(tail, Tail::Complete);
}

#[test]
fn long_files_have_an_index_that_finds_every_frame() {
    let (bytes, all) = container(1_000, None);
    let last: &[u8; END_INDEXED_LEN] = bytes.last_chunk().unwrap();
    let length = SeekIndex::length(last).unwrap();
    let at = bytes.len() - END_INDEXED_LEN - length;
    let index = SeekIndex::parse(&bytes[at..at + length]).unwrap();
    assert_eq!(index.entries.len(), 100);
    for frame in [0, 1, 49, 50, 2_345, 4_999] {
        let entry = index.find(frame).unwrap();
        assert!(entry.first_frame <= frame && frame < entry.first_frame + 50);
        let mut reader = ContainerReader::resume(ReaderOptions::default(), header(3, 5), entry);
        reader.push(&bytes[entry.offset as usize..]);
        let first = reader.next().unwrap();
        assert_eq!(first, Some(Item::Bundle(all[entry.first_frame as usize / 5].clone())));
    }
    let (items, tail) = read(&bytes, 333, ReaderOptions::default()).unwrap();
    assert_eq!((bundles(&items), tail), (all, Tail::Complete));
    assert_eq!(SeekIndex::parse(&bytes[at..at + length - 1]), None);
}

#[test]
fn what_is_not_ours_is_said_clearly() {
    let (bytes, _) = container(1, None);
    let with = |at: usize, v: u8| {
        let mut b = bytes.clone();
        b[at] = v;
        read(&b, 1_000, ReaderOptions::default()).unwrap_err()
    };
    assert_eq!(read(b"RIFF....WAVE", 100, ReaderOptions::default()).unwrap_err().name(), "magic");
    assert_eq!(with(3, 9).to_string(), "container version 9, this program reads version 1");
    assert_eq!(with(10, 0xEE).name(), "crc");
    assert_eq!(with(23, 0x77), BitstreamError::Tag { offset: 23, got: 0x77 });
    assert_eq!(with(23, 0x06), BitstreamError::Tag { offset: 23, got: 0x06 }, "a coded bundle in a packed container");
}

/// A container with a coded bundle that restarts, one that goes on, one of another shape that is packed after all.
fn coded_container() -> (Vec<u8>, Vec<CodedBundle>) {
    let mut out = Vec::new();
    let header = StreamHeader { payload_mode: PayloadMode::Coded, context: ContextRule::Continuous, ..header(3, 5) };
    let mut writer = ContainerWriter::new(header, &mut out);
    let stages = |n| StageCount::new(n).unwrap();
    let bundle = |first_frame, n, restart, packed, bytes| CodedBundle {
        first_frame,
        frames: 5,
        stages: stages(n),
        graded: false,
        restart,
        packed,
        payload: (0..bytes).collect(),
    };
    let bundles = vec![
        bundle(0, 3, true, false, 12),
        bundle(5, 3, false, false, 0),
        bundle(300, 2, true, true, 13),
        bundle(305, 3, false, false, 18),
    ];
    for b in &bundles {
        writer.write_coded(b, &mut out).unwrap();
    }
    for wrong in [bundle(310, 3, false, false, 19), bundle(310, 3, false, true, 18), bundle(309, 3, false, false, 1)] {
        assert!(writer.write_coded(&wrong, &mut Vec::new()).is_err());
    }
    writer.finish(Some(100_000), &mut out);
    (out, bundles)
}

#[test]
fn coded_bundles_come_back_in_pieces_of_any_size_and_up_to_any_cut() {
    let (bytes, bundles) = coded_container();
    let coded = |items: &[Item]| -> Vec<CodedBundle> {
        items.iter().filter_map(|i| if let Item::Coded(b) = i { Some(b.clone()) } else { None }).collect()
    };
    for chunk in [1, 7, 1_000] {
        let (items, tail) = read(&bytes, chunk, ReaderOptions::default()).unwrap();
        assert_eq!((coded(&items), tail), (bundles.clone(), Tail::Complete));
    }
    for cut in 0..bytes.len() {
        let (items, _) = read(&bytes[..cut], 64, ReaderOptions::default()).unwrap();
        let got = coded(&items);
        assert_eq!(got, bundles[..got.len()]);
    }
    for at in 23..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(read(&damaged, 64, ReaderOptions::default()).is_err(), "byte {at}");
    }
}

#[test]
fn bundles_out_of_range_are_refused() {
    for (frames, codes) in [(0u8, vec![]), (51, vec![0; 51]), (2, vec![0; 3]), (1, vec![1024]), (2, vec![5, ABSENT])] {
        assert!(Bundle::new(0, frames, stages(1), codes).is_err());
    }
    assert!(Bundle::new(u64::MAX, 1, stages(1), vec![0]).is_err());
    assert!(Bundle::unpack(0, 1, stages(1), &[0, 1]).unwrap_err().to_string().contains("padding"));
    assert!(Bundle::unpack(0, 5, stages(8), &[0; 49]).unwrap_err().to_string().contains("50"));
    let mut bytes = Vec::new();
    let mut writer = ContainerWriter::new(header(3, 5), &mut bytes);
    writer.write(&bundle(3, 5, 3), &mut bytes).unwrap();
    assert!(writer.write(&bundle(2, 5, 3), &mut bytes).is_err());
    // A hole in a frame; a graded bundle where all frames must have as many stages.
    assert!(Bundle::new(0, 1, stages(3), vec![1, ABSENT, 2]).is_err());
    let graded = Bundle::new(20, 1, stages(3), vec![1, 2, ABSENT]).unwrap();
    assert!(writer.write(&graded, &mut bytes).is_err());
}

#[test]
fn graded_streams_say_so_and_their_bundles_come_back() {
    let coded = StreamHeader { payload_mode: PayloadMode::Coded, graded: true, ..header(3, 5) };
    let mut bytes = Vec::new();
    coded.write(&mut bytes);
    assert_eq!(bytes[20], 5);
    assert_eq!(StreamHeader::parse(&bytes).unwrap(), Some((coded.clone(), 23)));
    let mut packed = Vec::new();
    StreamHeader { graded: true, ..header(3, 5) }.write(&mut packed);
    assert!(StreamHeader::parse(&packed).unwrap_err().to_string().contains("payload mode 4"));

    let graded = Bundle::new(0, 2, stages(3), vec![1, ABSENT, ABSENT, 1023, 2, 3]).unwrap();
    let mut payload = Vec::new();
    graded.pack_graded_into(&mut payload);
    // 00001 0000000001, 00011 1111111111 0000000010 0000000011, and six bits of padding.
    assert_eq!(payload, [0x08, 0x02, 0x3F, 0xFC, 0x02, 0x00, 0xC0]);
    assert_eq!(Bundle::unpack_graded(0, 2, stages(3), &payload).unwrap(), graded);
    assert_eq!(graded.truncated(stages(2)).codes, [1, ABSENT, 1023, 2]);
    for wrong in [&payload[..6], &[payload.as_slice(), &[0]].concat(), &[0x20; 7], &[0; 7], &[0xFF; 7], &[]] {
        assert!(Bundle::unpack_graded(0, 2, stages(3), wrong).is_err(), "{wrong:02x?}");
    }
    let record = |payload: Vec<u8>, packed| CodedBundle {
        first_frame: 0,
        frames: 2,
        stages: stages(3),
        graded: true,
        restart: true,
        packed,
        payload,
    };
    let mut writer = ContainerWriter::new(coded, &mut Vec::new());
    assert!(writer.write_coded(&record(vec![0; 20], true), &mut bytes).is_err());
    assert!(writer.write_coded(&CodedBundle { graded: false, ..record(vec![0; 3], false) }, &mut bytes).is_err());
    let kept = record(payload, true);
    writer.write_coded(&kept, &mut bytes).unwrap();
    writer.finish(None, &mut bytes);
    let (items, tail) = read(&bytes, 3, ReaderOptions::default()).unwrap();
    assert_eq!((&items[1], tail), (&Item::Coded(kept), Tail::Complete));
}

#[test]
fn a_damaged_bundle_can_be_skipped() {
    let (mut bytes, mut all) = container(5, None);
    bytes[23 + 22 + 5] ^= 0x40;
    assert_eq!(read(&bytes, 10, ReaderOptions::default()).unwrap_err().name(), "crc");
    let (items, tail) = read(&bytes, 10, ReaderOptions { skip_damaged: true }).unwrap();
    all.remove(1);
    assert_eq!((bundles(&items), tail), (all, Tail::Complete));
}

proptest! {
    #[test]
    fn packing_reads_back_and_truncation_is_dropping_stages(
        frames in 1u8..=50, have in 1u8..=16, keep in 1u8..=16, seed in any::<u64>(),
    ) {
        let keep = keep.min(have);
        let b = bundle(seed % 1_000_000, frames, have);
        let (mut packed, mut fewer, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        b.pack_into(&mut packed);
        prop_assert_eq!(packed.len(), Bundle::payload_len(frames, stages(have)));
        prop_assert_eq!(&Bundle::unpack(b.first_frame, frames, stages(have), &packed).unwrap(), &b);
        Bundle::truncate_packed(frames, stages(have), stages(keep), &packed, &mut fewer).unwrap();
        b.truncated(stages(keep)).pack_into(&mut wanted);
        prop_assert_eq!(fewer, wanted);
    }

    #[test]
    fn chunks_do_not_matter(n in 0u64..80, chunk in 1usize..500) {
        let (bytes, all) = container(n, Some(n * 2_400));
        let (items, tail) = read(&bytes, chunk, ReaderOptions::default()).unwrap();
        prop_assert_eq!(bundles(&items), all);
        prop_assert_eq!(tail, Tail::Complete);
    }

    #[test]
    fn flipped_bits_give_a_prefix_or_an_error(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut bytes, all) = container(70, Some(9));
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        for skip_damaged in [false, true] {
            if let Ok((items, _)) = read(&bytes, 100, ReaderOptions { skip_damaged }) {
                let got = bundles(&items);
                prop_assert!(got.iter().all(|b| all.contains(b)), "a bundle that was never written");
            }
        }
    }

    #[test]
    fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..3_000), ours in any::<bool>()) {
        if ours {
            let (start, _) = container(0, None);
            bytes.splice(0..0, start[..23].iter().copied());
        }
        let _ = read(&bytes, 77, ReaderOptions { skip_damaged: true });
        let _ = SeekIndex::parse(&bytes);
        let _ = StreamHeader::parse(&bytes);
    }
}
