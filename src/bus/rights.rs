//! Who may publish a stream: what claims mean, decided without NATS and without a clock.

use std::time::{Duration, Instant};

use super::layers::{Epoch, Kind, LayerMessage, MessageError};
use crate::units::ModelId;

/// How often a publisher repeats its claim, so that two that could not hear each other find out.
pub(super) const REPEAT: Duration = Duration::from_secs(2);

/// What another's claim asks of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it is our own, or no claim.
    Nothing,
    /// Ours is earlier: whoever asked is to be told.
    Object,
    /// Theirs is earlier.
    GiveWay,
}

/// What a publisher claims of a stream.
#[derive(Debug)]
pub(super) struct Rights {
    pub(super) epoch: Epoch,
    pub(super) model: ModelId,
    /// Bundles published.
    sequence: u64,
    repeat: Instant,
}

impl Rights {
    pub(super) fn new(epoch: Epoch, model: ModelId, now: Instant) -> Self {
        Self { epoch, model, sequence: 0, repeat: now + REPEAT }
    }

    /// A message about the whole stream.
    pub(super) fn word(&self, kind: Kind) -> Vec<u8> {
        LayerMessage::word(kind, self.epoch, self.model, self.sequence).encode()
    }

    /// The number of a bundle that is published now.
    pub(super) fn next_sequence(&mut self) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        sequence
    }

    /// Hears a claim, or the answer to our own.
    ///
    /// # Errors
    /// [`MessageError`] for bytes that are no message.
    pub(super) fn hear(&self, payload: &[u8]) -> Result<Verdict, MessageError> {
        let theirs = LayerMessage::parse(payload)?;
        Ok(match theirs.epoch.cmp(&self.epoch) {
            _ if theirs.kind != Kind::Claim => Verdict::Nothing,
            std::cmp::Ordering::Less => Verdict::GiveWay,
            std::cmp::Ordering::Equal => Verdict::Nothing,
            std::cmp::Ordering::Greater => Verdict::Object,
        })
    }

    /// When the claim is to be repeated.
    pub(super) fn due(&self) -> Instant {
        self.repeat
    }

    /// The claim, if it is to be repeated at `now`.
    pub(super) fn repeat(&mut self, now: Instant) -> Option<Vec<u8>> {
        (now >= self.repeat).then(|| {
            self.repeat = now + REPEAT;
            self.word(Kind::Claim)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(started: u64, id: u64, now: Instant) -> Rights {
        Rights::new(Epoch { started, id }, ModelId(*b"fakefake"), now)
    }

    #[test]
    fn of_two_exactly_one_gives_way_whoever_hears_the_other_first() {
        let now = Instant::now();
        for (one, other) in [((7, 9), (8, 1)), ((7, 1), (7, 2))] {
            let (one, other) = (rights(one.0, one.1, now), rights(other.0, other.1, now));
            assert_eq!(one.hear(&other.word(Kind::Claim)).unwrap(), Verdict::Object);
            assert_eq!(other.hear(&one.word(Kind::Claim)).unwrap(), Verdict::GiveWay);
            assert_eq!(one.hear(&one.word(Kind::Claim)).unwrap(), Verdict::Nothing);
            assert_eq!(other.hear(&one.word(Kind::End)).unwrap(), Verdict::Nothing);
        }
        assert!(rights(7, 9, now).hear(b"undertone").is_err());
    }

    #[test]
    fn two_that_could_not_hear_each_other_find_out_within_two_seconds_of_an_outage_of_days() {
        let start = Instant::now();
        let (mut one, mut other) = (rights(7, 1, start), rights(9, 2, start + Duration::from_millis(700)));
        let (outage, mut now) = (start + Duration::from_secs(3 * 86_400), start);
        let found_out = loop {
            now = one.due().min(other.due()).max(now);
            let words = [one.repeat(now), other.repeat(now)];
            if now < outage {
                continue;
            }
            let [ours, theirs] = words;
            let hears =
                |who: &Rights, word: Option<Vec<u8>>| word.is_some_and(|w| who.hear(&w).unwrap() == Verdict::GiveWay);
            assert!(!hears(&one, theirs));
            if hears(&other, ours) {
                break now;
            }
        };
        assert!(found_out < outage + REPEAT);
    }

    #[test]
    fn a_claim_is_repeated_when_it_is_due_and_says_how_far_the_stream_is() {
        let now = Instant::now();
        let mut rights = rights(7, 9, now);
        assert_eq!((rights.next_sequence(), rights.next_sequence()), (0, 1));
        assert_eq!(rights.repeat(now + REPEAT / 2), None);
        let word = rights.repeat(now + 2 * REPEAT).unwrap();
        assert_eq!(LayerMessage::parse(&word).unwrap().sequence, 2);
        // Who was late does not catch up.
        assert_eq!((rights.due(), rights.repeat(now + 2 * REPEAT)), (now + 3 * REPEAT, None));
    }
}
