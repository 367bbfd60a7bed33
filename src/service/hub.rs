//! Named streams: one publisher, any number of listeners.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tracing::warn;

pub(crate) use super::listener::{Ended, Heard, Listener};
use super::listener::{FRESH, Outlet, Ties, USUAL_FRAMES, connect};
use super::tap::Tap;
use crate::codec::MAX_QUIET_FRAMES;
use crate::jitter::{Backlog, Keep};
use crate::profile::Profile;
use crate::session::{PackedBundle, StreamName};
use crate::units::{MAX_STAGES, MessageRate, StageCount};

/// All streams of the daemon. Entries exist while somebody publishes or listens.
#[derive(Default)]
pub(crate) struct Hub {
    streams: Mutex<HashMap<StreamName, Stream>>,
    /// Somebody came, went, or wants other stages.
    changed: Arc<Notify>,
    joiner: Option<Joiner>,
}

/// Somebody who joins streams the moment they are published, so that not even their first bundle is missed.
pub(crate) struct Joiner {
    /// Bundles of a stream that may wait; None leaves it alone.
    wants: Wants,
    tell: mpsc::Sender<(StreamName, Listener)>,
}

type Wants = Box<dyn Fn(&StreamName) -> Option<usize> + Send + Sync>;

impl Joiner {
    pub(crate) fn new(
        wants: impl Fn(&StreamName) -> Option<usize> + Send + Sync + 'static,
        tell: mpsc::Sender<(StreamName, Listener)>,
    ) -> Self {
        Self { wants: Box::new(wants), tell }
    }
}

#[derive(Default)]
struct Stream {
    published: bool,
    bundles: u64,
    bytes: u64,
    /// Frames that the publisher left out.
    lost: u64,
    /// Frames of silence, which were described and not sent, and whether it lasts.
    silent: u64,
    is_silent: bool,
    stage_bits: [u64; MAX_STAGES as usize],
    level: Option<(f32, Instant)>,
    ties: Ties,
    /// Seconds of its rate that a stream which is encoded here has saved; negative: owes.
    saved_s: Option<f64>,
    listeners: Vec<Outlet>,
    /// Which of several relayed publishers the bundles come from; None is the local one.
    source: Option<u64>,
    /// Added to the source's frame numbers, so that those that listeners see never go back.
    shift: u64,
    /// Frame after the last one that listeners got.
    next_frame: u64,
}

impl Stream {
    /// The number that listeners see for a frame of the source: it never goes back, and a jump that no pause explains is
    /// none, so that what one bundle claims does not put all later ones out of reach.
    fn place(&mut self, first_frame: u64, source: Option<u64>) -> u64 {
        if self.source != source {
            self.source = source;
            self.shift = self.next_frame.saturating_sub(first_frame);
        }
        let place = first_frame.wrapping_add(self.shift);
        let most = if self.bundles > 0 { self.next_frame.saturating_add(LONGEST_PAUSE) } else { LAST_BEGINNING };
        if place < self.next_frame {
            self.shift = self.next_frame.wrapping_sub(first_frame);
        }
        if (self.next_frame..=most).contains(&place) { place } else { self.next_frame }
    }

    /// Gives a bundle to every listener; one that does not keep up is dropped.
    fn give(&mut self, mut heard: Heard, source: Option<u64>) {
        let first_frame = self.place(heard.first_frame, source);
        if first_frame != heard.first_frame {
            heard.bundle = Arc::new(PackedBundle { first_frame, ..PackedBundle::clone(&heard) });
        }
        if self.bundles > 0 {
            let gap = first_frame.saturating_sub(self.next_frame);
            *if self.is_silent && gap <= MAX_QUIET_FRAMES { &mut self.silent } else { &mut self.lost } += gap;
        }
        for (bits, frames) in self.stage_bits.iter_mut().zip(heard.frames_by_stage()) {
            *bits += u64::from(frames) * u64::from(Profile::BITS_PER_CODE);
        }
        self.is_silent = heard.is_background();
        self.silent += if self.is_silent { u64::from(heard.frames) } else { 0 };
        self.next_frame = first_frame.saturating_add(u64::from(heard.frames));
        self.bundles += 1;
        self.bytes += heard.payload.len() as u64;
        self.ties.age.note(&heard.stamp, Instant::now());
        self.listeners.retain(|outlet| outlet.give(&heard));
    }
}

/// Frames that a stream may leave out: a day.
const LONGEST_PAUSE: u64 = 50 * 86_400;

/// Largest frame number that a stream may begin with: counting on from there takes longer than anybody listens.
const LAST_BEGINNING: u64 = 1 << 62;

