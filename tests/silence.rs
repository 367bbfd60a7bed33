//! Silence from a microphone to ears, with the fake model: described, not sent, and neither lost nor late.
#![cfg(feature = "full")]

mod common;

use std::time::{Duration, Instant};

use common::{Daemon, HTTP, hello, tokens, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use undertone::bitstream::{
    Bundle, ContainerReader, ContainerWriter, Form, Item, PackedBundle, ReaderOptions, StreamHeader,
};
use undertone::codec::{Concealer, Decoder, Encoder, Processor};
use undertone::fake;
use undertone::service::{Client, ClientOptions};
use undertone::session::{Message, Role, SessionEncoder, ThinWriter, Wire};
use undertone::units::StageCount;
use undertone::wire::encode;

/// Seconds of a tone, of silence, and of a tone again, at 24 kHz.
fn words(tone_s: f32, silence_s: f32) -> Vec<f32> {
    let tone = |i: usize| 0.3 * (i as f32 * 0.06).sin();
    let count = |s: f32| (s * 24_000.0) as usize;
    let mut pcm: Vec<f32> = (0..count(tone_s)).map(tone).collect();
    pcm.resize(pcm.len() + count(silence_s), 0.0);
    pcm.extend((0..count(tone_s)).map(tone));
    pcm
}

fn encoder(processor: &Processor) -> Encoder {
    let mut encoder = Encoder::new(processor.profile(), StageCount::new(6).unwrap(), 5).unwrap();
    encoder.set_job_frames(5);
    encoder.leave_out_silence();
    encoder
}

/// What is sent of a recording.
fn sent(pcm: &[f32]) -> Vec<PackedBundle> {
    let mut processor = fake::processor(16, 7);
    let mut encoder = encoder(&processor);
    encoder.push(pcm);
    encoder.finish();
    let mut out = Vec::new();
    while let Some(bundle) = processor.encode(&mut encoder).unwrap() {
        out.extend(encoder.pack(&bundle));
    }
    out
}

fn decoder(processor: &Processor) -> Decoder {
    Decoder::concealing(processor.profile(), Concealer::new(None))
}

fn push(decoder: &mut Decoder, packed: &PackedBundle) {
    let bundle = packed.unpack().unwrap();
    if packed.is_background() {
        decoder.push_background(packed.first_frame, packed.frames, &bundle.codes).unwrap();
    } else {
        decoder.push(bundle).unwrap();
    }
}

#[test]
fn what_was_silent_is_as_long_when_it_is_decoded_and_nothing_is_missing() {
    let pcm = words(1.0, 5.0);
    let bundles = sent(&pcm);
    let (silent, whole): (Vec<_>, Vec<_>) = bundles.iter().partition(|b| b.is_background());
    // Five seconds but for the hangover, every 400 ms; two seconds of tone and the hangover.
    assert!((11..=13).contains(&silent.len()), "{} descriptions", silent.len());
    assert!((23..=26).contains(&whole.len()), "{} bundles", whole.len());
    let mut processor = fake::processor(16, 7);
    let (mut decoder, mut out) = (decoder(&processor), Vec::new());
    for packed in &bundles {
        push(&mut decoder, packed);
        processor.decode(&mut decoder, &mut out).unwrap();
    }
    assert!(out.len() >= pcm.len() && out.len() <= pcm.len() + 3 * 480, "{} of {}", out.len(), pcm.len());
    assert_eq!(decoder.missing_frames(), 0);
    assert!((220..=250).contains(&decoder.quiet_frames()), "{}", decoder.quiet_frames());
    // A bundle that is lost in speech still is.
    let after = whole.last().unwrap();
    let later = PackedBundle { first_frame: after.first_frame + 10, ..(*after).clone() };
    push(&mut decoder, &later);
    assert_eq!(decoder.missing_frames(), 10 - u64::from(after.frames));
}

#[test]
fn a_silence_whose_descriptions_stop_is_a_loss_after_a_second() {
    let mut processor = fake::processor(16, 7);
    let mut decoder = decoder(&processor);
    let tone = PackedBundle::pack(&common::bundle(0));
    push(&mut decoder, &tone);
    push(&mut decoder, &PackedBundle::background(5, 5, &[1, 2, 3, 4]).unwrap());
    push(&mut decoder, &PackedBundle { first_frame: 60, ..tone.clone() });
    assert_eq!((decoder.missing_frames(), decoder.quiet_frames()), (0, 55));
    push(&mut decoder, &PackedBundle::background(65, 5, &[1, 2, 3, 4]).unwrap());
    push(&mut decoder, &PackedBundle { first_frame: 200, ..tone });
    assert_eq!(decoder.missing_frames(), 130);
    let mut out = Vec::new();
    processor.decode(&mut decoder, &mut out).unwrap();
    // Codes beyond the model's are refused, here as anywhere.
    assert!(decoder.push_background(300, 5, &[5_000]).is_err());
    assert!(decoder.push_background(300, 5, &[]).is_err());
}

#[test]
fn a_silent_minute_costs_less_than_200_bits_a_second() {
    let mut noise = 1u64;
    let mut pcm = words(0.5, 2.0);
    let speech = pcm.len();
    pcm.extend((0..60 * 24_000).map(|_| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((noise >> 40) as f32 / 8_388_608.0 - 1.0) * 0.002
    }));
    let (mut thin, mut coder) = (ThinWriter::default(), SessionEncoder::new(tokens()).on(Wire::ALL));
    // From three seconds on: until then the background was new.
    let from = (speech / 480 + 150) as u64;
    let (mut bytes, mut last) = (0, 0);
    for (sequence, packed) in (0..).zip(sent(&pcm)) {
        let (first_frame, end) = (packed.first_frame, packed.first_frame + u64::from(packed.frames));
        let message = if packed.is_background() {
            coder.silence();
            Message::Bundle { sequence, bundle: packed }
        } else {
            let (bundle, checked) = coder.encode(&packed).unwrap();
            Message::Coded { sequence, bundle, checked }
        };
        let mut out = Vec::new();
        encode(&thin.thin(message), &mut out);
        if first_frame >= from {
            bytes += out.len();
        }
        last = end;
    }
    let seconds = (pcm.len() as u64 / 480 - from) as f64 / 50.0;
    let rate = bytes as f64 * 8.0 / seconds;
    assert!(seconds > 56.0 && last >= from, "{seconds} s");
    assert!(rate > 100.0 && rate < 200.0, "{rate} bit/s");
}

