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
use super::listener::Ties;
use super::tap::{Gauges, Tap};
use super::until::until;
use crate::bus::following::{Following, RelayEvent};
use crate::bus::layers::{Kind, layers_of};
use crate::bus::{Bus, BusCounters, BusError, Claim, Kept, LiveStream};
use crate::codec::Profile;
use crate::session::{PackedBundle, StreamName};
use crate::units::ModelId;

/// Bundles of a stream on their way to NATS; more are dropped, and counted.
const TAP_QUEUE: usize = 64;

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
    ties: &Ties,
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
                claim.publish(&bundle, ties.constant()).await;
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
        let ties = publisher.ties();
        publisher.set_tap(Tap { queue, overruled: Arc::clone(&overruled), bus, gauges: Arc::clone(&gauges) });
        self.carriers.spawn(async move {
            carry(claim, &mut bundles, &overruled, &gauges, &ties).await;
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

/// Fetches one stream for those who listen here.
struct Follower {
    hub: Arc<Hub>,
    bus: Bus,
    profile: Arc<Profile>,
    name: StreamName,
}

impl Follower {
    async fn run(self, mut layers: watch::Receiver<usize>) {
        let mut stream = self.bus.follow(&self.name);
        info!(stream = %self.name, layers = *layers.borrow(), "following a stream of another daemon");
        if let Err(e) = self.follow(&mut stream, &mut layers).await {
            warn!(stream = %self.name, error = %e, "the stream cannot be followed");
            // The owner starts over; not at once, though.
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Until the stream ends.
    async fn follow(&self, stream: &mut LiveStream, layers: &mut watch::Receiver<usize>) -> Result<(), BusError> {
        let wanted = *layers.borrow_and_update();
        let mut following = Following::new(Arc::clone(&self.profile), wanted);
        stream.set_layers(wanted).await?;
        loop {
            let due = following.due();
            tokio::select! {
                heard = stream.next() => match heard.ok_or_else(|| BusError::Connect("closed".to_owned()))? {
                    Ok(message) => following.hear(&message, Instant::now()),
                    Err(e) => self.malformed(&e),
                },
                changed = layers.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let wanted = *layers.borrow_and_update();
                    stream.set_layers(wanted).await?;
                    following.set_wanted(wanted);
                }
                () = until(due) => following.wait_no_longer(),
            }
            while let Some(event) = following.event() {
                if let RelayEvent::Ended = event {
                    info!(stream = %self.name, "the publisher on another daemon ended the stream");
                    self.hub.end_relay(&self.name);
                    return Ok(());
                }
                self.tell(event);
            }
        }
    }

    fn malformed(&self, why: &dyn std::fmt::Display) {
        BusCounters::add(&self.bus.counters().malformed, 1);
        debug!(stream = %self.name, %why, "a message was thrown away");
    }

    /// Passes on what happened to those who listen here, and counts.
    fn tell(&self, event: RelayEvent) {
        let counters = self.bus.counters();
        match event {
            RelayEvent::Bundle { source, bundle } => {
                BusCounters::add(&counters.received, 1);
                let media = self.profile.media_time(bundle.frames);
                self.hub.relay(&self.name, source, Heard::new(bundle, media, Instant::now(), true));
            }
            RelayEvent::Constant(rate) => self.hub.relay_constant(&self.name, rate),
            RelayEvent::Lost(bundles) => BusCounters::add(&counters.lost, bundles),
            RelayEvent::Missed { bundles, silence } => {
                let silence_s = silence.as_secs_f64();
                warn!(stream = %self.name, missed = bundles, silence_s, "bundles of another daemon were lost");
                BusCounters::add(&counters.lost, bundles);
            }
            RelayEvent::Malformed(why) => self.malformed(&why),
            RelayEvent::Ended => {}
        }
    }
}