/// A stream as operators see it.
pub(crate) struct StreamState {
    pub(crate) name: StreamName,
    pub(crate) published: bool,
    pub(crate) listeners: usize,
    /// Bundles since its publisher came.
    pub(crate) bundles: u64,
    /// Bytes of their payload.
    pub(crate) bytes: u64,
    /// Frames that the publisher left out.
    pub(crate) lost: u64,
    /// Frames of silence, which were described and not sent, and whether it lasts.
    pub(crate) silent: u64,
    pub(crate) is_silent: bool,
    /// Bits of code by stage.
    pub(crate) stage_bits: [u64; MAX_STAGES as usize],
    /// Level in dB below full scale, if the stream was encoded or decoded here a moment ago.
    pub(crate) level: Option<f32>,
    /// How long ago what listeners get was recorded, as far as this daemon can tell.
    pub(crate) age: Option<Duration>,
    /// Seconds of its rate that a stream which is encoded here has saved; negative: owes.
    pub(crate) saved_s: Option<f64>,
}

/// How fast a level falls.
const FALL_DB_PER_S: f32 = 24.0;

/// The right to publish a stream; dropping it ends the stream for its listeners.
pub(crate) struct Publisher {
    hub: Arc<Hub>,
    name: StreamName,
    /// Where other daemons get the stream from.
    tap: Option<Tap>,
}

