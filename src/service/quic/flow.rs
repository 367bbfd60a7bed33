//! Bundles -> datagrams -> bundles, the same at both ends.

use std::time::{Duration, Instant};

use crate::bitstream::{
    BitstreamError, Bundle, COPY_STAGES, CodedBundle, Form, Redundancy, RedundancyWriter, read_redundancy,
};
use crate::codec::DESCRIPTION_FRAMES;
use crate::jitter::{Played, Playout, PlayoutOptions, RateControl, Report};
use crate::profile::Profile;
use crate::session::{Control, Message, PackedBundle, Wire};
use crate::units::{MessageRate, StageCount};
use crate::wire::{Brief, Datagram, MAX_DATAGRAM, WireError};

/// Most bytes of packed codes in a datagram; copies (at most 130 bytes) and the message around them fit beside it.
const MAX_PAYLOAD: usize = 900;

/// Most frames of copies in a datagram.
const MAX_COPIES: u8 = Profile::MAX_FRAMES_PER_BUNDLE;

/// Bytes of a datagram of one size that one stage of each frame fits into whatever it is, besides its codes.
const HEAD: usize = 24;

/// Descriptions of silence of which one says its numbers in full, and frames between two that may say low bits only.
const FULL_NUMBERS: u32 = 8;
const MOST_AHEAD: u64 = 1 << 14;

/// A sender that had nothing to send for this long, and for longer than a bundle and a half, says so.
const PAUSE: Duration = Duration::from_millis(250);

/// Frames after which a coded bundle ends with a check sum again: peers' coders should agree, and packets have seals of their own.
const CHECK_FRAMES: u32 = 50;

/// How often it says so after that, and how often a receiver reports.
pub(super) const REPORT: Duration = Duration::from_secs(1);

/// What QUIC sessions agree on at most; datagrams are thin in any case.
pub(super) fn agreed(wire: Wire) -> Wire {
    Wire { thin: true, ..wire.common(Wire::ALL) }
}

/// Frames of a bundle that one datagram carries.
#[derive(Clone)]
pub(super) struct Part {
    sequence: u64,
    pub(super) bundle: PackedBundle,
    copies: Vec<u8>,
    /// A check sum is due, if it is coded.
    check: bool,
    /// Bytes that the datagram is to have; None: as many as it takes.
    size: Option<usize>,
    /// Numbers need not be said in full.
    brief: bool,
}

/// A datagram, and how many of its bytes are padding.
pub(super) type Padded = (Vec<u8>, usize);

impl Part {
    /// What may be sent of it, best first: of a datagram of one size, with fewer and fewer stages, and then without copies.
    pub(super) fn attempts(self) -> impl Iterator<Item = Result<Self, BitstreamError>> {
        let (most, fixed) = (self.bundle.stages.value(), self.size.is_some());
        let fewest = if fixed { 1 } else { most };
        let with_copies = [true, false].into_iter().filter(move |&copies| copies || fixed);
        let all = with_copies.flat_map(move |copies| (fewest..=most).rev().map(move |n| (copies, n)));
        all.filter_map(|(copies, n)| Some((copies, StageCount::new(n).ok()?))).map(move |(copies, stages)| {
            let (bundle, kept) = (self.bundle.limited(stages)?, if copies { self.copies.clone() } else { Vec::new() });
            Ok(Self { bundle, copies: kept, ..self.clone() })
        })
    }

    /// Bytes that the datagram is to have; None: as many as it takes.
    pub(super) fn size(&self) -> Option<usize> {
        self.size
    }

    /// The datagram in a packed session, or of a description of silence; None if it does not fit.
    pub(super) fn packed(&self) -> Option<Padded> {
        if let Some(brief) = Brief::of(self.sequence, &self.bundle).filter(|_| self.brief) {
            return Some((Datagram::Brief(brief).encode(), 0));
        }
        self.bytes(Message::Bundle { sequence: self.sequence, bundle: self.bundle.clone() })
    }