#[test]
fn recordings_of_live_streams_hold_silence_and_graded_bundles() {
    let profile = fake::profile(16);
    let mut bundles = sent(&words(0.5, 2.0));
    let end = bundles.last().map(|b| b.first_frame + u64::from(b.frames)).unwrap();
    let codes = [vec![1, 2, 3, 4], vec![5, u16::MAX, u16::MAX, u16::MAX]].concat();
    bundles.push(PackedBundle::pack(&Bundle::new(end, 2, StageCount::new(4).unwrap(), codes).unwrap()));
    assert_eq!(bundles.last().unwrap().form, Form::Graded);
    let header = StreamHeader { live: true, ..StreamHeader::packed(&profile, StageCount::new(6).unwrap(), 5) };
    let mut bytes = Vec::new();
    let mut writer = ContainerWriter::new(header.clone(), &mut bytes);
    for packed in &bundles {
        if packed.is_background() {
            writer.write_background(packed, &mut bytes).unwrap();
        } else {
            writer.write(&packed.unpack().unwrap(), &mut bytes).unwrap();
        }
    }
    writer.finish(None, &mut bytes);
    for size in [1, 7, 1 << 16] {
        let (mut reader, mut got) = (ContainerReader::new(ReaderOptions::default()), Vec::new());
        for piece in bytes.chunks(size) {
            reader.push(piece);
            while let Some(item) = reader.next().unwrap() {
                match item {
                    Item::Bundle(b) => got.push(PackedBundle::pack(&b)),
                    Item::Background(b) => got.push(b),
                    Item::Header(h) => assert_eq!(h, header),
                    Item::Coded(_) | Item::End { .. } => {}
                }
            }
        }
        assert_eq!(got, bundles);
    }
    // Other containers have neither.
    let mut writer = ContainerWriter::new(StreamHeader { live: false, ..header }, &mut bytes);
    assert!(writer.write_background(bundles.iter().find(|b| b.is_background()).unwrap(), &mut bytes).is_err());
    assert!(writer.write(&bundles.last().unwrap().unpack().unwrap(), &mut bytes).is_err());
}

/// Sends samples in real time.
async fn speak(daemon: &Daemon, pcm: &[f32]) {
    let mut socket = TcpStream::connect(daemon.pcm).await.unwrap();
    let start = Instant::now();
    for (n, chunk) in pcm.chunks(480).enumerate() {
        tokio::time::sleep_until((start + Duration::from_millis(20) * n as u32).into()).await;
        let bytes: Vec<u8> = chunk.iter().flat_map(|s| ((s * 32_767.0) as i16).to_le_bytes()).collect();
        socket.write_all(&bytes).await.unwrap();
    }
}

