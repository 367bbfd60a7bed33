//! What the shipped model does to sounds that codecs get wrong: silence, room noise, clipped and very quiet speech.
#![cfg(feature = "full")]

#[path = "common/voice.rs"]
mod voice;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use undertone::bitstream::Bundle;
use undertone::codec::{Decoder, Encoder, Processor, encode_all};
use undertone::infer::{Networks, load_model};
use undertone::referee::estoi;
use undertone::rvq::BeamWidth;
use undertone::units::StageCount;
use voice::{at_16_khz, decode, speech};

const VOICE: [&str; 3] = ["Front_Center", "Rear_Left", "Side_Right"];
const STAGES: [u8; 5] = [1, 3, 6, 12, 24];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")
}

fn processor() -> Processor {
    load_model(Some(&folder())).unwrap().processor(BeamWidth::new(2).unwrap()).unwrap()
}

fn int8_processor() -> Processor {
    let model = load_model(Some(&folder())).unwrap();
    assert!(model.has_int8());
    model.processor_with(Networks::Int8, BeamWidth::new(2).unwrap()).unwrap()
}

fn there_and_back(p: &mut Processor, pcm: &[f32], stages: u8) -> Vec<f32> {
    let stages = StageCount::new(stages).unwrap().min(p.profile().stages);
    let bundles = encode_all(p, pcm, stages, 25).unwrap();
    decode(p, &bundles, pcm.len())
}

fn db(x: &[f32]) -> f64 {
    let power = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
    10.0 * (power + 1e-20).log10()
}

/// White noise of this level, RMS of full scale.
fn noise(samples: usize, rms: f32) -> Vec<f32> {
    let mut x = 0x1234_5678_9ABC_DEFFu64;
    let uniform = std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / 8_388_608.0 - 1.0
    });
    uniform.take(samples).map(|v| v * rms * 3f32.sqrt()).collect()
}

#[test]
fn silence_stays_silent() {
    stays_silent(processor());
    stays_silent(int8_processor());
}

fn stays_silent(mut p: Processor) {
    for stages in STAGES {
        let out = there_and_back(&mut p, &[0.0; 72_000], stages);
        assert!(db(&out) < -70.0, "{:.1} dB at {stages} stages", db(&out));
        let peak = out.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        assert!(peak < 3e-3, "a click of {peak} at {stages} stages");
    }
    // A pause after speech is silent too, once the network has let go.
    let mut pcm = speech(&VOICE);
    let end = pcm.len();
    pcm.extend(vec![0.0; 48_000]);
    for stages in STAGES {
        let out = there_and_back(&mut p, &pcm, stages);
        assert!(db(&out[end + 12_000..]) < -70.0, "{:.1} dB at {stages} stages", db(&out[end + 12_000..]));
    }
}

#[test]
fn room_noise_keeps_its_level_and_has_no_tones() {
    let mut p = processor();
    let n = 8 * 24_000;
    let white = noise(n, 0.004);
    // A room: falling by 6 dB an octave above 400 Hz.
    let mut last = 0.0;
    let room: Vec<f32> = white
        .iter()
        .map(|v| {
            last += 0.1 * (v - last);
            last * 3.0
        })
        .collect();
    for (name, pcm) in [("white", &white), ("room", &room)] {
        for stages in STAGES {
            let out = there_and_back(&mut p, pcm, stages);
            let change = db(&out[24_000..]) - db(&pcm[24_000..]);
            assert!((-6.0..3.5).contains(&change), "{name}: {change:.1} dB at {stages} stages");
            // Bands of 100 Hz, averaged over 7 s: a tone or a dark line stands out against its neighbours.
            let (had, has) = (spectrum_db(&pcm[24_000..]), spectrum_db(&out[24_000..]));
            let gain: Vec<f64> = had.iter().zip(&has).map(|(a, b)| b - a).collect();
            let worst = (6..gain.len() - 6)
                .map(|i| {
                    let mut near: Vec<f64> = gain[i - 5..=i + 5].to_vec();
                    near.sort_by(f64::total_cmp);
                    (gain[i] - near[5], i)
                })
                .max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))
                .unwrap();
            assert!(worst.0.abs() < 8.0, "{name}: {:.1} dB at {} Hz at {stages} stages", worst.0, worst.1 * 100);
        }
    }
}