    /// The datagram in a coded session; None if it does not fit.
    pub(super) fn coded(&self, mut bundle: CodedBundle, checked: bool) -> Option<Padded> {
        if checked && !self.check {
            bundle.payload.truncate(bundle.payload.len().saturating_sub(2));
        }
        self.bytes(Message::Coded { sequence: self.sequence, bundle, checked: checked && self.check })
    }

    fn bytes(&self, message: Message) -> Option<Padded> {
        let datagram = Datagram::bundle(message, self.copies.clone())?;
        let plain = datagram.encode();
        match self.size {
            None => Some((plain, 0)),
            Some(size) => Some((datagram.encode_padded(size)?, size.saturating_sub(plain.len()))),
        }
    }
}

/// What goes to one receiver.
pub(super) struct Outgoing {
    /// What the receiver knows.
    wire: Wire,
    sequence: u64,
    copies: RedundancyWriter,
    pub(super) rate: RateControl,
    /// Most stages that the receiver asks for, and most that the stream had so far.
    asked: StageCount,
    had: Option<StageCount>,
    /// When the last bundle was sent or its pause last announced, how long the bundle was, and how often that was said.
    said_at: Instant,
    length: Duration,
    said: u32,
    /// Frames since the last check sum of a coded bundle.
    unchecked: u32,
    /// Most frames of a datagram so far, of a stream whose datagrams have one size.
    longest: u8,
    /// First frame of the last description of silence, and how many there were since the last sound.
    described: Option<(u64, u32)>,
}

impl Outgoing {
    pub(super) fn new(wanted: StageCount, wire: Wire, now: Instant) -> Self {
        let stages = StageCount::new(COPY_STAGES).unwrap_or(StageCount::MAX);
        let how = Redundancy { stages, frames: 1 };
        Self {
            wire,
            sequence: 0,
            copies: RedundancyWriter::new(how),
            rate: RateControl::new(wanted, now),
            asked: wanted,
            had: None,
            said_at: now,
            length: Duration::ZERO,
            said: u32::MAX,
            unchecked: CHECK_FRAMES,
            longest: 0,
            described: None,
        }
    }

    /// The receiver asks for another number of stages.
    pub(super) fn want(&mut self, asked: StageCount) {
        self.asked = asked;
        self.rate.want(self.had.map_or(asked, |h| h.min(asked)));
    }

