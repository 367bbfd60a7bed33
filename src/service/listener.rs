//! A listener of a stream, and the stream's end of its queue.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::codings::Codings;
use super::until::until;
use crate::bitstream::Form;
use crate::jitter::{Backlog, Quiet, Stamp};
use crate::session::PackedBundle;
use crate::units::{MessageRate, StageCount};

/// Frames that travel together for whoever does not say more.
pub(super) const USUAL_FRAMES: u8 = 5;

/// How long an age or a level says something about now.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// A bundle on its way to listeners.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) bundle: Arc<PackedBundle>,
    pub(crate) stamp: Stamp,
    /// It stands for frames of silence that nobody sent: background is to be made up.
    pub(crate) is_filler: bool,
}

impl Heard {
    /// A bundle of so much media whose last sample was recorded then.
    pub(crate) fn new(bundle: PackedBundle, media: Duration, recorded: Instant, live: bool) -> Self {
        let stamp = Stamp { frames: u64::from(bundle.frames), media, recorded, live };
        Self { bundle: Arc::new(bundle), stamp, is_filler: false }
    }

    /// So many frames of silence from `first_frame` on, at `now`.
    fn filler(first_frame: u64, frames: u8, media: Duration, now: Instant) -> Self {
        let (stages, form, payload) = (StageCount::ONE, Form::Background, vec![0; 2]);
        let bundle = PackedBundle { first_frame, frames, stages, form, payload };
        Self { is_filler: true, ..Self::new(bundle, media, now, true) }
    }
}

impl Deref for Heard {
    type Target = PackedBundle;

    fn deref(&self) -> &PackedBundle {
        &self.bundle
    }
}

/// How long ago what a stream's listeners get was recorded: the most of the last second.
#[derive(Debug, Default)]
pub(super) struct Age(Mutex<Option<(Duration, Instant)>>);

impl Age {
    pub(super) fn note(&self, stamp: &Stamp, now: Instant) {
        let age = now.saturating_duration_since(stamp.recorded);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = held.filter(|&(most, at)| most > age && now.saturating_duration_since(at) < FRESH);
        *held = fresh.or(Some((age, now)));
    }

    /// None if nothing was passed on lately.
    pub(super) fn read(&self, now: Instant) -> Option<Duration> {
        let held = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.filter(|&(_, at)| now.saturating_duration_since(at) < 2 * FRESH).map(|(age, _)| age)
    }
}

/// What a code of a stream takes on its way to those who listen, in bits: the most of the last second.
#[derive(Debug, Default)]
pub(super) struct Cost(Mutex<Option<(f64, Instant)>>);

impl Cost {
    fn note(&self, bits: f64, now: Instant) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = held.filter(|&(most, at)| most > bits && now.saturating_duration_since(at) < FRESH);
        *held = fresh.or(Some((bits, now)));
    }

    /// None if nothing was sent lately.
    pub(super) fn read(&self, now: Instant) -> Option<f64> {
        let held = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.filter(|&(_, at)| now.saturating_duration_since(at) < 2 * FRESH).map(|(bits, _)| bits)
    }
}

/// Why a listener gets nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The publisher ended the stream.
    Stream,
    /// The listener did not keep up.
    Slow,
}

struct Queue {
    backlog: Mutex<(Backlog<Heard>, Option<Ended>)>,
    /// Something was added, or the end has come.
    ready: Notify,
    /// The listener has gone.
    gone: AtomicBool,
    stages: AtomicU8,
    /// Most frames of a bundle that it wants.
    frames: AtomicU8,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (Backlog<Heard>, Option<Ended>)> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, reason: Ended) {
        self.lock().1.get_or_insert(reason);
        self.ready.notify_one();
    }
}

/// The stream's end; dropping it ends the stream for the listener.
pub(super) struct Outlet(Arc<Queue>);

impl Outlet {
    /// Gives a bundle to the listener; false if there is no such listener any more.
    pub(super) fn give(&self, heard: &Heard) -> bool {
        if self.is_closed() {
            return false;
        }
        let taken = self.0.lock().0.push(heard.clone(), heard.stamp);
        if taken {
            self.0.ready.notify_one();
        } else {
            self.0.end(Ended::Slow);
        }
        taken
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.gone.load(Ordering::Acquire)
    }

    /// Most stages that the listener wants.
    pub(super) fn stages(&self) -> Option<StageCount> {
        StageCount::new(self.0.stages.load(Ordering::Relaxed)).ok()
    }

    /// Most frames of a bundle that the listener wants.
    pub(super) fn frames(&self) -> u8 {
        self.0.frames.load(Ordering::Relaxed)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.end(Ended::Stream);
    }
}

/// A listener's end: bundles from the next one on.
pub(crate) struct Listener {
    queue: Arc<Queue>,
    ties: Ties,
    /// What a code takes on its way to this listener.
    code_bits: Option<f64>,
    changed: Arc<Notify>,
    /// Makes silence last as long as it did, for whoever listens as it happens; and what it has placed.
    quiet: Option<(Quiet, Duration)>,
    placed: VecDeque<Heard>,
}

/// What a stream and its listeners share besides the bundles.
#[derive(Debug, Clone, Default)]
pub(super) struct Ties {
    pub(super) age: Arc<Age>,
    pub(super) cost: Arc<Cost>,
    pub(super) codings: Arc<Codings>,
    /// Bits a second that every message takes, padded; 0: messages are as long as they get.
    pub(super) constant: Arc<AtomicU32>,
}