/// Amplitude of a frequency in x, under a Hann window.
fn amplitude(x: &[f32], hz: f64) -> f64 {
    let n = x.len() as f64;
    let (mut re, mut im, mut sum) = (0.0, 0.0, 0.0);
    for (i, &v) in x.iter().enumerate() {
        let window = 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / n).cos();
        let (sin, cos) = (std::f64::consts::TAU * hz * i as f64 / 24_000.0).sin_cos();
        re += window * f64::from(v) * cos;
        im += window * f64::from(v) * sin;
        sum += window;
    }
    2.0 * (re * re + im * im).sqrt() / sum
}

#[test]
fn tones_and_digits_come_through_at_their_level() {
    let sine = |hz: f64, amplitude: f64, n: usize| {
        move |i: usize| {
            if i < n { (amplitude * (std::f64::consts::TAU * hz * i as f64 / 24_000.0).sin()) as f32 } else { 0.0 }
        }
    };
    for mut p in [processor(), int8_processor()] {
        for stages in [2, 6, 12] {
            for (hz, level) in [(440.0, 0.2), (1000.0, 0.025), (3000.0, 0.1), (6000.0, 0.2)] {
                let pcm: Vec<f32> = (0..24_000).map(sine(hz, level, 24_000)).collect();
                let out = there_and_back(&mut p, &pcm, stages);
                let got = &out[6_000..18_000];
                let change = db(got) - db(&pcm[6_000..18_000]);
                assert!(change.abs() < 1.0, "{hz} Hz: {change:.1} dB at {stages} stages");
                // Tones are 20 Hz apart, so within 10 Hz of it, which a window of a tenth of a second does not tell.
                let lines = got.chunks_exact(2_400).map(|c| amplitude(c, hz)).sum::<f64>() / 5.0;
                assert!((0.7..1.3).contains(&(lines / level)), "{hz} Hz: {lines} of {level} at {stages} stages");
            }
            // Digit 6, for 70 ms.
            let (low, high) = (sine(770.0, 0.14, 1_680), sine(1477.0, 0.1, 1_680));
            let pcm: Vec<f32> =
                (0..12_000).map(|i| if i < 4_800 { 0.0 } else { low(i - 4_800) + high(i - 4_800) }).collect();
            let out = there_and_back(&mut p, &pcm, stages);
            for (hz, wanted) in [(770.0, 0.14), (1477.0, 0.1)] {
                let db = 20.0 * (amplitude(&out[5_280..6_240], hz) / wanted).log10();
                assert!(db.abs() < 2.5, "{hz} Hz of a digit: {db:.1} dB at {stages} stages");
            }
        }
    }
}

#[test]
fn frames_do_not_repeat() {
    let pcm = speech(&VOICE);
    let original = share_at_the_frame_rate(&pcm);
    for mut p in [processor(), int8_processor()] {
        for stages in STAGES {
            let share = share_at_the_frame_rate(&there_and_back(&mut p, &pcm, stages));
            assert!(share < original + 0.06, "{share:.2} at {stages} stages, {original:.2} in the original");
        }
    }
}

/// Share of the energy from 1 to 7.8 kHz that lies within 2.5 Hz of multiples of the frame rate, 50 Hz, in windows of 0.4 s: 0.15 by
/// chance, more is frames that repeat.
fn share_at_the_frame_rate(x: &[f32]) -> f64 {
    const WINDOW: usize = 9600;
    let fft = realfft::RealFftPlanner::<f64>::new().plan_fft_forward(WINDOW);
    let mut bins = fft.make_output_vec();
    let shares = x.windows(WINDOW).step_by(WINDOW / 4).filter_map(|window| {
        let mut windowed: Vec<f64> = (0..WINDOW)
            .map(|i| f64::from(window[i]) * (std::f64::consts::PI * i as f64 / WINDOW as f64).sin().powi(2))
            .collect();
        fft.process(&mut windowed, &mut bins).unwrap();
        let power = |i: usize| bins[i].norm_sqr();
        let all: f64 = (400..3120).map(power).sum();
        let lines: f64 = (400..3120).filter(|i| [0, 1, 19].contains(&(i % 20))).map(power).sum();
        (all > 1e-3).then(|| lines / all)
    });
    let shares: Vec<f64> = shares.collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}

