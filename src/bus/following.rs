//! Whom a relay follows, and what becomes of what is heard: decided without NATS and without a clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layers::{Assembler, Epoch, Kind, LayerMessage, MessageError};
use crate::profile::Profile;
use crate::session::PackedBundle;
use crate::units::MessageRate;

/// How long a bundle waits for a layer that is not there when nothing else comes.
const HOLD: Duration = Duration::from_millis(60);

/// Shortest silence after which a relay follows another publisher.
const SHORTEST_SILENCE: Duration = Duration::from_millis(250);

/// A bundle has a frame at least.
const SHORTEST_BUNDLE: Duration = Duration::from_millis(20);

/// What whoever listens, or counts, is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// A bundle, with a number that changes with its publisher.
    Bundle {
        /// Tells any two publishers apart that a stream sees in its life.
        source: u64,
        /// As many layers of it as came.
        bundle: PackedBundle,
    },
    /// What each message of the publisher that is followed now takes, if they have one size.
    Constant(Option<MessageRate>),
    /// So many bundles never came.
    Lost(u64),
    /// The publisher went on while nothing of it came, as when NATS was away.
    Missed {
        /// What it sent meanwhile, and is lost.
        bundles: u64,
        /// How long nothing came.
        silence: Duration,
    },
    /// A message, or what was made of some, was thrown away for this reason.
    Malformed(String),
    /// The publisher ended the stream.
    Ended,
}

/// Who is followed now.
struct Followed {
    epoch: Epoch,
    assembler: Assembler,
    heard: Instant,
    /// After so long the publisher is taken for gone.
    silence: Duration,
}

