//! What travels between daemons: a bundle cut into layers of stages, one message each, and put together again.
//!
//! Everything here is pure. The bytes come from whoever may publish on the NATS server, so they are checked like a
//! client's: a wrong message is an error and takes no memory.

mod message;

pub use message::{Epoch, HEAD, Kind, LAYERS, LayerMessage, MessageError, layers_of, split, split_constant};

use std::collections::VecDeque;

use crate::bitstream::{ABSENT, Bundle};
use crate::session::PackedBundle;
use crate::units::StageCount;
use message::range;

/// Bundles that may wait for their layers.
pub const MAX_PENDING: usize = 8;

/// How far a bundle may be ahead of the one before it. A relay that heard nothing for long starts afresh instead.
const MAX_JUMP: u64 = 1_000;

/// Later bundles that were begun when a bundle stops waiting for its missing layers.
const PATIENCE: usize = 2;

/// A bundle that is older than this by its number is no straggler.
const LATE: u64 = 16;

/// Frames by which a bundle may be ahead of what the bundles before it say: the publisher left some out.
const MAX_AHEAD: u64 = 500;

/// A bundle whose layers come in.
struct Pending {
    sequence: u64,
    first_frame: u64,
    frames: u8,
    stages: StageCount,
    is_background: bool,
    layers: [Option<Vec<u16>>; LAYERS],
}

impl Pending {
    /// Layers there from the first one without a hole.
    fn layers(&self) -> usize {
        self.layers.iter().take_while(|l| l.is_some()).count()
    }

    /// The stages of the first `layers` layers.
    fn bundle(&self, layers: usize) -> Result<PackedBundle, MessageError> {
        if let (true, Some(codes)) = (self.is_background, &self.layers[0]) {
            return Ok(PackedBundle::background(self.first_frame, self.frames, codes)?);
        }
        let total = self.stages.index();
        let end = range(layers - 1, total).end;
        let mut codes = Vec::with_capacity(usize::from(self.frames) * end);
        for frame in 0..usize::from(self.frames) {
            for (number, layer) in self.layers.iter().take(layers).enumerate() {
                let width = range(number, total).len();
                codes.extend(layer.iter().flat_map(|l| &l[frame * width..(frame + 1) * width]));
            }
        }
        let stages = StageCount::new(u8::try_from(end).unwrap_or(u8::MAX))?;
        Ok(PackedBundle::pack(&Bundle::new(self.first_frame, self.frames, stages, codes)?))
    }
}

/// Puts the layers of one publisher together. A bundle leaves when all wanted layers are there, or with fewer stages
/// when later bundles show that the rest is not coming.
pub struct Assembler {
    wanted: usize,
    entries: usize,
    pending: VecDeque<Pending>,
    next: Option<u64>,
    lost: u64,
    /// The bundle that would follow one whose number was far from what was expected.
    elsewhere: Option<u64>,
    /// The frame that follows the last bundle given out, and the one that would follow a bundle that was not believed.
    frame: Option<u64>,
    doubted: Option<u64>,
}

impl Assembler {
    /// For so many layers of a model with so many entries in a codebook.
    pub fn new(wanted: usize, entries: usize) -> Self {
        let pending = VecDeque::new();
        Self { wanted, entries, pending, next: None, lost: 0, elsewhere: None, frame: None, doubted: None }
    }

    /// Other layers from here on.
    pub fn set_wanted(&mut self, layers: usize) {
        self.wanted = layers;
    }

    /// Bundles that never came, since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Bundle that comes next; None before the first.
    pub fn expected(&self) -> Option<u64> {
        self.next
    }

