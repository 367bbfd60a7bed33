//! The playout buffer: packets in any order -> frames in order, each once, and the word "lost" where none came in time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Report;
use super::delay::{Delay, PlayoutOptions};
use super::sequences::{Seen, Sequences};
use crate::profile::Profile;

/// Packets and copies that may wait.
const MAX_WAITING: usize = 512;

/// How far ahead of the next frame a packet may be; one further ahead starts the buffer anew.
const MAX_AHEAD: u64 = 500;

/// Frames that are called lost while nothing comes at all; then the buffer waits for the network to come back.
const MAX_OUTAGE: u64 = 250;

/// Frames that the buffer waits for copies at most.
const MAX_REACH: u64 = Profile::MAX_FRAMES_PER_BUNDLE as u64;

/// Frames after a description of silence that are silent unless something else comes; later ones are lost.
const MAX_QUIET: u64 = 50;

/// Packets without a copy after which copies are no longer waited for.
const COPIES_OVER: u32 = 50;

/// Packets in a row that came too late: the way has become longer than the longest delay, or the stream began anew.
const LATE_RUN: u32 = 10;

/// What comes next in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Played<T> {
    /// A packet, or a copy of a frame whose packet did not come.
    Packet(T),
    /// Frames that did not come in time.
    Lost {
        /// Number of the first.
        first_frame: u64,
        /// How many, 1 to 250.
        frames: u64,
    },
    /// Frames that nobody sent, because they are silent.
    Quiet {
        /// How many, 1 to 50.
        frames: u64,
    },
    /// What follows does not continue what was before: a long outage, or another stream of numbers.
    Restart,
}

#[derive(Debug)]
struct Entry<T> {
    frames: u8,
    /// None is a copy.
    packet: Option<Packet>,
    value: T,
}

/// What a packet says of itself.
#[derive(Debug, Clone, Copy)]
struct Packet {
    sequence: u64,
    /// Describes silence, which goes on after it.
    background: bool,
}

/// A playout buffer of packets of type `T`. Memory is bounded: 512 packets and a window of statistics.
#[derive(Debug)]
pub struct Playout<T> {
    options: PlayoutOptions,
    delay: Delay,
    sequences: Sequences,
    /// What transit times are relative to.
    origin: Option<(Instant, u64)>,
    entries: BTreeMap<u64, Entry<T>>,
    /// Frame to be played next; None before the start and after a long outage.
    next: Option<u64>,
    /// Frames of the longest packet.
    span: u64,
    /// Something was played.
    begun: bool,
    late_run: u32,
    outage: u64,
    /// In silence, the frames of it since its last description; and the sequence number that follows what was played.
    quiet: Option<u64>,
    follows: u64,
    /// How many frames before their packet copies begin, and packets since the last copy.
    reach: u64,
    copied: u32,
    /// Packets that the sender said it had sent when it paused.
    announced: Option<u64>,
    counts: Report,
}

impl<T> Playout<T> {
    /// An empty buffer.
    pub fn new(options: PlayoutOptions) -> Self {
        Self {
            delay: Delay::new(&options),
            options,
            sequences: Sequences::new(),
            origin: None,
            entries: BTreeMap::new(),
            next: None,
            span: 0,
            begun: false,
            late_run: 0,
            outage: 0,
            quiet: None,
            follows: 0,
            reach: 0,
            copied: 0,
            announced: None,
            counts: Report::default(),
        }
    }

    /// Takes a packet that holds `frames` frames from `first_frame` on. Of one that is late in part the rest is played: it
    /// then begins before the frame that is expected. False: a duplicate, too late, or one too many.
    pub fn push(&mut self, sequence: u64, first_frame: u64, frames: u8, value: T, now: Instant) -> bool {
        self.take(Packet { sequence, background: false }, first_frame, frames, value, now)
    }

    /// As [`Playout::push`], of a packet that describes silence: frames that do not follow it, a second of them at most, are silent
    /// and not lost.
    pub fn push_background(&mut self, sequence: u64, first_frame: u64, frames: u8, value: T, now: Instant) -> bool {
        self.take(Packet { sequence, background: true }, first_frame, frames, value, now)
    }