    /// Bundles sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.sequence
    }

    /// A bundle as datagrams carry it, with as many stages as the receiver gets now: in one part, or several if it is long. With
    /// `constant` they have one size, which only losses change; silence is then not described.
    ///
    /// # Errors
    /// [`BitstreamError`] for a payload that does not fit.
    pub(super) fn pack(
        &mut self,
        bundle: &PackedBundle,
        constant: Option<MessageRate>,
        now: Instant,
    ) -> Result<Vec<Part>, BitstreamError> {
        if let Some(rate) = constant {
            return self.pack_constant(bundle, rate, now);
        }
        if self.had.is_none_or(|had| bundle.stages > had) {
            // Lowering a rate that the stream never has would change nothing.
            self.had = Some(bundle.stages);
            self.want(self.asked);
        }
        (self.said_at, self.length, self.said) = (now, frame_time(bundle.frames), 0);
        let limited = bundle.limited(self.rate.stages())?;
        if limited.is_background() {
            // The next is sent when this one's silence has lasted for as long as it may without another word.
            self.length = frame_time(bundle.frames.saturating_add(DESCRIPTION_FRAMES as u8));
            let sequence = self.sequence;
            self.sequence += 1;
            let brief = self.is_brief(bundle.first_frame);
            let part = Part { sequence, bundle: limited, copies: Vec::new(), check: false, size: None, brief };
            return Ok(vec![part]);
        }
        self.described = None;
        let parts = if self.wire.graded { vec![limited] } else { limited.plain_runs()? };
        let mut made = Vec::new();
        for part in parts {
            self.pack_part(&part.unpack()?, &mut made);
        }
        Ok(made)
    }

    /// Whether a description of silence may say low bits only: not the first of a silence and not now and then, so that whoever
    /// missed much learns the numbers; and the receiver must have received something.
    fn is_brief(&mut self, first_frame: u64) -> bool {
        let (last, count) = self.described.unwrap_or((first_frame, 0));
        self.described = Some((first_frame, count + 1));
        let near = first_frame.saturating_sub(last) < MOST_AHEAD;
        count % FULL_NUMBERS != 0 && near && self.rate.is_heard()
    }

    fn pack_constant(
        &mut self,
        bundle: &PackedBundle,
        rate: MessageRate,
        now: Instant,
    ) -> Result<Vec<Part>, BitstreamError> {
        if bundle.is_background() {
            return Ok(Vec::new());
        }
        (self.said_at, self.length, self.said) = (now, frame_time(bundle.frames), 0);
        let rate = rate.min(MessageRate::of_stages(self.asked)).share(self.rate.share());
        // Whatever is in it, so that the cut says nothing.
        let most = (1..=bundle.frames).rev().find(|&n| rate.bytes(n) <= MAX_DATAGRAM).unwrap_or(1);
        let bundle = if self.wire.graded { bundle.clone() } else { bundle.clone().even()? };
        let parts = split(&bundle.limited(rate.most_stages())?.unpack()?, most);
        Ok(parts.iter().map(|part| self.part(part, Some(rate))).collect())
    }

    /// Appends the parts of a bundle with the stages that it is to have.
    fn pack_part(&mut self, whole: &Bundle, parts: &mut Vec<Part>) {
        let most = MAX_PAYLOAD * usize::from(whole.frames) / Bundle::payload_len(whole.frames, whole.stages).max(1);
        for part in split(whole, most.clamp(1, usize::from(Profile::MAX_FRAMES_PER_BUNDLE)) as u8) {
            parts.push(self.part(&part, None));
        }
    }

    /// The next datagram.
    fn part(&mut self, part: &Bundle, constant: Option<MessageRate>) -> Part {
        self.copies.set_frames(self.rate.copies().saturating_mul(part.frames).min(MAX_COPIES));
        let mut copies = Vec::new();
        self.copies.write(part, &mut copies);
        let sequence = self.sequence;
        self.sequence += 1;
        // A single zero says that there are none, as no bytes do.
        let copies = if copies.len() > 1 { copies } else { Vec::new() };
        let check = self.unchecked >= CHECK_FRAMES;
        self.unchecked = if check { 0 } else { self.unchecked } + u32::from(part.frames);
        self.longest = self.longest.max(part.frames);
        let size = constant.map(|rate| {
            let one = PackedBundle::payload_len(self.longest, StageCount::ONE, Form::Graded);
            rate.bytes(self.longest).max(HEAD + one).min(MAX_DATAGRAM)
        });
        Part { sequence, bundle: PackedBundle::pack(part), copies, check, size, brief: false }
    }

    /// How many bundles were sent, as a sender says it that has nothing to send.
    pub(super) fn count(&self) -> Message {
        Message::Control(Control { bundles_sent: Some(self.sequence), ..Control::default() })
    }

    /// What is said when there is nothing to send: soon, so that the receiver does not take the pause for a loss, and then as
    /// a sign of life; None: it is not time.
    pub(super) fn announcement(&mut self, now: Instant) -> Option<Message> {
        let wait = match self.said {
            0 => PAUSE.max(self.length.mul_f64(1.5)),
            _ => REPORT,
        };
        if now.saturating_duration_since(self.said_at) < wait {
            return None;
        }
        (self.said_at, self.said) = (now, self.said.saturating_add(1));
        Some(self.count())
    }
}