    /// Whether something waits for its layers.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes a layer. One that is late or there already is ignored.
    ///
    /// # Errors
    /// [`MessageError`] for one that contradicts the others, or codes that the model does not have.
    pub fn push(&mut self, message: &LayerMessage) -> Result<(), MessageError> {
        let sequence = message.sequence;
        if !message.has_codes() || !self.is_near(message)? {
            return Ok(());
        }
        let part = message.codes()?;
        if let Some(&code) = part.iter().find(|&&c| usize::from(c) >= self.entries && c != ABSENT) {
            return Err(MessageError::Code { sequence, code, entries: self.entries });
        }
        let at = self.pending.partition_point(|p| p.sequence < sequence);
        if self.pending.get(at).is_none_or(|p| p.sequence != sequence) {
            if self.pending.len() >= MAX_PENDING {
                return Ok(());
            }
            let (first_frame, frames, stages) = (message.first_frame, message.frames, StageCount::new(message.stages)?);
            let is_background = message.kind == Kind::Background;
            let layers = Default::default();
            self.pending.insert(at, Pending { sequence, first_frame, frames, stages, is_background, layers });
        }
        let pending = &mut self.pending[at];
        let shape = (pending.first_frame, pending.frames, pending.stages.value(), pending.is_background);
        let is_background = message.kind == Kind::Background;
        if shape != (message.first_frame, message.frames, message.stages, is_background) {
            return Err(MessageError::Differs(sequence));
        }
        pending.layers[usize::from(message.layer)].get_or_insert(part);
        Ok(())
    }

    /// Whether a message belongs to the bundles that are put together now. A number far away is believed when the next
    /// one follows it: one message of anybody's must not make the publisher's own look late, or too early, for ever.
    fn is_near(&mut self, message: &LayerMessage) -> Result<bool, MessageError> {
        let sequence = message.sequence;
        let Some(next) = self.next else { return Ok(true) };
        let is_early = sequence > next && sequence - next > MAX_JUMP;
        if sequence >= next && !is_early {
            return Ok(true);
        }
        if message.layer == 0 && (is_early || next - sequence > LATE) {
            if self.elsewhere == Some(sequence) {
                self.pending.clear();
                (self.next, self.elsewhere) = (Some(sequence), None);
                return Ok(true);
            }
            self.elsewhere = sequence.checked_add(1);
        }
        if is_early { Err(MessageError::Jump { got: sequence, next }) } else { Ok(false) }
    }

    /// Whether a bundle's frames follow from those before it, of which `missed` bundles did not come; if not, the next one
    /// is believed that follows this one.
    fn follows(&mut self, bundle: &PackedBundle, missed: u64) -> Result<(), MessageError> {
        let first = bundle.first_frame;
        let after = first.checked_add(u64::from(bundle.frames));
        let ahead = MAX_AHEAD.saturating_add(missed.saturating_mul(50));
        let near = |from: u64| (from..=from.saturating_add(ahead)).contains(&first);
        if self.frame.is_none_or(near) || self.doubted.is_some_and(near) {
            (self.frame, self.doubted) = (after, None);
            return Ok(());
        }
        self.doubted = after;
        Err(MessageError::Frame { got: first, next: self.frame.unwrap_or_default() })
    }