/// Level in bands of 100 Hz up to 12 kHz, by correlation with sines (Hann windows of 20 ms: exact enough to find lines).
fn spectrum_db(x: &[f32]) -> Vec<f64> {
    const WINDOW: usize = 480;
    let table: Vec<(f64, f64)> =
        (0..WINDOW).map(|i| (std::f64::consts::TAU * i as f64 / WINDOW as f64).sin_cos()).collect();
    let mut power = vec![0.0f64; 120];
    for piece in x.chunks_exact(WINDOW / 2).zip(x.chunks_exact(WINDOW / 2).skip(1)).map(|(a, b)| [a, b].concat()) {
        let windowed: Vec<f64> =
            piece.iter().enumerate().map(|(i, &v)| f64::from(v) * (0.5 - 0.5 * table[i].1)).collect();
        for (k, p) in power.iter_mut().enumerate() {
            let bin = 2 * k + 1;
            let (mut re, mut im) = (0.0, 0.0);
            for (i, v) in windowed.iter().enumerate() {
                let (s, c) = table[i * bin % WINDOW];
                re += v * c;
                im += v * s;
            }
            *p += re * re + im * im;
        }
    }
    power.into_iter().map(|p| 10.0 * (p + 1e-20).log10()).collect()
}

#[test]
fn clipped_and_very_quiet_speech_survives() {
    let mut p = processor();
    let clean = speech(&VOICE);
    let clipped: Vec<f32> = clean.iter().map(|v| (v * 8.0).clamp(-0.9, 0.9)).collect();
    let scale = 10f32.powf((-60.0 - db(&clean) as f32) / 20.0);
    let quiet: Vec<f32> = clean.iter().map(|v| v * scale).collect();
    // At -60 dBFS the quantisation of 16-bit recordings is itself only 30 dB away, and few training items are so quiet.
    let wanted = [("clean", &clean, [0.7, 0.8]), ("clipped", &clipped, [0.7, 0.8]), ("quiet", &quiet, [0.5, 0.6])];
    for (name, pcm, wanted) in wanted {
        for (stages, wanted) in [6, 12].into_iter().zip(wanted) {
            let out = there_and_back(&mut p, pcm, stages);
            let change = db(&out) - db(pcm);
            assert!((-7.0..3.0).contains(&change), "{name}: {change:.1} dB at {stages} stages");
            // ESTOI does not hear the level: what matters is that the words are there.
            let heard = estoi(&at_16_khz(pcm), &at_16_khz(&out)).unwrap();
            assert!(heard > wanted, "{name}: ESTOI {heard:.3} at {stages} stages");
        }
    }
}

#[test]
fn integer_networks_sound_like_the_others_and_streams_do_not_hear_each_other() {
    let (pcm, mut float, mut int8) = (speech(&VOICE), processor(), int8_processor());
    for stages in [3, 12, 24] {
        let [whole, fast] = [&mut float, &mut int8].map(|p| {
            let out = there_and_back(p, &pcm, stages);
            estoi(&at_16_khz(&pcm), &at_16_khz(&out)).unwrap()
        });
        assert!((whole - fast).abs() < 0.015, "{stages} stages: {whole:.3} in floats, {fast:.3} in integers");
    }
    // Two streams in one call come out as each alone.
    let job = |pcm: &[f32]| {
        let mut encoder = Encoder::new(int8.profile(), StageCount::new(8).unwrap(), 5).unwrap();
        encoder.set_job_frames(5);
        encoder.push(pcm);
        encoder.next_job().unwrap()
    };
    let (loud, soft) = (job(&pcm[24_000..]), job(&pcm[60_000..].iter().map(|v| 0.01 * v).collect::<Vec<_>>()));
    let mut together = [loud.clone(), soft.clone()];
    int8.run_encode(&mut together).unwrap();
    for (mut alone, together) in [loud, soft].into_iter().zip(together) {
        int8.run_encode(std::slice::from_mut(&mut alone)).unwrap();
        assert_eq!(alone, together);
    }
}

/// Samples of bundles as a listener decodes them: a call for each.
fn listen(p: &mut Processor, bundles: &[Bundle]) -> Vec<f32> {
    let (mut decoder, mut pcm) = (Decoder::new(p.profile()), Vec::new());
    for bundle in bundles {
        decoder.push(bundle.clone()).unwrap();
        while let Some(mut job) = decoder.next_job() {
            assert_eq!(job.frames, usize::from(bundle.frames));
            p.run_decode(std::slice::from_mut(&mut job)).unwrap();
            decoder.accept(job);
        }
        decoder.pcm(&mut pcm);
    }
    pcm
}

fn error_db(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    db(&got.iter().zip(wanted).map(|(a, b)| a - b).collect::<Vec<_>>()) - db(wanted)
}