/// Frames that came, how many of them were silence, and messages.
async fn frames(mut client: Client) -> (u64, u64, u64) {
    let (mut end, mut begin, mut silent, mut messages) = (0, None, 0, 0);
    while let Some(b) = within(client.next()).await.unwrap() {
        assert!(b.first_frame >= end, "{} after {end}", b.first_frame);
        begin.get_or_insert(b.first_frame);
        end = b.first_frame + u64::from(b.frames);
        silent += u64::from(b.is_background());
        messages += 1;
    }
    (end - begin.unwrap_or(0), silent, messages)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_hears_silence_as_long_as_it_is_whatever_they_know_of_it() {
    let daemon = Daemon::start(HTTP).await;
    let listen = async |wire| {
        let options = ClientOptions { tokens: Some(tokens()), wire, ..ClientOptions::default() };
        Client::connect_with(&daemon.codes.to_string(), hello(Role::Subscribe, "main", None), &options).await.unwrap()
    };
    let (new, old) = (listen(Wire::ALL).await, listen(Wire::default()).await);
    let (new, old) = (tokio::spawn(frames(new)), tokio::spawn(frames(old)));
    let mut ears = TcpStream::connect(daemon.pcm_out).await.unwrap();
    let heard = tokio::spawn(async move {
        let (start, mut when, mut bytes) = (Instant::now(), Vec::new(), vec![0; 64 << 10]);
        let mut total = 0;
        while let n @ 1.. = within(ears.read(&mut bytes)).await.unwrap() {
            total += n;
            when.push((start.elapsed(), total / 2));
        }
        when
    });
    daemon.until("\"listeners\":3").await;
    let pcm = words(1.0, 3.0);
    speak(&daemon, &pcm).await;
    let (new, old, heard) = (new.await.unwrap(), old.await.unwrap(), heard.await.unwrap());
    let all = (pcm.len() / 480) as u64;
    assert!(new.0.abs_diff(all) <= 6, "{new:?} of {all}");
    assert!((6..=8).contains(&new.1), "{new:?}");
    // Who knows nothing of silence gets bundles all the time.
    assert!(old.0.abs_diff(all) <= 12 && old.1 == 0 && old.2 >= 45, "{old:?} of {all}");
    // And ears get samples all the time: never half a second without, and none too many.
    let total = heard.last().unwrap().1;
    assert!(total.abs_diff(pcm.len()) <= 12 * 480, "{total} of {} samples", pcm.len());
    let longest = heard.windows(2).map(|w| w[1].0 - w[0].0).max().unwrap();
    assert!(longest < Duration::from_millis(400), "{longest:?} without a sample");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_would_rather_wait_gets_long_bundles_and_the_publisher_hears_of_it() {
    let daemon = Daemon::start("").await;
    let connect = async |latency: Option<u8>, model: Option<_>, wire| {
        let options = ClientOptions { tokens: model, wire, ..ClientOptions::default() };
        let hello = undertone::session::Hello { latency, ..hello(Role::Subscribe, "a", None) };
        Client::connect_with(&daemon.codes.to_string(), hello, &options).await.unwrap()
    };
    let mut patient = connect(Some(10), Some(tokens()), Wire::ALL).await;
    let mut publisher = daemon.publisher("a").await;
    let graded = |n: u64| {
        let mut codes: Vec<u16> = (0..30).map(|k| ((n * 31 + k * 7) % 256) as u16).collect();
        codes[7 + (n % 5) as usize..12].fill(u16::MAX);
        PackedBundle::pack(&Bundle::new(n * 5, 5, StageCount::new(6).unwrap(), codes).unwrap())
    };
    for n in 0..6 {
        publisher.publish(graded(n)).await.unwrap();
    }
    for n in 0..3 {
        let got = within(patient.next()).await.unwrap().unwrap();
        let whole = graded(2 * n).joined(&graded(2 * n + 1)).unwrap().unwrap();
        assert_eq!(got, whole, "{n}");
    }
    // All who listen allow ten frames; then somebody comes who says nothing, and somebody who wants one.
    publisher.sign_of_life().await.unwrap();
    assert_eq!(publisher.bundle_frames(), Some(10));
    let mut usual = connect(None, None, Wire::ALL).await;
    let mut eager = connect(Some(1), None, Wire::default()).await;
    publisher.publish(graded(6)).await.unwrap();
    publisher.publish(graded(7)).await.unwrap();
    assert_eq!(within(usual.next()).await.unwrap().unwrap().unpack().unwrap(), graded(6).unpack().unwrap());
    within(async {
        while publisher.bundle_frames() != Some(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            publisher.sign_of_life().await.unwrap();
        }
    })
    .await;
    // A peer that knows plain bundles only gets every index of graded ones, in several messages.
    let (mut frames, mut codes) = (0, Vec::new());
    while frames < 5 {
        let bundle = within(eager.next()).await.unwrap().unwrap();
        assert_eq!(bundle.form, Form::Plain);
        frames += bundle.frames;
        codes.extend(bundle.unpack().unwrap().codes);
    }
    let whole = graded(6).unpack().unwrap();
    assert_eq!(codes, whole.by_frame().flatten().copied().collect::<Vec<_>>());
    daemon.stop().await;
}