/// Length of so many frames.
pub(super) fn frame_time(frames: u8) -> Duration {
    Profile::FRAME_TIME * u32::from(frames)
}

/// A bundle in parts of at most `frames` frames.
fn split(bundle: &Bundle, frames: u8) -> Vec<Bundle> {
    let width = bundle.stages.index();
    let firsts = (bundle.first_frame..).step_by(usize::from(frames));
    let parts = bundle.codes.chunks(width * usize::from(frames));
    let part = |(first_frame, codes): (u64, &[u16])| Bundle {
        first_frame,
        frames: (codes.len() / width) as u8,
        stages: bundle.stages,
        codes: codes.to_vec(),
    };
    firsts.zip(parts).map(part).collect()
}

/// A bundle without the frames before `next`; None if nothing is left.
pub(super) fn trimmed(mut packed: PackedBundle, next: u64) -> Option<PackedBundle> {
    let late = next.saturating_sub(packed.first_frame);
    if late == 0 {
        return Some(packed);
    }
    if late >= u64::from(packed.frames) {
        return None;
    }
    if packed.is_background() {
        packed.frames -= late as u8;
        packed.first_frame += late;
        return Some(packed);
    }
    let mut bundle = packed.unpack().ok()?;
    bundle.codes.drain(..late as usize * bundle.stages.index());
    bundle.frames -= late as u8;
    bundle.first_frame += late;
    Some(PackedBundle::pack(&bundle))
}

/// What comes from one sender.
pub(super) struct Incoming {
    playout: Playout<PackedBundle>,
    /// Number and first frame of the bundle with the highest number that said them.
    latest: Option<(u64, u64)>,
}

impl Incoming {
    pub(super) fn new(options: PlayoutOptions) -> Self {
        Self { playout: Playout::new(options), latest: None }
    }

    /// The bundle that a brief one stands for; None before any other came.
    ///
    /// # Errors
    /// [`WireError`] for what no sender writes.
    pub(super) fn whole(&self, brief: Brief) -> Result<Option<(u64, PackedBundle)>, WireError> {
        self.latest.map(|latest| brief.whole(latest)).transpose()
    }

    /// Takes a bundle and its copies.
    ///
    /// # Errors
    /// [`BitstreamError`] for what no sender writes.
    pub(super) fn push(
        &mut self,
        sequence: u64,
        bundle: &PackedBundle,
        copies: &[u8],
        now: Instant,
    ) -> Result<(), BitstreamError> {
        bundle.unpack()?;
        let copies = if copies.is_empty() { None } else { read_redundancy(bundle.first_frame, copies)? };
        let (first_frame, frames) = (bundle.first_frame, bundle.frames);
        self.latest = self.latest.max(Some((sequence, first_frame)));
        if bundle.is_background() {
            self.playout.push_background(sequence, first_frame, frames, bundle.clone(), now);
        } else if self.playout.push(sequence, first_frame, frames, bundle.clone(), now) {
            for copy in copies.iter().flat_map(|c| split(c, 1)) {
                self.playout.push_copy(copy.first_frame, first_frame, PackedBundle::pack(&copy));
            }
        }
        Ok(())
    }

    pub(super) fn pop(&mut self, now: Instant) -> Option<Played<PackedBundle>> {
        self.playout.pop(now)
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.playout.wake()
    }

    pub(super) fn announce(&mut self, sent: u64) {
        self.playout.announce(sent);
    }

    pub(super) fn has_all(&self, sent: u64) -> bool {
        self.playout.has_all(sent)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.playout.is_empty()
    }

    pub(super) fn delay(&self) -> std::time::Duration {
        self.playout.delay()
    }