    fn take(&mut self, packet: Packet, first_frame: u64, frames: u8, value: T, now: Instant) -> bool {
        let Some(end) = first_frame.checked_add(u64::from(frames)).filter(|_| frames > 0) else { return false };
        let paused = self.paused();
        match self.sequences.note(packet.sequence) {
            Seen::Duplicate => {
                self.counts.duplicated += 1;
                return false;
            }
            Seen::Reordered => self.counts.reordered += 1,
            Seen::New => {}
        }
        self.counts.received += 1;
        self.copied = self.copied.saturating_add(1);
        if self.copied > COPIES_OVER {
            self.reach = self.reach.saturating_sub(1);
        }
        let reached = self.next.or_else(|| self.entries.keys().next().copied());
        if reached.is_some_and(|n| first_frame.abs_diff(n) > MAX_AHEAD) {
            self.resynchronise();
        }
        let mut transit = self.transit(end, now);
        if paused && self.entries.is_empty() && self.delay.lateness(transit) > self.delay() {
            // The sender had paused, which is not the network's doing.
            self.delay.rebase();
            if self.next.is_some_and(|n| first_frame < n) {
                self.resynchronise();
                transit = self.transit(end, now);
            }
        }
        self.delay.arrived(transit, now);
        if self.next.is_some_and(|n| end <= n) {
            self.counts.late += 1;
            self.late_run += 1;
            if self.late_run < LATE_RUN {
                return false;
            }
            self.resynchronise();
            let transit = self.transit(end, now);
            self.delay.arrived(transit, now);
        }
        // Not before: whatever starts anew above forgets the length.
        self.span = self.span.max(u64::from(frames));
        self.late_run = 0;
        self.outage = 0;
        if self.entries.len() >= MAX_WAITING {
            return false;
        }
        // Copies of what is here in full.
        while let Some((&f, _)) = self.entries.range(first_frame..end).find(|(_, e)| e.packet.is_none()) {
            self.entries.remove(&f);
        }
        self.entries.entry(first_frame).or_insert(Entry { frames, packet: Some(packet), value });
        true
    }

    /// Takes a copy of one frame that came with the packet that starts at `carrier`. It is used only if the frame's own packet
    /// does not come in time; while copies come, the buffer waits long enough for them to be of use.
    pub fn push_copy(&mut self, frame: u64, carrier: u64, value: T) {
        self.copied = 0;
        self.reach = self.reach.max(carrier.saturating_sub(frame).min(MAX_REACH));
        let Some(reached) = self.next.or_else(|| self.entries.keys().next().copied()) else { return };
        let here = self.entries.range(..=frame).next_back().is_some_and(|(&f, e)| frame - f < u64::from(e.frames));
        // Before the start there is nothing to fill, and the last number of all has no end.
        if frame < u64::MAX
            && frame >= reached
            && frame - reached <= MAX_AHEAD
            && !here
            && self.entries.len() < MAX_WAITING
        {
            self.entries.insert(frame, Entry { frames: 1, packet: None, value });
        }
    }

    /// The sender has sent so many packets and has nothing to send now: silence after them is no loss.
    pub fn announce(&mut self, sent: u64) {
        self.announced = Some(sent);
    }

    /// Whether everything that the sender announced has come.
    fn paused(&self) -> bool {
        self.announced == Some(self.sequences.next())
    }