impl Hub {
    /// A hub that tells somebody of streams.
    pub(crate) fn new(joiner: Option<Joiner>) -> Self {
        Self { joiner, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamName, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None if somebody publishes the stream already.
    pub(crate) fn publish(self: &Arc<Self>, name: &StreamName) -> Option<Publisher> {
        let mut streams = self.lock();
        let stream = streams.entry(name.clone()).or_default();
        if stream.published {
            return None;
        }
        stream.published = true;
        if let Some(joiner) = &self.joiner
            && let Some(queue) = (joiner.wants)(name)
        {
            let (outlet, listener) = connect(everything(queue), &stream.ties, &self.changed);
            listener.want_frames(Profile::MAX_FRAMES_PER_BUNDLE);
            match joiner.tell.try_send((name.clone(), listener)) {
                Ok(()) => stream.listeners.push(outlet),
                Err(_) => warn!(stream = %name, "too many streams at once: this one is not recorded"),
            }
        }
        drop(streams);
        self.changed.notify_one();
        Some(Publisher { hub: Arc::clone(self), name: name.clone(), tap: None })
    }

    /// Joins a stream, whether it is published yet or not; what waits for the listener is kept in `backlog`.
    pub(crate) fn listen(&self, name: &StreamName, backlog: Backlog<Heard>) -> Listener {
        let mut streams = self.lock();
        // Names that nobody publishes and whose listeners have gone are forgotten here.
        streams.retain(|_, s| {
            s.listeners.retain(|l| !l.is_closed());
            s.published || !s.listeners.is_empty()
        });
        let stream = streams.entry(name.clone()).or_default();
        let (outlet, listener) = connect(backlog, &stream.ties, &self.changed);
        stream.listeners.push(outlet);
        drop(streams);
        self.changed.notify_one();
        listener
    }

    /// Joins a stream again that fell behind; None if nobody publishes it any more.
    pub(super) fn rejoin(&self, name: &StreamName, queue: usize) -> Option<Listener> {
        let mut streams = self.lock();
        let stream = streams.get_mut(name).filter(|s| s.published)?;
        let (outlet, listener) = connect(everything(queue), &stream.ties, &self.changed);
        listener.want_frames(Profile::MAX_FRAMES_PER_BUNDLE);
        stream.listeners.push(outlet);
        Some(listener)
    }

    /// Waits until [`Hub::wanted`] may have changed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Streams that somebody listens to and nobody publishes here, with the most stages that anybody wants.
    pub(super) fn wanted(&self) -> HashMap<StreamName, StageCount> {
        let most = |s: &Stream| s.listeners.iter().filter(|l| !l.is_closed()).filter_map(Outlet::stages).max();
        let streams = self.lock();
        let unpublished = streams.iter().filter(|(_, s)| !s.published);
        unpublished.filter_map(|(name, s)| Some((name.clone(), most(s)?))).collect()
    }

    /// Gives a bundle that is published elsewhere to those who listen here; `source` tells its publishers apart.
    pub(super) fn relay(&self, name: &StreamName, source: u64, heard: Heard) {
        if let Some(stream) = self.lock().get_mut(name).filter(|s| !s.published) {
            stream.give(heard, Some(source));
        }
    }

    /// What every message of a stream takes that is published elsewhere; None: as little as it can.
    pub(super) fn relay_constant(&self, name: &StreamName, rate: Option<MessageRate>) {
        if let Some(stream) = self.lock().get(name).filter(|s| !s.published) {
            stream.ties.make_constant(rate);
        }
    }

    /// Ends a stream that was published elsewhere.
    pub(super) fn end_relay(&self, name: &StreamName) {
        let mut streams = self.lock();
        if streams.get(name).is_some_and(|s| !s.published) {
            streams.remove(name);
        }
    }

    /// All streams, by name.
    pub(crate) fn list(&self) -> Vec<StreamState> {
        let streams = self.lock();
        let state = |(name, s): (&StreamName, &Stream)| StreamState {
            name: name.clone(),
            published: s.published,
            listeners: s.listeners.iter().filter(|l| !l.is_closed()).count(),
            bundles: s.bundles,
            bytes: s.bytes,
            lost: s.lost,
            silent: s.silent,
            is_silent: s.is_silent,
            stage_bits: s.stage_bits,
            level: s.level.filter(|(_, at)| at.elapsed() < FRESH).map(|(level, _)| level),
            age: s.ties.age.read(Instant::now()),
            saved_s: s.saved_s,
        };
        let mut all: Vec<_> = streams.iter().map(state).collect();
        drop(streams);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Notes how loud a stream is that is encoded or decoded here.
    pub(crate) fn heard(&self, name: &StreamName, pcm: &[f32]) {
        if pcm.is_empty() {
            return;
        }
        let power = pcm.iter().map(|s| s * s).sum::<f32>() / pcm.len() as f32;
        let level = (10.0 * power.log10()).max(-96.0);
        if let Some(stream) = self.lock().get_mut(name) {
            let now = Instant::now();
            // Up at once and down slowly, as meters do: who looks twice a second must not miss a word in between.
            let before = stream.level.map_or(f32::MIN, |(l, at)| l - FALL_DB_PER_S * (now - at).as_secs_f32());
            stream.level = Some((level.max(before), now));
        }
    }

    /// Streams that are published now, and listeners of all streams.
    pub(crate) fn count(&self) -> (usize, usize) {
        let streams = self.lock();
        // Who has gone is forgotten only when something is given or somebody comes.
        let listeners = streams.values().flat_map(|s| &s.listeners).filter(|l| !l.is_closed()).count();
        (streams.values().filter(|s| s.published).count(), listeners)
    }
}

impl Publisher {
    /// Gives a bundle to every listener; one that does not keep up is dropped.
    pub(crate) fn send(&self, heard: Heard) {
        if let Some(tap) = &self.tap {
            tap.send(&heard.bundle);
        }
        if let Some(stream) = self.hub.lock().get_mut(&self.name) {
            stream.give(heard, None);
        }
    }

    /// From here on every message to a listener takes this, whatever is in it.
    pub(super) fn make_constant(&self, rate: MessageRate) {
        if let Some(stream) = self.hub.lock().get(&self.name) {
            stream.ties.make_constant(Some(rate));
        }
    }

    /// What all who pass the stream on share.
    pub(super) fn ties(&self) -> Ties {
        self.hub.lock().get(&self.name).map(|s| s.ties.clone()).unwrap_or_default()
    }

    /// Bits that a code takes on its way to those who listen; None if that is not known.
    pub(super) fn code_bits(&self) -> Option<f64> {
        self.hub.lock().get(&self.name).and_then(|s| s.ties.cost.read(Instant::now()))
    }

    /// Notes what a stream that is encoded here has saved of its rate, in seconds.
    pub(super) fn note_saved(&self, seconds: f64) {
        if let Some(stream) = self.hub.lock().get_mut(&self.name) {
            stream.saved_s = Some(seconds);
        }
    }

    /// Most frames of a bundle that all who listen want; None if nobody does.
    pub(super) fn wanted_frames(&self) -> Option<u8> {
        let streams = self.hub.lock();
        let here = streams.get(&self.name).into_iter().flat_map(|s| &s.listeners);
        let here = here.filter(|l| !l.is_closed()).map(Outlet::frames);
        // Who listens at other daemons is not known here.
        here.chain(self.tap.as_ref().map(|_| USUAL_FRAMES)).min()
    }

    /// Passes the stream on to other daemons from here on.
    pub(super) fn set_tap(&mut self, tap: Tap) {
        self.tap = Some(tap);
    }

    /// Whether an earlier publisher of the same name turned up on another daemon.
    pub(super) fn is_overruled(&self) -> bool {
        self.tap.as_ref().is_some_and(Tap::is_overruled)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.hub.lock().remove(&self.name);
        self.hub.changed.notify_one();
    }
}

/// The queue of a listener that wants everything, whenever that comes.
fn everything(queue: usize) -> Backlog<Heard> {
    Backlog::new(Keep::All, queue, Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::Form;

    fn bundle(first_frame: u64) -> Heard {
        let stages = StageCount::new(4).expect("in range");
        let bundle = PackedBundle { first_frame, frames: 1, stages, form: Form::Plain, payload: vec![0; 5] };
        Heard::new(bundle, Duration::from_millis(20), Instant::now(), true)
    }

    #[tokio::test]
    async fn a_slow_listener_gets_what_was_queued_and_the_reason_and_others_do_not_notice() {
        let (hub, name) = (Arc::new(Hub::default()), StreamName::new("a").unwrap());
        let (mut slow, mut good) = (hub.listen(&name, everything(2)), hub.listen(&name, everything(10)));
        let publisher = hub.publish(&name).unwrap();
        assert!(hub.publish(&name).is_none());
        (0..4).for_each(|n| publisher.send(bundle(n)));
        assert_eq!(hub.count(), (1, 1));
        drop(publisher);
        for n in 0..2 {
            assert_eq!(slow.next().await.unwrap().first_frame, n);
        }
        assert_eq!(slow.next().await.unwrap_err(), Ended::Slow);
        for n in 0..4 {
            assert_eq!(good.next().await.unwrap().first_frame, n);
        }
        assert_eq!(good.next().await.unwrap_err(), Ended::Stream);
        assert_eq!(hub.count(), (0, 0));
    }

    #[tokio::test]
    async fn a_listener_that_falls_behind_skips_ahead_and_is_told() {
        let (hub, name) = (Arc::new(Hub::default()), StreamName::new("a").unwrap());
        let mut listener = hub.listen(&name, Backlog::new(Keep::Newest, 10, Duration::from_millis(60)));
        let publisher = hub.publish(&name).unwrap();
        (0..12).for_each(|n| publisher.send(bundle(n)));
        drop(publisher);
        for n in 7..12 {
            assert_eq!(listener.next().await.unwrap().first_frame, n);
        }
        assert_eq!((listener.take_skipped(), listener.take_skipped()), (7, 0));
        assert_eq!(listener.next().await.unwrap_err(), Ended::Stream);
    }

    #[tokio::test]
    async fn frame_numbers_of_listeners_never_go_back_when_publishers_change() {
        let (hub, name) = (Arc::new(Hub::default()), StreamName::new("a").unwrap());
        let mut listener = hub.listen(&name, everything(10));
        listener.want(StageCount::new(2).unwrap());
        assert_eq!(hub.wanted()[&name].value(), 2);
        hub.relay(&name, 1, bundle(70));
        hub.relay(&name, 1, bundle(72));
        hub.relay(&name, 2, bundle(0));
        hub.relay(&name, 2, bundle(1));
        let publisher = hub.publish(&name).unwrap();
        assert!(hub.wanted().is_empty());
        hub.relay(&name, 2, bundle(2));
        publisher.send(bundle(0));
        for frame in [70, 72, 73, 74, 75] {
            assert_eq!(listener.next().await.unwrap().first_frame, frame);
        }
        drop(publisher);
        assert_eq!(listener.next().await.unwrap_err(), Ended::Stream);
    }

    #[tokio::test]
    async fn a_frame_number_near_the_end_of_numbers_puts_no_later_bundle_out_of_reach() {
        let (hub, name) = (Arc::new(Hub::default()), StreamName::new("a").unwrap());
        let mut listener = hub.listen(&name, everything(20));
        hub.relay(&name, 1, bundle(70));
        for (source, frame) in [(1, u64::MAX - 3), (1, 71), (1, 72), (2, u64::MAX - 2), (1, 73), (1, 75)] {
            hub.relay(&name, source, bundle(frame));
        }
        for frame in [70, 71, 72, 73, 74, 75, 77] {
            assert_eq!(listener.next().await.unwrap().first_frame, frame);
        }
        // And who begins there is led back.
        let name = StreamName::new("b").unwrap();
        let mut listener = hub.listen(&name, everything(20));
        let publisher = hub.publish(&name).unwrap();
        publisher.send(bundle(u64::MAX - 2));
        publisher.send(bundle(u64::MAX - 1));
        assert_eq!(listener.next().await.unwrap().first_frame, 0);
        assert_eq!(listener.next().await.unwrap().first_frame, 1);
        assert!(hub.list()[0].lost < 10);
    }
}
