//! Bundles -> datagrams -> bundles, the same at both ends.

use std::time::{Duration, Instant};

use crate::bitstream::{
    BitstreamError, Bundle, COPY_STAGES, CodedBundle, Redundancy, RedundancyWriter, read_redundancy,
};
use crate::codec::DESCRIPTION_FRAMES;
use crate::jitter::{Played, Playout, PlayoutOptions, RateControl, Report};
use crate::profile::Profile;
use crate::session::{Control, Message, PackedBundle, Wire};
use crate::units::StageCount;
use crate::wire::Datagram;

/// Most bytes of packed codes in a datagram; copies (at most 130 bytes) and the message around them fit beside it.
const MAX_PAYLOAD: usize = 900;

/// Most frames of copies in a datagram.
const MAX_COPIES: u8 = Profile::MAX_FRAMES_PER_BUNDLE;

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
pub(super) struct Part {
    sequence: u64,
    pub(super) bundle: PackedBundle,
    copies: Vec<u8>,
    /// A check sum is due, if it is coded.
    check: bool,
}

impl Part {
    /// The datagram in a packed session, or of a description of silence.
    pub(super) fn packed(self) -> Vec<u8> {
        let Self { sequence, bundle, copies, .. } = self;
        datagram(Message::Bundle { sequence, bundle }, copies)
    }

    /// The datagram in a coded session.
    pub(super) fn coded(self, mut bundle: CodedBundle, checked: bool) -> Vec<u8> {
        let Self { sequence, copies, check, .. } = self;
        if checked && !check {
            bundle.payload.truncate(bundle.payload.len().saturating_sub(2));
        }
        datagram(Message::Coded { sequence, bundle, checked: checked && check }, copies)
    }

    /// The datagram in a coded session of codes that are to have one size: not coded.
    ///
    /// Errors: [`BitstreamError`] for a payload that does not fit.
    pub(super) fn plain(self, graded: bool) -> Result<Vec<u8>, BitstreamError> {
        let PackedBundle { first_frame, frames, stages, .. } = self.bundle;
        let codes = self.bundle.unpack()?;
        let mut payload = Vec::new();
        if graded {
            codes.pack_graded_into(&mut payload)
        } else {
            codes.pack_into(&mut payload)
        }
        let bundle = CodedBundle { first_frame, frames, stages, graded, restart: true, packed: true, payload };
        Ok(self.coded(bundle, false))
    }
}

fn datagram(message: Message, copies: Vec<u8>) -> Vec<u8> {
    Datagram::bundle(message, copies).map_or_else(Vec::new, |d| d.encode())
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

    /// A bundle as datagrams carry it, with as many stages as the receiver gets now: in one part, or several if it is long.
    ///
    /// Errors: [`BitstreamError`] for a payload that does not fit.
    pub(super) fn pack(&mut self, bundle: &PackedBundle, now: Instant) -> Result<Vec<Part>, BitstreamError> {
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
            return Ok(vec![Part { sequence, bundle: limited, copies: Vec::new(), check: false }]);
        }
        let parts = if self.wire.graded { vec![limited] } else { limited.plain_runs()? };
        let mut made = Vec::new();
        for part in parts {
            self.pack_part(&part.unpack()?, &mut made);
        }
        Ok(made)
    }

    /// Appends the parts of a bundle with the stages that it is to have.
    fn pack_part(&mut self, whole: &Bundle, parts: &mut Vec<Part>) {
        let most = MAX_PAYLOAD * usize::from(whole.frames) / Bundle::payload_len(whole.frames, whole.stages).max(1);
        for part in split(whole, most.clamp(1, usize::from(Profile::MAX_FRAMES_PER_BUNDLE)) as u8) {
            self.copies.set_frames(self.rate.copies().saturating_mul(part.frames).min(MAX_COPIES));
            let mut copies = Vec::new();
            self.copies.write(&part, &mut copies);
            let sequence = self.sequence;
            self.sequence += 1;
            // A single zero says that there are none, as no bytes do.
            let copies = if copies.len() > 1 { copies } else { Vec::new() };
            let check = self.unchecked >= CHECK_FRAMES;
            self.unchecked = if check { 0 } else { self.unchecked } + u32::from(part.frames);
            parts.push(Part { sequence, bundle: PackedBundle::pack(&part), copies, check });
        }
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
}

impl Incoming {
    pub(super) fn new(options: PlayoutOptions) -> Self {
        Self { playout: Playout::new(options) }
    }

    /// Takes a bundle and its copies.
    ///
    /// Errors: [`BitstreamError`] for what no sender writes.
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
    use crate::wire::MAX_DATAGRAM;

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
            for part in out.pack(&PackedBundle::pack(&whole), now).unwrap() {
                let bytes = part.packed();
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
        out.pack(&PackedBundle::pack(&bundle(0, 5, StageCount::MAX)), now).unwrap();
        let said: Vec<_> = (0..300).filter(|n| out.announcement(now + ms(n * 10)).is_some()).map(|n| n * 10).collect();
        assert_eq!(said, [250, 1_250, 2_250]);
        // Long bundles have long gaps between them.
        let at = now + ms(5_000);
        out.pack(&PackedBundle::pack(&bundle(5, 50, StageCount::MAX)), at).unwrap();
        assert_eq!(out.announcement(at + ms(1_400)), None);
        assert_eq!(out.announcement(at + ms(1_500)), Some(out.count()));
    }

    #[test]
    fn a_rate_falls_from_what_the_stream_has_not_from_what_is_asked_for() {
        let now = Instant::now();
        let mut out = Outgoing::new(StageCount::MAX, Wire::ALL, now);
        let stages = StageCount::new(6).unwrap();
        out.pack(&PackedBundle::pack(&bundle(0, 5, stages)), now).unwrap();
        let lossy = Report { expected: 10, received: 5, ..Report::default() };
        out.rate.report(&lossy, now + Duration::from_secs(1));
        assert_eq!(out.rate.stages().value(), 4);
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