    pub(super) fn report(&mut self) -> Report {
        self.playout.report()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(first_frame: u64, frames: u8, stages: StageCount) -> Bundle {
        let codes = (0..usize::from(frames) * stages.index()).map(|i| (i % 1000) as u16).collect();
        Bundle::new(first_frame, frames, stages, codes).unwrap()
    }

    #[test]
    fn the_largest_bundle_is_sent_in_parts_that_fit_and_comes_back_whole() {
        let now = Instant::now();
        let mut out = Outgoing::new(StageCount::MAX, Wire::ALL, now);
        // Losses bring the most copies; the rate is lowered, so ask for everything again.
        let lossy = Report { expected: 10, received: 0, ..Report::default() };
        out.rate.report(&lossy, now + Duration::from_secs(1));
        assert_eq!(out.rate.copies(), 2);
        let mut incoming = Incoming::new(PlayoutOptions { eager: true, ..PlayoutOptions::default() });
        let mut got = Vec::new();
        for n in 0..3 {
            let whole = bundle(n * 50, 50, StageCount::MAX);
            let wanted = whole.truncated(out.rate.stages());
            for part in out.pack(&PackedBundle::pack(&whole), None, now).unwrap() {
                let (bytes, _) = part.packed().unwrap();
                assert!(bytes.len() <= MAX_DATAGRAM, "{}", bytes.len());
                let d = Datagram::decode(&bytes).unwrap();
                let Datagram::Bundle { sequence, first_frame, thin, copies } = d else { panic!("{d:?}") };
                let Ok(Message::Bundle { sequence, bundle }) = thin.whole(sequence, first_frame, false, Wire::ALL)
                else {
                    panic!("not a packed bundle")
                };
                incoming.push(sequence, &bundle, &copies, now).unwrap();
            }
            got.push(wanted);
        }
        let later = now + Duration::from_secs(60);
        let mut codes = Vec::new();
        while !incoming.is_empty() {
            if let Some(Played::Packet(b)) = incoming.pop(later) {
                codes.extend(b.unpack().unwrap().codes);
            }
        }
        assert_eq!(codes, got.into_iter().flat_map(|b| b.codes).collect::<Vec<_>>());
    }

    #[test]
    fn a_pause_is_announced_soon_and_then_every_second() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut out = Outgoing::new(StageCount::MAX, Wire::ALL, now);
        out.pack(&PackedBundle::pack(&bundle(0, 5, StageCount::MAX)), None, now).unwrap();
        let said: Vec<_> = (0..300).filter(|n| out.announcement(now + ms(n * 10)).is_some()).map(|n| n * 10).collect();
        assert_eq!(said, [250, 1_250, 2_250]);
        // Long bundles have long gaps between them.
        let at = now + ms(5_000);
        out.pack(&PackedBundle::pack(&bundle(5, 50, StageCount::MAX)), None, at).unwrap();
        assert_eq!(out.announcement(at + ms(1_400)), None);
        assert_eq!(out.announcement(at + ms(1_500)), Some(out.count()));
    }

    #[test]
    fn a_rate_falls_from_what_the_stream_has_not_from_what_is_asked_for() {
        let now = Instant::now();
        let mut out = Outgoing::new(StageCount::MAX, Wire::ALL, now);
        let stages = StageCount::new(6).unwrap();
        out.pack(&PackedBundle::pack(&bundle(0, 5, stages)), None, now).unwrap();
        let lossy = Report { expected: 10, received: 5, ..Report::default() };
        out.rate.report(&lossy, now + Duration::from_secs(1));
        assert_eq!(out.rate.stages().value(), 4);
    }

