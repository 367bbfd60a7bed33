//! Streams of other daemons: what is published here goes out through NATS, what is listened to here comes in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::hub::{Heard, Hub, Publisher};
use super::tap::{Gauges, Tap};
use crate::bus::layers::{Assembler, Epoch, Kind, LayerMessage, layers_of};
use crate::bus::{Bus, BusCounters, BusError, Claim, Kept, LiveStream};
use crate::codec::Profile;
use crate::session::{PackedBundle, StreamName};
use crate::units::ModelId;

/// Bundles of a stream on their way to NATS; more are dropped, and counted.
const TAP_QUEUE: usize = 64;

/// How long a bundle waits for a layer that is not there when nothing else comes.
const HOLD: Duration = Duration::from_millis(60);

/// Shortest silence after which a relay follows another publisher.
const SHORTEST_SILENCE: Duration = Duration::from_millis(250);

/// A bundle has a frame at least.
const SHORTEST_BUNDLE: Duration = Duration::from_millis(20);

/// How often JetStream is asked again to keep streams, although nothing happened that would make it forget.
const KEEP_AGAIN: Duration = Duration::from_secs(60);

/// How often the wishes of listeners are looked at when nobody reports a change.
const LOOK: Duration = Duration::from_secs(1);

/// Shortest time between two looks: many changes at once are one.
const PAUSE: Duration = Duration::from_millis(20);

/// What connects this daemon with the others.
pub(crate) struct Cluster {
    bus: Bus,
    /// Tasks that carry local streams out; a shutdown waits for them.
    carriers: TaskTracker,
    gauges: Arc<Gauges>,
}

/// Takes a local stream to NATS until its publisher is done or has to give way.
async fn carry(
    mut claim: Claim,
    bundles: &mut mpsc::Receiver<Arc<PackedBundle>>,
    overruled: &AtomicBool,
    gauges: &Gauges,
) {
    loop {
        let bundle = tokio::select! {
            bundle = bundles.recv() => bundle,
            () = claim.challenged() => {
                warn!(?claim, "an earlier publisher of this stream is on another daemon; this one gives way");
                overruled.store(true, Ordering::Release);
                return claim.finish(Kind::Yield).await;
            }
        };
        match bundle {
            Some(bundle) => {
                gauges.queued.fetch_sub(1, Ordering::Relaxed);
                claim.publish(&bundle).await;
            }
            None => return claim.finish(Kind::End).await,
        }
    }
}