    /// The next bundle; with `hurry` whatever there is of it.
    ///
    /// # Errors
    /// [`MessageError`] if the layers make no bundle.
    pub fn pop(&mut self, hurry: bool) -> Result<Option<PackedBundle>, MessageError> {
        while let Some(first) = self.pending.front() {
            let all = if first.is_background { 1 } else { layers_of(first.stages) };
            let complete = first.layers() >= self.wanted.min(all);
            // Layers of different subjects may overtake each other by a little.
            let gap = self.next.is_some_and(|next| first.sequence > next);
            let over = hurry || self.pending.len() > PATIENCE;
            if !over && (!complete || gap) {
                return Ok(None);
            }
            let Some(first) = self.pending.pop_front() else { return Ok(None) };
            let missed = self.next.map_or(0, |next| first.sequence.saturating_sub(next));
            self.next = Some(first.sequence.saturating_add(1));
            self.lost = self.lost.saturating_add(missed);
            match first.layers().min(self.wanted) {
                // Without the first layer the others mean nothing.
                0 => self.lost = self.lost.saturating_add(1),
                layers => {
                    let bundle = first.bundle(layers)?;
                    return match self.follows(&bundle, missed) {
                        Ok(()) => Ok(Some(bundle)),
                        Err(e) => {
                            self.lost = self.lost.saturating_add(1);
                            Err(e)
                        }
                    };
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::message::ENDS;
    use super::*;
    use crate::units::{MessageRate, ModelId};

    const EPOCH: Epoch = Epoch { started: 7, id: 9 };
    const MODEL: ModelId = ModelId(*b"fakefake");

    fn bundle(number: u64, stages: u8) -> PackedBundle {
        let codes = (0..5 * u64::from(stages)).map(|i| ((i * 37 + number) % 256) as u16).collect();
        PackedBundle::pack(&Bundle::new(number * 5, 5, StageCount::new(stages).unwrap(), codes).unwrap())
    }

    fn parts(number: u64, stages: u8) -> Vec<LayerMessage> {
        let parts = split(&bundle(number, stages), EPOCH, MODEL, number).unwrap();
        // Over the wire and back.
        parts.iter().map(|m| LayerMessage::parse(&m.encode()).unwrap()).collect()
    }

    #[test]
    fn layers_make_the_bundle_again_and_fewer_of_them_one_with_fewer_stages() {
        for stages in 1..=StageCount::MAX.value() {
            let parts = parts(0, stages);
            assert_eq!(parts.len(), layers_of(StageCount::new(stages).unwrap()));
            for wanted in 1..=LAYERS {
                let mut all = Assembler::new(wanted, 256);
                parts.iter().take(wanted).for_each(|m| all.push(m).unwrap());
                let got = all.pop(false).unwrap().unwrap();
                let kept = StageCount::new(stages.min(u8::try_from(ENDS[wanted - 1]).unwrap_or(u8::MAX))).unwrap();
                assert_eq!(got, bundle(0, stages).limited(kept).unwrap());
            }
        }
        assert_eq!([1, 3, 4, 6, 7, 12, 13].map(|n| layers_of(StageCount::new(n).unwrap())), [1, 1, 2, 2, 3, 3, 4]);
    }

    #[test]
    fn layers_of_graded_bundles_make_them_again() {
        let depths = [1, 24, 3, 4, 13];
        let codes = depths.iter().flat_map(|&d| (0..24).map(move |k| if k < d { k * 9 + d } else { ABSENT })).collect();
        let whole = Bundle::new(0, 5, StageCount::MAX, codes).unwrap();
        let packed = PackedBundle::pack(&whole);
        let messages = split(&packed, EPOCH, MODEL, 0).unwrap();
        let parts: Vec<_> = messages.iter().map(|m| LayerMessage::parse(&m.encode()).unwrap()).collect();
        assert_eq!((parts.len(), &parts), (LAYERS, &messages));
        for wanted in 1..=LAYERS {
            let mut all = Assembler::new(wanted, 256);
            parts.iter().take(wanted).for_each(|m| all.push(m).unwrap());
            let kept = StageCount::new(u8::try_from(ENDS[wanted - 1]).unwrap_or(24)).unwrap();
            assert_eq!(all.pop(false).unwrap().unwrap(), packed.limited(kept).unwrap());
        }
        // Layers that contradict each other make no bundle.
        let mut all = Assembler::new(2, 256);
        let other = split(&PackedBundle::pack(&whole.truncated(StageCount::new(5).unwrap())), EPOCH, MODEL, 0).unwrap();
        all.push(&parts[0]).unwrap();
        assert!(all.push(&other[1]).is_err());
    }

    #[test]
    fn a_stream_of_one_size_has_as_many_messages_of_as_many_bytes_whatever_is_in_it() {
        for (bps, stages) in [(500, 2), (1_500, 6), (3_000, 12), (6_000, 24), (12_000, 24)] {
            let rate = MessageRate::new(bps).unwrap();
            assert_eq!(rate.most_stages().value(), stages);
            let depths = [1, 24, 3, 4, 13];
            let deep = depths.iter().flat_map(|&d| (0..24).map(move |k| if k < d { k * 9 + d } else { ABSENT }));
            let deep = PackedBundle::pack(&Bundle::new(5, 5, StageCount::MAX, deep.collect()).unwrap());
            let last = PackedBundle::pack(&Bundle::new(15, 2, StageCount::ONE, vec![3, 4]).unwrap());
            let mut sizes = Vec::new();
            for (n, whole) in [bundle(0, 1), deep, bundle(2, 24), last].into_iter().enumerate() {
                let messages = split_constant(&whole, rate, EPOCH, MODEL, n as u64).unwrap();
                let bytes: Vec<_> = messages.iter().map(|m| m.encode_for(5)).collect();
                sizes.push(bytes.iter().map(Vec::len).collect::<Vec<_>>());
                for wanted in 1..=LAYERS {
                    let mut all = Assembler::new(wanted, 256);
                    for bytes in bytes.iter().take(wanted) {
                        let message = LayerMessage::parse(bytes).unwrap();
                        assert_eq!(message.constant, Some(rate));
                        all.push(&message).unwrap();
                    }
                    let most = u8::try_from(ENDS[wanted - 1]).map_or(stages, |end| end.min(stages));
                    let kept = whole.limited(StageCount::new(most).unwrap()).unwrap();
                    assert_eq!(all.pop(false).unwrap().unwrap(), kept);
                }
            }
            assert!(sizes.iter().all(|s| *s == sizes[0]), "{bps}: {sizes:?}");
        }
        let silence = PackedBundle::background(0, 5, &[1, 2]).unwrap();
        let rate = MessageRate::new(3_000).unwrap();
        assert!(split_constant(&silence, rate, EPOCH, MODEL, 0).unwrap().is_empty());
        // Lengths and rates that nobody writes.
        let mut bytes = split_constant(&bundle(0, 3), rate, EPOCH, MODEL, 0).unwrap()[0].encode();
        bytes[HEAD + 2] = 0xff;
        assert!(LayerMessage::parse(&bytes).is_err() && LayerMessage::parse(&bytes[..HEAD + 3]).is_err());
        (bytes[HEAD], bytes[HEAD + 1], bytes[HEAD + 2]) = (0xff, 0xff, 0);
        assert!(LayerMessage::parse(&bytes).is_err());
    }

    #[test]
    fn losses_are_counted_and_a_missing_layer_costs_stages_only() {
        let mut all = Assembler::new(LAYERS, 256);
        let mut got = Vec::new();
        for n in 0..8 {
            for m in parts(n, 6) {
                // Bundle 2 never comes, 4 comes without its second layer, 5 without its first, 6 the wrong way round.
                let missing = n == 2 || (n == 4 && m.layer == 1) || (n == 5 && m.layer == 0);
                if !missing {
                    all.push(&m).unwrap();
                }
            }
            while let Some(b) = all.pop(false).unwrap() {
                got.push(b);
            }
        }
        while let Some(b) = all.pop(true).unwrap() {
            got.push(b);
        }
        let shape: Vec<_> = got.iter().map(|b| (b.first_frame / 5, b.stages.value())).collect();
        assert_eq!(shape, [(0, 6), (1, 6), (3, 6), (4, 3), (6, 6), (7, 6)]);
        assert_eq!(all.take_lost(), 2);
        assert!(!all.is_waiting());
    }

    #[test]
    fn what_overtakes_is_put_in_order() {
        let mut all = Assembler::new(LAYERS, 256);
        parts(0, 6).iter().for_each(|m| all.push(m).unwrap());
        assert!(all.pop(false).unwrap().is_some());
        for n in [2, 1] {
            parts(n, 6).iter().rev().for_each(|m| all.push(m).unwrap());
        }
        let order: Vec<_> = std::iter::from_fn(|| all.pop(false).unwrap()).map(|b| b.first_frame).collect();
        assert_eq!(order, [5, 10]);
        assert_eq!(all.take_lost(), 0);
    }

    /// One message whose numbers are somebody else's, among eight good bundles: how many of these come out.
    fn with_one_forged(forge: impl Fn(&mut LayerMessage)) -> (Vec<u64>, u64) {
        let (mut all, mut got) = (Assembler::new(LAYERS, 256), Vec::new());
        let mut give = |all: &mut Assembler, message: &LayerMessage| {
            let _ = all.push(message);
            loop {
                match all.pop(false) {
                    Ok(Some(b)) => got.push(b.first_frame / 5),
                    Ok(None) => break,
                    Err(_) => {}
                }
            }
        };
        for n in 0..40 {
            if n == 3 {
                let mut forged = parts(n, 2)[0].clone();
                forge(&mut forged);
                give(&mut all, &forged);
            }
            give(&mut all, &parts(n, 2)[0]);
        }
        (got, all.take_lost())
    }

    #[test]
    fn one_forged_number_costs_a_bundle_or_a_second_and_not_the_stream() {
        for (what, forge, most) in [
            ("a frame near 2^64", (|m: &mut LayerMessage| m.first_frame = u64::MAX - 9) as fn(&mut LayerMessage), 1),
            ("a frame an hour ahead", |m| m.first_frame += 180_000, 1),
            ("a bundle near 2^64", |m| m.sequence = u64::MAX - 1, 0),
            ("a bundle far ahead", |m| m.sequence += 900, 1),
            ("a bundle a little ahead", |m| m.sequence += 10, 11),
        ] {
            let (got, _) = with_one_forged(forge);
            let own: Vec<u64> = got.iter().copied().filter(|n| *n < 40).collect();
            assert!(own.len() >= 40 - most - 1 && own.last() == Some(&39), "{what}: {got:?}");
        }
    }

    #[test]
    fn the_first_bundle_may_be_forged_and_a_publisher_may_jump() {
        let mut all = Assembler::new(LAYERS, 256);
        let at = |n: u64, first_frame: u64| LayerMessage { first_frame, ..parts(n, 2)[0].clone() };
        let mut pop = |message: LayerMessage| {
            all.push(&message).unwrap();
            all.pop(false).map(|b| b.map(|b| b.first_frame))
        };
        assert_eq!(pop(at(0, u64::MAX - 9)).unwrap(), Some(u64::MAX - 9));
        assert!(matches!(pop(at(1, 5)), Err(MessageError::Frame { got: 5, .. })));
        assert_eq!(pop(at(2, 10)).unwrap(), Some(10));
        // A pause that the publisher left out, and a long one.
        assert_eq!(pop(at(3, 500)).unwrap(), Some(500));
        assert!(pop(at(4, 100_000)).is_err());
        assert_eq!(pop(at(5, 100_005)).unwrap(), Some(100_005));
    }

    #[test]
    fn hostile_bytes_are_errors_and_take_no_memory() {
        let good = parts(3, 6)[1].encode();
        for at in 0..good.len() {
            assert!(LayerMessage::parse(&good[..at]).is_err());
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // Whatever is accepted is what would be written.
                if let Ok(m) = LayerMessage::parse(&bad) {
                    assert!(m.encode().len() <= bad.len());
                    let mut all = Assembler::new(LAYERS, 256);
                    let _ = all.push(&m);
                    let _ = all.pop(true);
                }
            }
        }
        assert!(LayerMessage::parse(&[good.clone(), vec![0]].concat()).is_err());
        let mut all = Assembler::new(LAYERS, 16);
        assert!(matches!(all.push(&parts(1, 6)[0]), Err(MessageError::Code { .. })));
        let mut all = Assembler::new(LAYERS, 256);
        for n in 0..100 {
            // Second layers only: nothing can ever leave.
            all.push(&parts(n * 7, 6)[1]).unwrap();
        }
        assert!(all.pending.len() <= MAX_PENDING);
        parts(2, 6).iter().for_each(|m| all.push(m).unwrap());
        while all.pop(true).unwrap().is_some() {}
        assert!(matches!(all.push(&parts(u64::MAX / 5 - 1, 6)[0]), Err(MessageError::Jump { .. })));
        let mut all = Assembler::new(LAYERS, 256);
        all.push(&parts(0, 6)[0]).unwrap();
        let twin = LayerMessage { first_frame: 1, ..parts(0, 6)[0].clone() };
        assert!(matches!(all.push(&twin), Err(MessageError::Differs(0))));
    }
}
