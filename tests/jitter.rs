//! The playout buffer behind a bad network that is the same every time.

#[path = "common/impair.rs"]
mod impair;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use impair::{Impairment, Network};
use proptest::prelude::*;
use undertone::jitter::{Played, Playout, PlayoutOptions, Report};
use undertone::referee::LossModel;

const FRAME: Duration = Duration::from_millis(20);

/// What came out: for each frame who brought it (None: lost), restarts, when it was played, and the report.
struct Outcome {
    frames: Vec<(u64, Option<u64>)>,
    restarts: usize,
    last_delay: Duration,
    report: Report,
    played_at: Vec<Duration>,
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Sends `packets` bundles of `per` frames in real time through the network and plays them. A packet is its first frame, its
/// frames, and its number.
fn run(how: Impairment, packets: u64, per: u8, copies: bool) -> Outcome {
    let (start, mut network) = (Instant::now(), Network::new(how));
    let length = FRAME * u32::from(per);
    let mut arrivals = BTreeMap::new();
    for n in 0..packets {
        let sent = length * (n as u32 + 1);
        for (i, way) in network.send(sent).into_iter().enumerate() {
            arrivals.insert((sent + way, n, i), n);
        }
    }
    let mut playout = Playout::new(PlayoutOptions::default());
    let mut out = Outcome {
        frames: Vec::new(),
        restarts: 0,
        last_delay: Duration::ZERO,
        report: Report::default(),
        played_at: Vec::new(),
    };
    let mut next = None;
    let mut arrivals = arrivals.into_iter().peekable();
    // The player looks every 5 ms.
    for tick in 0..(packets * u64::from(per) * 4 + 400) {
        let now = ms(tick * 5);
        while let Some(((at, ..), n)) = arrivals.next_if(|((at, ..), _)| *at <= now) {
            if playout.push(n, n * u64::from(per), per, (n * u64::from(per), per, n), start + at) && copies && n > 0 {
                for f in 0..u64::from(per) {
                    let frame = (n - 1) * u64::from(per) + f;
                    playout.push_copy(frame, n * u64::from(per), (frame, 1, n - 1));
                }
            }
        }
        while let Some(played) = playout.pop(start + now) {
            // Nothing is called lost behind the last packet that came.
            if arrivals.peek().is_none() && matches!(played, Played::Lost { .. }) && playout.is_empty() {
                break;
            }
            match played {
                Played::Packet((first, frames, n)) => {
                    for f in first..first + u64::from(frames) {
                        // A packet that is late in part begins before what is expected.
                        if next.is_none_or(|e| f >= e) {
                            out.frames.push((f, Some(n)));
                            out.played_at.push(now);
                            next = Some(f + 1);
                        }
                    }
                }
                Played::Lost { first_frame, frames } => {
                    assert_eq!(Some(first_frame), next);
                    out.frames.extend((first_frame..first_frame + frames).map(|f| (f, None)));
                    out.played_at.extend((0..frames).map(|_| now));
                    next = Some(first_frame + frames);
                }
                Played::Quiet { .. } => panic!("nobody is silent here"),
                Played::Restart => {
                    out.restarts += 1;
                    next = None;
                }
            }
        }
    }
    out.last_delay = playout.delay();
    out.report = playout.report();
    out
}

fn lost(out: &Outcome) -> usize {
    out.frames.iter().filter(|(_, n)| n.is_none()).count()
}

/// Every frame once, in order, and none under a foreign number.
fn assert_in_place(out: &Outcome, per: u8) {
    let first = out.frames[0].0;
    for (f, (frame, brought)) in (first..).zip(&out.frames) {
        assert_eq!(f, *frame);
        assert!(brought.is_none_or(|n| n == frame / u64::from(per)), "frame {frame} from packet {brought:?}");
    }
}

#[test]
fn a_good_network_costs_the_shortest_delay_and_loses_nothing() {
    let out = run(Impairment::default(), 400, 5, false);
    assert_in_place(&out, 5);
    assert_eq!((out.frames.len(), lost(&out), out.restarts), (2_000, 0, 0));
    assert_eq!(out.last_delay, PlayoutOptions::default().least);
    assert_eq!((out.report.expected, out.report.received, out.report.late), (400, 400, 0));
}

#[test]
fn jitter_is_waited_out_once_it_is_known() {
    let how = Impairment { jitter: ms(150), ..Impairment::default() };
    let out = run(how, 600, 2, false);
    assert_in_place(&out, 2);
    assert!(out.last_delay >= ms(100) && out.last_delay <= ms(170), "{:?}", out.last_delay);
    let late = out.frames.iter().skip(200).filter(|(_, n)| n.is_none()).count();
    assert!(late < 30, "{late} of 1000 frames");
    assert!(out.report.reordered > 50);
}

#[test]
fn bursts_of_loss_are_lost_and_nothing_else_and_copies_fill_the_short_ones() {
    let how = Impairment { loss: LossModel::Gilbert { loss: 0.1, burst: 2.0 }, ..Impairment::default() };
    let (bare, copied) = (run(how.clone(), 600, 5, false), run(how, 600, 5, true));
    assert_in_place(&bare, 5);
    assert_in_place(&copied, 5);
    let gone = bare.report.lost() as usize;
    assert!(gone > 30);
    assert_eq!(lost(&bare), gone * 5);
    // With bursts of two on average half of the lost packets are the last of their burst.
    assert!(lost(&copied) < lost(&bare) * 2 / 3, "{} {}", lost(&copied), lost(&bare));
    assert_eq!(copied.report.rebuilt_frames as usize, lost(&bare) - lost(&copied));
}

#[test]
fn two_seconds_of_outage_are_two_seconds_of_lost_frames() {
    let how = Impairment { outage: Some((ms(5_000), ms(2_000))), jitter: ms(20), ..Impairment::default() };
    let out = run(how, 150, 5, false);
    assert_in_place(&out, 5);
    assert_eq!((lost(&out), out.restarts, out.frames.len()), (100, 0, 750));
}

#[test]
fn an_outage_of_ten_seconds_ends_with_a_restart_at_the_right_frame() {
    let how = Impairment { outage: Some((ms(5_000), ms(10_000))), ..Impairment::default() };
    let out = run(how, 300, 5, false);
    assert_eq!(out.restarts, 1);
    // Five seconds are called lost, the rest is left out.
    assert_eq!(lost(&out), 250);
    assert_eq!(out.frames.last().unwrap().0, 1_499);
    assert_eq!(out.frames.len(), 1_500 - 250);
}

/// Frames that were silent and lost, and the first frames of packets played, of a second of speech, silence that is described four times
/// and the beginning of a word at frame 123; the packets that `lost` names never come.
fn silence(eager: bool, lost: &[u64]) -> (u64, u64, Vec<u64>) {
    let firsts = (0..10).map(|n| 5 * n).chain([50, 70, 90, 110]).chain((0..10).map(|n| 123 + 5 * n));
    let packets: Vec<(u64, u64)> = (0..).zip(firsts).filter(|(_, first)| !lost.contains(first)).collect();
    let (start, options) = (Instant::now(), PlayoutOptions { eager, ..PlayoutOptions::default() });
    let mut playout = Playout::new(options);
    let (mut waiting, mut quiet, mut gone, mut played) = (packets.iter().peekable(), 0, 0, Vec::new());
    for at in 0..4_500 {
        let now = start + ms(at);
        while let Some(&(sequence, first)) = waiting.next_if(|(_, first)| (first + 5) * 20 + 30 <= at) {
            if (50..123).contains(&first) {
                playout.push_background(sequence, first, 5, first, now);
            } else {
                playout.push(sequence, first, 5, first, now);
            }
        }
        while let Some(next) = playout.pop(now) {
            match next {
                Played::Packet(first) => played.push(first),
                Played::Quiet { frames } => quiet += frames,
                Played::Lost { frames, .. } if played.len() < packets.len() => gone += frames,
                Played::Lost { .. } => {}
                Played::Restart => panic!("no restart here"),
            }
        }
    }
    assert_eq!(playout.report().lost(), lost.len() as u64);
    (quiet, gone, played)
}

#[test]
fn silence_is_no_loss_and_what_is_lost_in_front_of_a_word_is() {
    for eager in [false, true] {
        let (quiet, lost, played) = silence(eager, &[]);
        assert_eq!((quiet, lost, played.len()), (15 + 15 + 15 + 8, 0, 24), "{eager}");
        // A description that is lost is not missed.
        let (quiet, lost, played) = silence(eager, &[90]);
        assert_eq!((quiet, lost, played.len()), (15 + 35 + 8, 0, 23), "{eager}");
        // The first 100 ms of the word are, and the silence before them is not longer for it.
        let (quiet, lost, played) = silence(eager, &[123]);
        assert_eq!((quiet + lost, played.len()), (15 + 15 + 15 + 13, 23), "{eager}");
        // Whoever plays knows of the loss only when the next packet has come.
        assert!((4..=5).contains(&lost), "{eager}: {lost}");
        // In the middle of speech everything is as it was.
        assert_eq!(silence(eager, &[20]).1, 5, "{eager}");
    }
}

#[test]
fn a_silence_that_is_described_no_more_is_lost_after_a_second() {
    let (start, mut playout) = (Instant::now(), Playout::new(PlayoutOptions::default()));
    playout.push(0, 0, 5, 0, start);
    playout.push_background(1, 5, 5, 1, start + ms(100));
    let (mut quiet, mut lost) = (0, 0);
    for at in 0..3_000 {
        while let Some(next) = playout.pop(start + ms(at)) {
            match next {
                Played::Quiet { frames } => quiet += frames,
                Played::Lost { frames, .. } => lost += frames,
                _ => assert_eq!(quiet + lost, 0),
            }
        }
    }
    assert_eq!(quiet, 50);
    assert!((70..100).contains(&lost), "{lost}");
}

#[test]
fn a_pause_that_is_announced_is_no_loss() {
    let (start, mut playout) = (Instant::now(), Playout::new(PlayoutOptions::default()));
    let mut got = Vec::new();
    let mut drain = |playout: &mut Playout<u64>, at: Duration| {
        while let Some(p) = playout.pop(start + at) {
            got.push(p);
        }
    };
    for n in 0..20u64 {
        let at = ms(n * 100);
        playout.push(n, n * 5, 5, n, start + at);
        drain(&mut playout, at);
    }
    playout.announce(20);
    drain(&mut playout, ms(30_000));
    assert_eq!(playout.wake(), None);
    for n in 20..40u64 {
        let at = ms(30_000 + n * 100);
        playout.push(n, n * 5, 5, n, start + at);
        drain(&mut playout, at);
    }
    playout.announce(40);
    drain(&mut playout, ms(60_000));
    assert_eq!(got, (0..40).map(Played::Packet).collect::<Vec<_>>());
}

#[test]
fn after_a_pause_that_was_announced_late_all_that_comes_is_played() {
    let (start, mut playout) = (Instant::now(), Playout::new(PlayoutOptions::default()));
    let mut got = Vec::new();
    let mut at = ms(0);
    let mut pass = |playout: &mut Playout<u64>, to: Duration| {
        while at < to {
            at += ms(5);
            while let Some(p) = playout.pop(start + at) {
                got.push(p);
            }
        }
    };
    for n in 0..40u64 {
        let pause = if n < 20 { 0 } else { 3_000 };
        pass(&mut playout, ms(n * 100 + pause));
        playout.push(n, n * 5, 5, n, start + ms(n * 100 + pause));
        if n == 19 {
            // By now some frames are called lost that were never sent.
            pass(&mut playout, ms(1_900 + 300));
            playout.announce(20);
        }
    }
    playout.announce(40);
    pass(&mut playout, ms(20_000));
    let packets: Vec<_> = got.iter().filter(|p| matches!(p, Played::Packet(_))).cloned().collect();
    assert_eq!(packets, (0..40).map(Played::Packet).collect::<Vec<_>>());
    let at = got.iter().position(|p| *p == Played::Restart).unwrap();
    assert!(matches!(got[at - 1], Played::Lost { .. }) && !got[at..].iter().any(|p| matches!(p, Played::Lost { .. })));
}

#[test]
fn a_stream_that_begins_anew_is_taken_up_after_a_few_packets() {
    let (start, mut playout) = (Instant::now(), Playout::new(PlayoutOptions::default()));
    let mut got = Vec::new();
    for n in 0..200u64 {
        let at = start + ms(n * 100);
        // After ten seconds its numbers begin at zero again.
        playout.push(n, n % 100 * 5, 5, n, at);
        while let Some(p) = playout.pop(at) {
            got.push(p);
        }
    }
    assert_eq!(got.iter().filter(|p| **p == Played::Restart).count(), 1);
    let packets = got.iter().filter(|p| matches!(p, Played::Packet(_))).count();
    assert!(packets > 180, "{packets}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn whatever_the_network_does_every_frame_is_played_once_and_in_its_place(
        seed in any::<u64>(), loss in 0.0f64..0.3, burst in 1.0f64..4.0, duplicates in 0.0f64..0.3,
        reordered in 0.0f64..0.3, held in 0u64..200, jitter in 0u64..200, per in 1u8..10, copies: bool,
    ) {
        let how = Impairment {
            loss: LossModel::Gilbert { loss, burst }, duplicates, reordered: (reordered, ms(held)), jitter: ms(jitter),
            outage: None, seed,
        };
        let out = run(how, 120, per, copies);
        prop_assume!(!out.frames.is_empty());
        assert_in_place(&out, per);
        prop_assert_eq!(out.restarts, 0);
        let r = out.report;
        prop_assert!(r.received <= r.expected && r.expected <= 120);
        // Time runs forwards only.
        prop_assert!(out.played_at.is_sorted());
    }

    #[test]
    fn packets_with_any_numbers_never_break_the_buffer(
        packets in prop::collection::vec((any::<u64>(), any::<u64>(), 0u8..60, 0u64..3_000), 1..200),
        near: bool,
    ) {
        let (mut now, mut playout) = (Instant::now(), Playout::new(PlayoutOptions { eager: near, ..PlayoutOptions::default() }));
        for (sequence, first, frames, step) in packets {
            now += ms(step);
            let (sequence, first) = if near { (sequence % 50, first % 3_000) } else { (sequence, first) };
            playout.push(sequence, first, frames, 0, now);
            playout.push_copy(first.wrapping_sub(1), first, 0);
            playout.announce(sequence);
            for _ in 0..600 {
                if playout.pop(now).is_none() {
                    break;
                }
            }
            playout.wake();
            playout.report();
        }
    }
}

#[test]
fn a_copy_of_the_last_number_of_all_is_not_played() {
    // Found by fuzzing: a frame that no frame can follow has no end either.
    let start = Instant::now();
    let mut playout = Playout::new(PlayoutOptions { eager: true, ..PlayoutOptions::default() });
    assert!(playout.push(0, u64::MAX - 3, 2, u64::MAX - 3, start));
    assert!(!playout.push(1, u64::MAX, 1, u64::MAX, start));
    playout.push_copy(u64::MAX - 1, u64::MAX, u64::MAX - 1);
    playout.push_copy(u64::MAX, u64::MAX, u64::MAX);
    let (mut played, mut now) = (Vec::new(), start);
    for _ in 0..100 {
        now += FRAME;
        while let Some(next) = playout.pop(now) {
            match next {
                Played::Packet(frame) => played.push(frame),
                Played::Lost { .. } => break,
                Played::Quiet { .. } | Played::Restart => {}
            }
        }
    }
    assert_eq!(played, [u64::MAX - 3, u64::MAX - 1]);
}