    /// Speech, a minute of silence and speech again, of whose datagrams those are lost that `loses` says: bits a second of the silence,
    /// and frames that were played, called lost and silent.
    fn a_silent_minute(loses: impl Fn(u64) -> bool) -> (f64, [u64; 3]) {
        let (start, frame) = (Instant::now(), Profile::FRAME_TIME);
        let speech = |n: u64| PackedBundle::pack(&bundle(n * 5, 5, StageCount::new(8).unwrap()));
        let quiet = |n: u64| PackedBundle::background(100 + 20 * n, 5, &[1, 2, 3, 4]).unwrap();
        let mut sent: Vec<_> = (0..20).map(speech).collect();
        sent.extend((0..150).map(quiet));
        sent.extend((620..640).map(speech));
        let (mut out, mut sent) = (Outgoing::new(StageCount::MAX, Wire::ALL, start), sent.into_iter().peekable());
        let mut incoming = Incoming::new(PlayoutOptions::default());
        let (mut bytes, mut number, mut count) = (0, 0, [0; 3]);
        for n in 0..3_300u64 {
            let now = start + frame * n as u32;
            while let Some(bundle) = sent.next_if(|b| b.first_frame + 5 <= n) {
                for part in out.pack(&bundle, None, now).unwrap() {
                    let (datagram, _) = part.packed().unwrap();
                    bytes += if bundle.is_background() { datagram.len() } else { 0 };
                    number += 1;
                    if loses(number - 1) {
                        continue;
                    }
                    let got = match Datagram::decode(&datagram).unwrap() {
                        Datagram::Brief(brief) => incoming.whole(brief).unwrap(),
                        Datagram::Bundle { sequence, first_frame, thin, .. } => {
                            match thin.whole(sequence, first_frame, false, Wire::ALL).unwrap() {
                                Message::Bundle { sequence, bundle } => Some((sequence, bundle)),
                                other => panic!("{other:?}"),
                            }
                        }
                        Datagram::Report(_) => panic!("a report"),
                    };
                    let (sequence, got) = got.unwrap();
                    assert_eq!((sequence, &got), (number - 1, &bundle.limited(got.stages).unwrap()));
                    incoming.push(sequence, &got, &[], now).unwrap();
                }
            }
            if n % 50 == 0 && n < 3_200 {
                out.rate.report(&incoming.report(), now);
                assert_eq!(out.announcement(now), None, "a silence that is described is no pause");
            }
            if n == 3_200 {
                incoming.announce(out.sent());
            }
            while let Some(played) = incoming.pop(now) {
                match played {
                    Played::Packet(b) => count[0] += u64::from(b.frames),
                    Played::Lost { frames, .. } => count[1] += frames,
                    Played::Quiet { frames } => count[2] += frames,
                    Played::Restart => panic!("no restart"),
                }
            }
        }
        (bytes as f64 * 8.0 / 60.0, count)
    }

    #[test]
    fn a_silent_minute_costs_less_than_200_bits_a_second_and_only_what_was_said_can_be_lost() {
        let (bits, count) = a_silent_minute(|_| false);
        assert!(bits > 150.0 && bits < 200.0, "{bits} bit/s");
        assert_eq!(count, [20 * 5 + 150 * 5 + 20 * 5, 0, 149 * 15 + 15]);
        // Every seventh datagram, of speech or of silence: descriptions that do not come cost nothing.
        let (_, [played, lost, silent]) = a_silent_minute(|n| n % 7 == 3);
        assert_eq!(lost, 5 * (0..190).filter(|n| n % 7 == 3 && !(20..170).contains(n)).count() as u64);
        assert_eq!(played + lost + silent, 3_200);
    }

    #[test]
    fn parts_keep_their_places() {
        let stages = StageCount::new(3).unwrap();
        let whole = bundle(10, 7, stages);
        let parts = split(&whole, 3);
        assert_eq!(parts.iter().map(|p| (p.first_frame, p.frames)).collect::<Vec<_>>(), [(10, 3), (13, 3), (16, 1)]);
        let packed = PackedBundle::pack(&whole);
        assert_eq!(trimmed(packed.clone(), 15).unwrap().unpack().unwrap().codes, whole.codes[15..]);
        assert_eq!(trimmed(packed.clone(), 3), Some(packed.clone()));
        assert_eq!(trimmed(packed, 17), None);
    }
}