/// Follows one stream: of several that publish it, the one that has the right to; another when that one is gone.
pub struct Following {
    profile: Arc<Profile>,
    /// Layers that listeners want.
    wanted: usize,
    followed: Option<Followed>,
    constant: Option<MessageRate>,
    events: VecDeque<RelayEvent>,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let epoch = self.followed.as_ref().map(|f| f.epoch);
        f.debug_struct("Following").field("epoch", &epoch).field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl Following {
    /// Nobody yet, of whom the first `wanted` layers are fetched.
    pub fn new(profile: Arc<Profile>, wanted: usize) -> Self {
        Self { profile, wanted, followed: None, constant: None, events: VecDeque::new() }
    }

    /// Other layers from here on.
    pub fn set_wanted(&mut self, layers: usize) {
        self.wanted = layers;
        if let Some(f) = &mut self.followed {
            f.assembler.set_wanted(layers);
        }
    }

    /// What happened, in order; to be asked until there is nothing more.
    pub fn event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// When [`Following::wait_no_longer`] is due unless something is heard before.
    pub fn due(&self) -> Option<Instant> {
        self.followed.as_ref().filter(|f| f.assembler.is_waiting()).map(|f| f.heard + HOLD)
    }

    /// Gives out what there is of bundles whose layers do not come.
    pub fn wait_no_longer(&mut self) {
        self.pass_on(true);
    }

    /// Takes a message that came at `now`.
    pub fn hear(&mut self, message: &LayerMessage, now: Instant) {
        if message.model != self.profile.model_id {
            let why = format!("model {}, here it is {}", message.model, self.profile.model_id);
            return self.events.push_back(RelayEvent::Malformed(why));
        }
        let ours = self.followed.as_ref().is_some_and(|f| f.epoch == message.epoch);
        match message.kind {
            Kind::Codes | Kind::Graded | Kind::Background => self.take(message, ours, now),
            Kind::Yield if ours => {
                self.pass_on(true);
                self.followed = None;
            }
            Kind::End if ours => {
                self.pass_on(true);
                self.events.push_back(RelayEvent::Ended);
            }
            Kind::Claim | Kind::Yield | Kind::End => {}
        }
    }

    fn take(&mut self, message: &LayerMessage, ours: bool, now: Instant) {
        let silent = self.followed.as_ref().is_none_or(|f| now.duration_since(f.heard) > f.silence);
        // Who begins had its claim looked at: the one before it has gone, however lately it was heard.
        let successor = message.sequence == 0 && self.followed.as_ref().is_some_and(|f| f.epoch < message.epoch);
        if silent || successor {
            // The first bundle, the publisher came back after a pause, or another one took its place.
            self.pass_on(true);
            self.count_missed(message, now);
            let assembler = Assembler::new(self.wanted, self.profile.entries);
            let silence = (self.profile.media_time(message.frames) * 2).max(SHORTEST_SILENCE);
            if self.constant != message.constant {
                self.constant = message.constant;
                self.events.push_back(RelayEvent::Constant(message.constant));
            }
            self.followed = Some(Followed { epoch: message.epoch, assembler, heard: now, silence });
        } else if !ours {
            // Two at once: one of them finds out soon and gives way.
            return;
        }
        if let Some(f) = &mut self.followed {
            f.heard = now;
            if let Err(e) = f.assembler.push(message) {
                self.malformed(&e);
            }
        }
        self.pass_on(false);
    }

    fn malformed(&mut self, why: &MessageError) {
        self.events.push_back(RelayEvent::Malformed(why.to_string()));
    }

    /// Counts what a publisher sent while nothing of it came: no more than can have been sent in that time, whatever its
    /// message claims.
    fn count_missed(&mut self, message: &LayerMessage, now: Instant) {
        let Some(f) = self.followed.as_ref().filter(|f| f.epoch == message.epoch) else { return };
        let silence = now.duration_since(f.heard);
        let possible = u64::try_from(silence.as_millis() / SHORTEST_BUNDLE.as_millis()).unwrap_or(u64::MAX);
        let gap = f.assembler.expected().map_or(0, |expected| message.sequence.saturating_sub(expected));
        let bundles = gap.min(possible);
        if bundles > 0 {
            self.events.push_back(RelayEvent::Missed { bundles, silence });
        }
    }

    /// Gives out whole bundles; with `hurry` what there is of them.
    fn pass_on(&mut self, hurry: bool) {
        let Some(f) = &mut self.followed else { return };
        let source = f.epoch.started.wrapping_add(f.epoch.id);
        loop {
            self.events.push_back(match f.assembler.pop(hurry) {
                Ok(Some(bundle)) => RelayEvent::Bundle { source, bundle },
                Ok(None) => break,
                Err(e) => RelayEvent::Malformed(e.to_string()),
            });
        }
        match f.assembler.take_lost() {
            0 => {}
            lost => self.events.push_back(RelayEvent::Lost(lost)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layers::{LAYERS, split};
    use super::*;
    use crate::bitstream::Bundle;
    use crate::fake;
    use crate::units::StageCount;

    const FIRST: Epoch = Epoch { started: 7, id: 9 };
    const LATER: Epoch = Epoch { started: 8, id: 3 };
    const BUNDLE: Duration = Duration::from_millis(100);

    fn message(number: u64, layer: usize, epoch: Epoch) -> LayerMessage {
        let codes = vec![7; 5 * 6];
        let packed = PackedBundle::pack(&Bundle::new(number * 5, 5, StageCount::new(6).unwrap(), codes).unwrap());
        split(&packed, epoch, fake::profile(16).model_id, number).unwrap().swap_remove(layer)
    }

    fn word(kind: Kind, epoch: Epoch) -> LayerMessage {
        LayerMessage::word(kind, epoch, fake::profile(16).model_id, 0)
    }

    fn follow() -> (Following, Instant) {
        (Following::new(Arc::new(fake::profile(16)), LAYERS), Instant::now())
    }

    /// A relay hears all layers of a bundle.
    fn hear(following: &mut Following, number: u64, epoch: Epoch, now: Instant) -> Vec<RelayEvent> {
        (0..2).for_each(|layer| following.hear(&message(number, layer, epoch), now));
        std::iter::from_fn(|| following.event()).collect()
    }

    /// Sources of the bundles among events, and their first frames.
    fn bundles(events: &[RelayEvent]) -> Vec<(u64, u64)> {
        let bundle = |e: &RelayEvent| match e {
            RelayEvent::Bundle { source, bundle } => Some((*source, bundle.first_frame)),
            _ => None,
        };
        events.iter().filter_map(bundle).collect()
    }

    #[test]
    fn a_layer_is_waited_for_60_ms_and_no_longer() {
        let (mut following, now) = follow();
        following.hear(&message(0, 0, FIRST), now);
        assert_eq!((following.event(), following.due()), (None, Some(now + HOLD)));
        following.wait_no_longer();
        let Some(RelayEvent::Bundle { bundle, .. }) = following.event() else { panic!("nothing was passed on") };
        assert_eq!((bundle.stages.value(), following.due()), (3, None));
        // Who wants less waits for less.
        following.set_wanted(1);
        following.hear(&message(1, 0, FIRST), now + BUNDLE);
        assert!(matches!(following.event(), Some(RelayEvent::Bundle { .. })) && following.due().is_none());
    }

    #[test]
    fn of_two_at_once_the_first_is_followed_until_it_is_silent_or_says_that_it_goes() {
        for word_of_it in [None, Some(Kind::Yield)] {
            let (mut following, mut now) = follow();
            for n in 0..3_600_000 / 100 {
                assert_eq!(bundles(&hear(&mut following, n, FIRST, now)), [(16, n * 5)]);
                // One whose claim was not heard by the first.
                assert_eq!(hear(&mut following, n + 1, LATER, now), []);
                now += BUNDLE;
            }
            match word_of_it {
                Some(kind) => following.hear(&word(kind, FIRST), now),
                None => now += SHORTEST_SILENCE,
            }
            assert_eq!(bundles(&hear(&mut following, 50_000, LATER, now)), [(11, 250_000)]);
        }
    }

    #[test]
    fn who_begins_anew_takes_the_place_of_an_earlier_one_and_no_other() {
        let (mut following, now) = follow();
        hear(&mut following, 10, FIRST, now);
        assert_eq!(bundles(&hear(&mut following, 0, LATER, now)), [(11, 0)]);
        assert_eq!(hear(&mut following, 0, FIRST, now), []);
    }

    #[test]
    fn what_an_outage_cost_is_counted_and_no_claim_is_believed() {
        for (number, silence, missed) in [(610, 60, 599), (11, 60, 0), (3, 60, 0), (u64::MAX / 8, 60, 3_000)] {
            let (mut following, now) = follow();
            hear(&mut following, 10, FIRST, now);
            let silence = Duration::from_secs(silence);
            let events = hear(&mut following, number, FIRST, now + silence);
            let wanted = (missed > 0).then_some(RelayEvent::Missed { bundles: missed, silence });
            assert_eq!(events.iter().find(|e| matches!(e, RelayEvent::Missed { .. })), wanted.as_ref());
            assert_eq!(bundles(&events).len(), 1);
        }
        // Another publisher's numbers say nothing.
        let (mut following, now) = follow();
        hear(&mut following, 10, FIRST, now);
        let events = hear(&mut following, 700, LATER, now + Duration::from_secs(60));
        assert_eq!(bundles(&events), [(11, 3_500)]);
    }

    #[test]
    fn only_the_followed_publisher_ends_the_stream_and_other_models_are_thrown_away() {
        let (mut following, now) = follow();
        hear(&mut following, 0, FIRST, now);
        for message in [word(Kind::End, LATER), word(Kind::Yield, LATER), word(Kind::Claim, LATER)] {
            following.hear(&message, now);
            assert_eq!(following.event(), None);
        }
        following.hear(&LayerMessage { model: crate::units::ModelId([1; 8]), ..message(1, 0, FIRST) }, now);
        assert!(matches!(following.event(), Some(RelayEvent::Malformed(_))));
        following.hear(&message(1, 0, FIRST), now);
        following.hear(&word(Kind::End, FIRST), now);
        let events: Vec<_> = std::iter::from_fn(|| following.event()).collect();
        assert_eq!((bundles(&events), events.last()), (vec![(16, 5)], Some(&RelayEvent::Ended)));
    }
}
