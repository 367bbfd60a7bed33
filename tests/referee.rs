//! The referee must rank codecs as ears do, and must not believe a codec that sends nothing.
#![cfg(feature = "referee")]

use anyhow::Result;
use undertone::referee::{Codec, Opus, OpusSettings, Packet, Payload, RefereeError, Repair, Undertone, measure, score};
use undertone::rvq::BeamWidth;
use undertone::units::StageCount;

/// Six seconds that behave like speech: gliding harmonics under moving resonances, in syllables, with hiss between.
fn voice() -> Vec<f32> {
    let mut state = 1u32;
    let mut phase = 0.0f32;
    (0..144_000)
        .map(|n| {
            let t = n as f32 / 24_000.0;
            let pitch = 130.0 + 35.0 * (t * 2.1).sin() + 12.0 * (t * 5.3).sin();
            phase = (phase + pitch / 24_000.0).fract();
            let (f1, f2, f3) = (500.0 + 250.0 * (t * 3.7).sin(), 1_500.0 + 600.0 * (t * 2.9).sin(), 2_600.0);
            let voiced: f32 = (1..=40)
                .map(|k| {
                    let f = k as f32 * pitch;
                    let near = |centre: f32, width: f32| 1.0 / (1.0 + ((f - centre) / width).powi(2));
                    let gain = near(f1, 90.0) + 0.5 * near(f2, 130.0) + 0.25 * near(f3, 180.0) + 0.01;
                    gain * (std::f32::consts::TAU * phase * k as f32).sin()
                })
                .sum();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let hiss = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            let syllable = (std::f32::consts::TAU * 3.0 * t).sin();
            0.12 * voiced * syllable.max(0.0) + 0.04 * hiss * (-syllable).max(0.0).powi(4) + 1e-4 * hiss
        })
        .collect()
}

fn settings(kbps: u32) -> OpusSettings {
    OpusSettings {
        bits_per_second: kbps * 1_000,
        cbr: true,
        packet_ms: 20,
        nolace: false,
        music: false,
        repair: Repair::Plc,
        expected_loss: 0,
    }
}

#[test]
fn the_referee_ranks_as_ears_do() -> Result<()> {
    let original = voice();
    let mut ranking = vec![("original".to_owned(), score(&original, &original))];
    for kbps in [24, 12, 6] {
        let outcome = measure(&mut Opus::new(settings(kbps)), &original, &[])?;
        assert!((outcome.kbps[0] - f64::from(kbps)).abs() < 0.1, "{kbps} kbit/s CBR, counted {}", outcome.kbps[0]);
        assert!((outcome.kbps[2] - outcome.kbps[0] - 16.0).abs() < 0.2, "40 bytes a packet of 20 ms are 16 kbit/s");
        ranking.push((format!("Opus {kbps}"), outcome.scores));
    }
    let mut state = 9u32;
    let noise: Vec<f32> = original
        .iter()
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / 8_388_608.0 - 1.0) * 0.1
        })
        .collect();
    ranking.push(("noise".to_owned(), score(&original, &noise)));
    for pair in ranking.windows(2) {
        let (better, worse) = (&pair[0], &pair[1]);
        assert!(better.1.pesq > worse.1.pesq, "PESQ: {better:?} should beat {worse:?}");
        // ESTOI hears up to 4.3 kHz only. There Opus at 24 and at 12 kbit/s are equally good for this generated voice
        // (0.962 and 0.965), so between those two it must only not tell them apart.
        if better.0 == "Opus 24" {
            assert!((better.1.estoi - worse.1.estoi).abs() < 0.01, "ESTOI: {better:?} beside {worse:?}");
        } else {
            assert!(better.1.estoi > worse.1.estoi, "ESTOI: {better:?} should beat {worse:?}");
        }
        assert!(better.1.lsd_db < worse.1.lsd_db, "LSD: {better:?} should beat {worse:?}");
    }
    Ok(())
}

/// Keeps the input to itself and sends nothing.
#[derive(Default)]
struct Cheat(Vec<f32>);

impl Codec for Cheat {
    fn encode(&mut self, pcm: &[f32]) -> Result<Vec<Packet>, RefereeError> {
        self.0 = pcm.to_vec();
        Ok(vec![Packet { payload: Vec::new(), message_bytes: 0, ip_bytes: 0 }; pcm.len() / 480])
    }

    fn decode(&mut self, _: &[Option<&Packet>]) -> Result<Vec<f32>, RefereeError> {
        Ok(self.0.clone())
    }

    fn packet_ms(&self) -> usize {
        20
    }

    fn delay_ms(&self) -> f64 {
        0.0
    }
}

#[test]
fn a_codec_that_sends_nothing_is_caught() {
    match measure(&mut Cheat::default(), &voice(), &[]) {
        Err(RefereeError::TooFewBytes { bytes: 0, .. }) => {}
        other => panic!("a codec at 0 bits was believed: {:?}", other.map(|o| o.scores)),
    }
}

#[test]
fn redundancy_repairs_what_concealment_cannot() -> Result<()> {
    let original = voice();
    let lost: Vec<bool> = (0..100).map(|i| i % 5 == 3).collect();
    let estoi = |repair| -> Result<f64> {
        let s = OpusSettings { repair, expected_loss: 20, ..settings(32) };
        let outcome = measure(&mut Opus::new(s), &original, &lost)?;
        assert!((outcome.lost - 0.2).abs() < 0.01);
        Ok(outcome.scores.estoi)
    };
    let (plc, lbrr, dred) = (estoi(Repair::Plc)?, estoi(Repair::Lbrr)?, estoi(Repair::Dred)?);
    assert!(lbrr > plc + 0.01, "LBRR {lbrr}, PLC {plc}");
    assert!(dred > plc + 0.01, "DRED {dred}, PLC {plc}");
    Ok(())
}

#[test]
fn copies_repair_part_of_what_was_lost() -> Result<()> {
    let model = undertone::infer::load_model(None)?;
    let mut processor = model.processor(BeamWidth::GREEDY)?;
    let (tokens, original) = (model.tokens()?, voice());
    let lost: Vec<bool> = (0..10).map(|i| i % 5 > 2).collect();
    let mut run = |copies: u8, lost: &[bool]| {
        let payload = Payload::Datagrams { copies };
        let stages = StageCount::new(12)?;
        let mut codec = Undertone::new(&mut processor, tokens.clone(), stages, 1, payload);
        Ok::<_, anyhow::Error>(measure(&mut codec, &original, lost)?)
    };
    let (whole, concealed, repaired) = (run(0, &[])?, run(0, &lost)?, run(1, &lost)?);
    let estoi = [&whole, &concealed, &repaired].map(|o| o.scores.estoi);
    assert!(estoi[0] > estoi[2] + 0.005 && estoi[2] > estoi[1] + 0.005, "{estoi:?}");
    // Copies of two stages take 20 bits of a frame, and some bytes say what they are.
    let more = repaired.kbps[0] - concealed.kbps[0];
    assert!((1.0..3.5).contains(&more) && (concealed.lost - 0.4).abs() < 0.01, "{more}");
    Ok(())
}