    /// Whether so many packets have all come.
    pub fn has_all(&self, sent: u64) -> bool {
        self.sequences.next() == sent && self.sequences.expected() == self.counts.received
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The delay beyond the fastest packet.
    pub fn delay(&self) -> Duration {
        self.delay.current() + self.options.frame * self.reach as u32
    }

    /// What the receiver tells its sender. Packets are counted from the first that came.
    pub fn report(&mut self) -> Report {
        Report {
            expected: self.sequences.expected(),
            jitter: self.delay.jitter(),
            queued: self.delay.queued(),
            ..self.counts
        }
    }

    /// The next thing to play at `now`; None: wait until [`Playout::wake`], or the next packet.
    pub fn pop(&mut self, now: Instant) -> Option<Played<T>> {
        let Some(next) = self.next else {
            let front = *self.entries.keys().next()?;
            if now < self.due(front)? {
                return None;
            }
            self.next = Some(front);
            let again = std::mem::replace(&mut self.begun, true);
            return if again { Some(Played::Restart) } else { self.pop(now) };
        };
        let due = self.due(next)?;
        let ready = |copy: bool| (self.options.eager && !copy) || now >= due;
        match self.entries.first_key_value().map(|(&f, e)| (f, e.packet)) {
            Some((first, packet)) if first <= next => {
                if !ready(packet.is_none()) {
                    return None;
                }
                let (first, entry) = self.entries.pop_first()?;
                self.counts.rebuilt_frames += u64::from(packet.is_none());
                self.quiet = packet.filter(|p| p.background).map(|_| 0);
                self.follows = packet.map_or(self.follows, |p| p.sequence.saturating_add(1));
                self.next = Some(next.max(first.saturating_add(u64::from(entry.frames))));
                // Copies that a packet which overlaps them has made needless.
                while self.entries.first_key_value().is_some_and(|(&f, _)| Some(f) < self.next) {
                    self.entries.pop_first();
                }
                Some(Played::Packet(entry.value))
            }
            None if self.paused() => None,
            found => {
                let (silent, known) = self.silent(next, found);
                if silent > 0 {
                    let frames = if known { silent } else { self.passed(due, now)?.min(silent) };
                    self.quiet = self.quiet.map(|made| made + frames);
                    self.next = Some(next.saturating_add(frames));
                    return Some(Played::Quiet { frames });
                }
                let frames = if known { u64::MAX } else { self.passed(due, now)? };
                self.quiet = None;
                let frames = frames.min(found.map_or(u64::MAX, |(first, _)| first - next)).min(MAX_OUTAGE);
                if found.is_none() {
                    if self.outage >= MAX_OUTAGE {
                        self.resynchronise();
                        return None;
                    }
                    self.outage += frames;
                }
                self.next = Some(next.saturating_add(frames));
                self.counts.concealed_frames += frames;
                Some(Played::Lost { first_frame: next, frames })
            }
        }
    }

    /// Frames from the one that was due then on whose time has come.
    fn passed(&self, due: Instant, now: Instant) -> Option<u64> {
        let passed = now.checked_duration_since(due)?;
        Some((passed.as_micros() / self.options.frame.as_micros().max(1)) as u64 + 1)
    }

    /// Frames from `next` on that are silence as far as what was found behind them tells; and whether nothing is on its way that could
    /// come before it, and nobody waits for the time to pass.
    fn silent(&self, next: u64, found: Option<(u64, Option<Packet>)>) -> (u64, bool) {
        let left = self.quiet.map_or(0, |made| MAX_QUIET.saturating_sub(made));
        let Some((first, packet)) = found else { return (left, false) };
        let gap = first - next;
        let missed = packet.map_or(0, |p| p.sequence.saturating_sub(self.follows));
        let known = self.options.eager && packet.is_some() && missed == 0;
        // Of what was lost in front of sound the last frames were sound; descriptions that were lost are not missed.
        let lost = if packet.is_some_and(|p| p.background) { 0 } else { missed.saturating_mul(self.span) };
        let silent = gap.saturating_sub(lost);
        (silent.min(left), known)
    }

    /// When [`Playout::pop`] will have something if no packet comes before; None: only a packet helps.
    pub fn wake(&self) -> Option<Instant> {
        let front = self.entries.keys().next().copied();
        match (self.next, front) {
            (None, front) => front.and_then(|f| self.due(f)),
            (Some(_), None) if self.paused() => None,
            (Some(next), _) => self.due(next),
        }
    }

    /// When a frame is to be played: its packet, were it the longest and as fast as the fastest, had come `delay` before.
    /// None before the first packet.
    fn due(&self, frame: u64) -> Option<Instant> {
        let (start, _) = self.origin?;
        let media = self.media(frame.saturating_add(self.span));
        let due = media.saturating_add(self.delay.base()).saturating_add(self.delay().as_micros() as i64);
        start.checked_add(Duration::from_micros(due.max(0) as u64))
    }

    /// Microseconds from the origin's frame to this one.
    fn media(&self, frame: u64) -> i64 {
        let origin = self.origin.map_or(frame, |(_, f)| f);
        let frames = i128::from(frame) - i128::from(origin);
        (frames * self.options.frame.as_micros() as i128).clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// Microseconds that a packet was on its way, on a clock of its own.
    fn transit(&mut self, end: u64, now: Instant) -> i64 {
        let (start, _) = *self.origin.get_or_insert((now, end));
        let arrived = now.saturating_duration_since(start).as_micros() as i64;
        arrived.saturating_sub(self.media(end))
    }

    /// Starts anew with the packet that comes next.
    fn resynchronise(&mut self) {
        self.entries.clear();
        self.delay.rebase();
        self.next = None;
        self.origin = None;
        self.span = 0;
        self.outage = 0;
        self.late_run = 0;
        self.quiet = None;
    }
}