/// A stream that is fetched from elsewhere.
struct Relay {
    layers: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cluster {
    pub(super) fn new(bus: Bus) -> Self {
        Self { bus, carriers: TaskTracker::new(), gauges: Arc::default() }
    }

    /// The right to publish a stream here and on all daemons; None if somebody has it already.
    pub(super) async fn publish(&self, hub: &Arc<Hub>, name: &StreamName, model: ModelId) -> Option<Publisher> {
        let claim = match self.bus.claim(name, model).await {
            Ok(Some(claim)) => claim,
            Ok(None) => {
                info!(stream = %name, "another daemon publishes this stream");
                return None;
            }
            // Those who listen here are served whatever happens to NATS.
            Err(e) => {
                warn!(stream = %name, error = %e, "the stream stays on this daemon");
                return hub.publish(name);
            }
        };
        let mut publisher = hub.publish(name)?;
        let (queue, mut bundles) = mpsc::channel(TAP_QUEUE);
        let overruled = Arc::new(AtomicBool::new(false));
        let (bus, gauges) = (self.bus.clone(), Arc::clone(&self.gauges));
        publisher.set_tap(Tap { queue, overruled: Arc::clone(&overruled), bus, gauges: Arc::clone(&gauges) });
        self.carriers.spawn(async move {
            carry(claim, &mut bundles, &overruled, &gauges).await;
            // What came too late is not queued any more.
            bundles.close();
            while bundles.recv().await.is_some() {
                gauges.queued.fetch_sub(1, Ordering::Relaxed);
            }
        });
        Some(publisher)
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    pub(super) fn queued(&self) -> usize {
        self.gauges.queued.load(Ordering::Relaxed)
    }

    pub(super) fn relayed(&self) -> usize {
        self.gauges.relayed.load(Ordering::Relaxed)
    }

    pub(super) fn layers(&self) -> usize {
        self.gauges.layers.load(Ordering::Relaxed)
    }

    /// Waits until what was published here has left; publishers must have ended.
    pub(super) async fn drained(&self) {
        self.carriers.close();
        self.carriers.wait().await;
    }

    /// Has JetStream keep what is published: asks until it agrees, and again whenever NATS was away, since it may have
    /// come back without its store.
    pub(super) async fn keep(&self, kept: Kept) {
        let mut connections = self.bus.connections();
        let (mut wait, mut told) = (Duration::from_secs(1), None);
        loop {
            let connection = *connections.borrow_and_update();
            let pause = match self.bus.keep(kept).await {
                Ok(()) => {
                    if told.replace(connection) != Some(connection) {
                        info!(age = ?kept.age, bytes = kept.bytes, "streams are kept for replay");
                    }
                    wait = Duration::from_secs(1);
                    KEEP_AGAIN
                }
                Err(e) => {
                    warn!(error = %e, "streams are not kept for replay yet");
                    let pause = wait;
                    wait = (wait * 2).min(KEEP_AGAIN);
                    pause
                }
            };
            tokio::select! {
                changed = connections.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Fetches what listeners here want and nobody here publishes, and nothing else.
    pub(super) async fn relay(&self, hub: &Arc<Hub>, profile: &Arc<Profile>) {
        let mut relays: HashMap<StreamName, Relay> = HashMap::new();
        loop {
            let wanted = hub.wanted();
            relays.retain(|name, relay| wanted.contains_key(name) && !relay.task.is_finished());
            for (name, stages) in wanted {
                let layers = layers_of(stages.min(profile.stages));
                if let Some(relay) = relays.get(&name) {
                    relay.layers.send_if_modified(|now| std::mem::replace(now, layers) != layers);
                    continue;
                }
                let (sender, receiver) = watch::channel(layers);
                let follower = Follower {
                    hub: Arc::clone(hub),
                    bus: self.bus.clone(),
                    profile: Arc::clone(profile),
                    name: name.clone(),
                    following: None,
                };
                let task = tokio::spawn(follower.run(receiver));
                relays.insert(name, Relay { layers: sender, task });
            }
            let layers = relays.values().map(|r| *r.layers.borrow()).sum();
            self.gauges.layers.store(layers, Ordering::Relaxed);
            self.gauges.relayed.store(relays.len(), Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                () = hub.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// Whom a relay follows.
struct Following {
    epoch: Epoch,
    assembler: Assembler,
    heard: Instant,
    /// After so long the publisher is taken for gone.
    silence: Duration,
}

/// Fetches one stream for those who listen here.
struct Follower {
    hub: Arc<Hub>,
    bus: Bus,
    profile: Arc<Profile>,
    name: StreamName,
    following: Option<Following>,
}

impl Follower {
    async fn run(mut self, mut layers: watch::Receiver<usize>) {
        let mut stream = self.bus.follow(&self.name);
        info!(stream = %self.name, layers = *layers.borrow(), "following a stream of another daemon");
        if let Err(e) = self.follow(&mut stream, &mut layers).await {
            warn!(stream = %self.name, error = %e, "the stream cannot be followed");
            // The owner starts over; not at once, though.
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Until the stream ends.
    async fn follow(&mut self, stream: &mut LiveStream, layers: &mut watch::Receiver<usize>) -> Result<(), BusError> {
        let mut wanted = *layers.borrow_and_update();
        stream.set_layers(wanted).await?;
        loop {
            let waiting = self.following.as_ref().filter(|f| f.assembler.is_waiting()).map(|f| f.heard + HOLD);
            let heard = tokio::select! {
                heard = stream.next() => heard,
                changed = layers.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    wanted = *layers.borrow_and_update();
                    stream.set_layers(wanted).await?;
                    if let Some(f) = &mut self.following {
                        f.assembler.set_wanted(wanted);
                    }
                    continue;
                }
                () = async { match waiting {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }} => {
                    self.pass_on(true);
                    continue;
                }
            };
            let Some(heard) = heard else { return Err(BusError::Connect("closed".to_owned())) };
            match heard {
                Ok(message) => {
                    if self.take(&message, wanted) {
                        return Ok(());
                    }
                }
                Err(e) => self.malformed(&e),
            }
        }
    }

    fn malformed(&self, why: &dyn std::fmt::Display) {
        BusCounters::add(&self.bus.counters().malformed, 1);
        debug!(stream = %self.name, %why, "a message was thrown away");
    }

    /// Takes a message; true if the stream has ended.
    fn take(&mut self, message: &LayerMessage, wanted: usize) -> bool {
        if message.model != self.profile.model_id {
            self.malformed(&format!("model {}, here it is {}", message.model, self.profile.model_id));
            return false;
        }
        let ours = self.following.as_ref().is_some_and(|f| f.epoch == message.epoch);
        match message.kind {
            Kind::Claim => return false,
            Kind::Yield => {
                if ours {
                    self.pass_on(true);
                    self.following = None;
                }
                return false;
            }
            Kind::End => {
                if ours {
                    self.pass_on(true);
                    info!(stream = %self.name, "the publisher on another daemon ended the stream");
                    self.hub.end_relay(&self.name);
                }
                return ours;
            }
            Kind::Codes | Kind::Graded | Kind::Background => {}
        }
        let now = Instant::now();
        let silent = self.following.as_ref().is_none_or(|f| now.duration_since(f.heard) > f.silence);
        // Who begins had its claim looked at: the one before it has gone, however lately it was heard.
        let successor = message.sequence == 0 && self.following.as_ref().is_some_and(|f| f.epoch < message.epoch);
        if silent || successor {
            // The first bundle, the publisher came back after a pause, or another one took its place.
            self.pass_on(true);
            self.count_missed(message, now);
            let assembler = Assembler::new(wanted, self.profile.entries);
            let (epoch, heard) = (message.epoch, now);
            let silence = (self.profile.media_time(message.frames) * 2).max(SHORTEST_SILENCE);
            self.following = Some(Following { epoch, assembler, heard, silence });
        } else if !ours {
            // Two at once: one of them finds out soon and gives way.
            return false;
        }
        if let Some(f) = &mut self.following {
            f.heard = now;
            if let Err(e) = f.assembler.push(message) {
                self.malformed(&e);
            }
        }
        self.pass_on(false);
        false
    }

    /// Counts what a publisher sent while nothing of it came, as when NATS was away.
    fn count_missed(&self, message: &LayerMessage, now: Instant) {
        let Some(f) = self.following.as_ref().filter(|f| f.epoch == message.epoch) else { return };
        let silence = now.duration_since(f.heard);
        let missed = missed(f.assembler.expected(), message.sequence, silence);
        if missed > 0 {
            warn!(stream = %self.name, missed, silence_s = silence.as_secs_f64(), "bundles of another daemon were lost");
            BusCounters::add(&self.bus.counters().lost, missed);
        }
    }

    /// Gives whole bundles to those who listen here; with `hurry` what there is of them.
    fn pass_on(&mut self, hurry: bool) {
        let Some(f) = &mut self.following else { return };
        let counters = self.bus.counters();
        // Epochs differ in either number; the sum tells any two of them apart that a stream sees in its life.
        let source = f.epoch.started.wrapping_add(f.epoch.id);
        loop {
            match f.assembler.pop(hurry) {
                Ok(Some(bundle)) => {
                    BusCounters::add(&counters.received, 1);
                    let media = self.profile.media_time(bundle.frames);
                    self.hub.relay(&self.name, source, Heard::new(bundle, media, Instant::now(), true));
                }
                Ok(None) => break,
                Err(e) => {
                    BusCounters::add(&counters.malformed, 1);
                    debug!(stream = %self.name, error = %e, "a bundle was thrown away");
                }
            }
        }
        BusCounters::add(&counters.lost, f.assembler.take_lost());
    }
}

/// Bundles between the one that was expected and the one that came after a silence: no more than can have been sent in
/// that time, whatever a message claims.
fn missed(expected: Option<u64>, came: u64, silence: Duration) -> u64 {
    let possible = silence.as_millis() / SHORTEST_BUNDLE.as_millis();
    let gap = expected.map_or(0, |expected| came.saturating_sub(expected));
    gap.min(u64::try_from(possible).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_outage_cost_is_counted_and_no_claim_is_believed() {
        let minute = Duration::from_secs(60);
        assert_eq!(missed(Some(10), 610, minute), 600);
        assert_eq!(missed(Some(10), 10, minute), 0);
        assert_eq!(missed(Some(10), 3, minute), 0);
        assert_eq!(missed(None, 700, minute), 0);
        assert_eq!(missed(Some(10), u64::MAX, minute), 3_000);
    }
}