#[test]
fn networks_for_single_frames_say_what_those_for_many_say() {
    let (pcm, mut p) = (speech(&VOICE), int8_processor());
    let profile = p.profile();
    let (frame, dim) = (profile.frame_samples, profile.latent_dim);
    let pcm = &pcm[..pcm.len() / (5 * frame) * 5 * frame];
    let mut latents = |frames: usize| {
        let (mut state, mut all) = (vec![0.0; profile.encoder_state], Vec::new());
        for pcm in pcm.chunks(frames * frame) {
            let mut z = vec![0.0; frames * dim];
            p.analyse(pcm, &mut state, &mut z).unwrap();
            all.extend(z);
        }
        (all, state)
    };
    let (one, many) = (latents(1), latents(5));
    // The order of a sum is another, and once in a while a value is rounded to the next step.
    assert!(error_db(&one.0, &many.0) < -50.0, "{:.1} dB", error_db(&one.0, &many.0));
    assert!(error_db(&one.1, &many.1) < -50.0, "{:.1} dB", error_db(&one.1, &many.1));
    let stages = StageCount::new(12).unwrap();
    let fives = encode_all(&mut p, pcm, stages, 5).unwrap();
    let ones: Vec<Bundle> = fives
        .iter()
        .flat_map(|b| {
            let frames = b.codes.chunks(stages.index()).zip(b.first_frame..);
            frames.map(|(codes, n)| Bundle::new(n, 1, stages, codes.to_vec()).unwrap())
        })
        .collect();
    assert!(ones.len() > 4 * fives.len() && fives[0].frames == 5);
    let (one, many) = (listen(&mut p, &ones), listen(&mut p, &fives));
    assert!(error_db(&one, &many) < -40.0, "{:.1} dB", error_db(&one, &many));
    // Three streams in one call of one frame, each with a state of its own, come out as each alone.
    let [mut encoders, mut alone] = [(); 2].map(|()| {
        [0, 24_000, 60_000].map(|at| {
            let mut encoder = Encoder::new(Arc::clone(&profile), stages, 1).unwrap();
            encoder.set_job_frames(1);
            encoder.push(&pcm[at..at + 22 * frame]);
            encoder
        })
    });
    let (mut same, mut all) = (0, 0);
    for _ in 0..20 {
        let mut jobs = encoders.each_mut().map(|e| e.next_job().unwrap());
        p.run_encode(&mut jobs).unwrap();
        for ((job, encoder), alone) in jobs.into_iter().zip(&mut encoders).zip(&mut alone) {
            let mut one = alone.next_job().unwrap();
            p.run_encode(std::slice::from_mut(&mut one)).unwrap();
            assert_eq!((one.frames, one.first_frame), (job.frames, job.first_frame));
            same += one.codes.iter().zip(&job.codes).filter(|(a, b)| a == b).count();
            all += one.codes.len();
            alone.accept(one);
            encoder.accept(job);
            assert_eq!(alone.next_bundle().unwrap().first_frame, encoder.next_bundle().unwrap().first_frame);
        }
    }
    // Rows of a product are summed in another order in a batch, so two entries that are as near can change places.
    assert!(same * 100 > all * 97, "{same} of {all} codes");
}

#[test]
fn integer_networks_of_another_model_are_refused_and_missing_ones_are_done_without() {
    let copy = std::env::temp_dir().join(format!("undertone-int8-{}", std::process::id()));
    std::fs::create_dir_all(&copy).unwrap();
    for file in std::fs::read_dir(folder()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    // It would refuse the changed files first.
    std::fs::remove_file(copy.join("files.toml")).unwrap();
    let make = || load_model(Some(&copy)).unwrap().processor_with(Networks::Int8, BeamWidth::GREEDY);
    assert!(make().is_ok());
    // It fits, but does not say that it was made from this model.
    std::fs::copy(copy.join("decoder.onnx"), copy.join("decoder-int8.onnx")).unwrap();
    let error = make().unwrap_err().to_string();
    assert!(error.contains("decoder: made from another graph"), "{error}");
    std::fs::copy(folder().join("decoder-int8.onnx"), copy.join("decoder-int8.onnx")).unwrap();
    // One for single frames that has its weights in another file, or is no such graph.
    std::fs::copy(copy.join("encoder-frame.onnx"), copy.join("decoder-frame.onnx")).unwrap();
    let error = make().unwrap_err().to_string();
    assert!(error.contains("decoder: "), "{error}");
    std::fs::remove_file(copy.join("decoder-frame.onnx")).unwrap();
    assert!(make().is_ok());
    std::fs::remove_file(copy.join("decoder-int8.onnx")).unwrap();
    assert!(make().is_ok() && !load_model(Some(&copy)).unwrap().has_int8());
    std::fs::remove_dir_all(&copy).unwrap();
}