impl Ties {
    /// What every message takes; None: as little as it can.
    pub(super) fn constant(&self) -> Option<MessageRate> {
        MessageRate::new(self.constant.load(Ordering::Relaxed)).ok()
    }

    /// From here on every message takes this.
    pub(super) fn make_constant(&self, rate: Option<MessageRate>) {
        self.constant.store(rate.map_or(0, MessageRate::bps), Ordering::Relaxed);
    }
}

/// Both ends of a queue; `changed` is told when the listener goes or wants other stages.
pub(super) fn connect(backlog: Backlog<Heard>, ties: &Ties, changed: &Arc<Notify>) -> (Outlet, Listener) {
    let queue = Arc::new(Queue {
        backlog: Mutex::new((backlog, None)),
        ready: Notify::new(),
        gone: AtomicBool::new(false),
        stages: AtomicU8::new(StageCount::MAX.value()),
        frames: AtomicU8::new(USUAL_FRAMES),
    });
    let listener = Listener {
        queue: Arc::clone(&queue),
        ties: ties.clone(),
        code_bits: None,
        changed: Arc::clone(changed),
        quiet: None,
        placed: VecDeque::new(),
    };
    (Outlet(queue), listener)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.queue.gone.store(true, Ordering::Release);
        self.changed.notify_one();
    }
}

impl Listener {
    /// Says how many stages are wanted, so that no more are fetched from another daemon.
    pub(crate) fn want(&self, stages: StageCount) {
        self.queue.stages.store(stages.value(), Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Says how many frames may travel together.
    pub(crate) fn want_frames(&self, frames: u8) {
        self.queue.frames.store(frames, Ordering::Relaxed);
    }

    /// The next bundle; everything queued is given before the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Heard, Ended> {
        loop {
            if let Some(heard) = self.queued() {
                return Ok(heard);
            }
            if let Some(ended) = self.queue.lock().1 {
                return Err(ended);
            }
            let due = self.quiet.as_ref().and_then(|(quiet, _)| quiet.due());
            tokio::select! {
                () = self.queue.ready.notified() => {}
                () = until(due) => {
                    let now = Instant::now();
                    if let Some((quiet, frame)) = &mut self.quiet
                        && let Some((first, frames)) = quiet.fill(now)
                    {
                        return Ok(Heard::filler(first, frames, *frame * u32::from(frames), now));
                    }
                }
            }
        }
    }

    /// A bundle that is queued already.
    pub(crate) fn queued(&mut self) -> Option<Heard> {
        if let Some(placed) = self.placed.pop_front() {
            return Some(placed);
        }
        let now = Instant::now();
        let (mut heard, _) = self.queue.lock().0.pop(now)?;
        if let Some((quiet, frame)) = &mut self.quiet {
            let placed = quiet.place(heard.first_frame, heard.frames, heard.is_background(), now);
            if placed.first_frame != heard.first_frame {
                heard.bundle =
                    Arc::new(PackedBundle { first_frame: placed.first_frame, ..PackedBundle::clone(&heard) });
            }
            if let Some(frames) = u8::try_from(placed.fill).ok().filter(|&f| f > 0) {
                self.placed.push_back(heard);
                return Some(Heard::filler(placed.first_fill, frames, *frame * u32::from(frames), now));
            }
        }
        Some(heard)
    }

    /// Gives silence out as well, frame by frame as time passes; `frame` is the length of a frame.
    pub(crate) fn fill_silence(&mut self, frame: Duration) {
        self.quiet = Some((Quiet::new(frame), frame));
    }

    /// Frames that were skipped since this was last asked, because this listener does not keep up.
    pub(crate) fn take_skipped(&mut self) -> u64 {
        self.queue.lock().0.take_skipped()
    }

    /// Notes that so many codes took so many bytes on their way.
    pub(crate) fn took(&mut self, codes: u32, bytes: usize) {
        let bits = bytes as f64 * 8.0 / f64::from(codes.max(1));
        let mean = self.code_bits.map_or(bits, |mean| mean + 0.1 * (bits - mean));
        self.code_bits = Some(mean);
        self.ties.cost.note(mean, Instant::now());
    }

    /// Notes that a bundle has left for the listener.
    pub(crate) fn delivered(&self, heard: &Heard) {
        self.ties.age.note(&heard.stamp, Instant::now());
    }

    /// What messages are to take, whatever is in them; None: as little as they can.
    pub(crate) fn constant(&self) -> Option<MessageRate> {
        self.ties.constant()
    }

    /// The stream's coded bundles.
    pub(super) fn codings(&self) -> &Arc<Codings> {
        &self.ties.codings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_costs_what_it_costs_the_dearest_listener() {
        let (ties, changed) = (Ties::default(), Arc::default());
        let cost = Arc::clone(&ties.cost);
        let backlog = || Backlog::new(crate::jitter::Keep::All, 4, Duration::ZERO);
        let mut listeners = [(); 2].map(|()| connect(backlog(), &ties, &changed).1);
        assert_eq!(cost.read(Instant::now()), None);
        for _ in 0..50 {
            listeners[0].took(60, 55);
            listeners[1].took(60, 75);
        }
        let bits = cost.read(Instant::now()).unwrap();
        assert!((bits - 10.0).abs() < 0.01, "{bits}");
        assert_eq!(cost.read(Instant::now() + 3 * FRESH), None);
    }
}
