//! The thin form of bundles: numbers that follow from the bundle before are not sent (docs/bitstream.md, section 5).
//!
//! A connection that loses nothing needs no sequence numbers, and a stream without gaps no frame numbers. Both ends keep what the next
//! bundle would be by itself; a bundle says only where it differs.

use super::Wire;
use super::message::{Message, Thin};
use crate::bitstream::{CodedBundle, Form, PackedBundle};
use crate::profile::Profile;
use crate::units::OutOfRange;

/// Frames of a bundle that does not say how many it has, before any did.
const FIRST_REGULAR: u8 = 5;

/// Where a direction of a session is.
#[derive(Debug, Clone)]
struct Place {
    next_frame: u64,
    regular: u8,
}

impl Place {
    fn new() -> Self {
        Self { next_frame: 0, regular: FIRST_REGULAR }
    }
}

/// Makes bundles thin.
#[derive(Debug, Clone)]
pub struct ThinWriter(Place);

impl Default for ThinWriter {
    fn default() -> Self {
        Self(Place::new())
    }
}

impl ThinWriter {
    /// The thin form of a bundle, or any other message as it is. The bundle must not begin before the end of the one before.
    pub fn thin(&mut self, message: Message) -> Message {
        let (first_frame, frames, thin) = match message {
            Message::Bundle { bundle: b, .. } => {
                let PackedBundle { first_frame, frames, stages, form, payload } = b;
                let (graded, background) = (form == Form::Graded, form == Form::Background);
                (first_frame, frames, Thin { stages, graded, background, payload, ..Thin::default() })
            }
            Message::Coded { bundle: b, checked, .. } => {
                let (restart, plain) = (b.restart, b.packed);
                (
                    b.first_frame,
                    b.frames,
                    Thin { stages: b.stages, restart, plain, checked, payload: b.payload, ..Thin::default() },
                )
            }
            other => return other,
        };
        let place = &mut self.0;
        let gap = first_frame.saturating_sub(place.next_frame);
        let said = (frames != place.regular).then_some(frames);
        place.regular = frames;
        place.next_frame = first_frame.saturating_add(u64::from(frames));
        Message::Thin(Thin { gap, frames: said, ..thin })
    }
}

/// Makes thin bundles whole.
#[derive(Debug, Clone)]
pub struct ThinReader {
    place: Place,
    /// Of the next bundle; whoever writes thin bundles need not know it.
    sequence: u64,
    coded: bool,
    wire: Wire,
}

impl ThinReader {
    /// At the start of a session, which is coded or not, with the forms that were agreed on.
    pub fn new(coded: bool, wire: Wire) -> Self {
        Self { place: Place::new(), sequence: 0, coded, wire }
    }

    /// The bundle that a thin one stands for, or any other message as it is.
    ///
    /// # Errors
    /// [`OutOfRange`] for frames, frame numbers or a payload that cannot be, and for what only coded sessions have in a packed one.
    pub fn whole(&mut self, message: Message) -> Result<Message, OutOfRange> {
        let Message::Thin(thin) = message else { return Ok(message) };
        let Self { place, sequence: next, coded, wire } = self;
        let frames = thin.frames.unwrap_or(place.regular);
        let first_frame = place.next_frame.checked_add(thin.gap);
        let first_frame = first_frame.ok_or_else(|| no_frame(thin.gap))?;
        let sequence = *next;
        let whole = whole(thin, (sequence, first_frame, frames), *coded, *wire)?;
        *next += 1;
        *place = Place { next_frame: first_frame + u64::from(frames), regular: frames };
        Ok(whole)
    }
}

impl Thin {
    /// The thin form of a bundle that is understood without others, with its number and its first frame; None for any other message.
    pub fn alone(message: Message) -> Option<(u64, u64, Self)> {
        let (sequence, first_frame, frames) = match &message {
            Message::Bundle { sequence, bundle } => (*sequence, bundle.first_frame, bundle.frames),
            Message::Coded { sequence, bundle, .. } => (*sequence, bundle.first_frame, bundle.frames),
            _ => return None,
        };
        let Message::Thin(thin) = ThinWriter::default().thin(message) else { return None };
        // It begins anew in any case.
        let frames = (frames != FIRST_REGULAR).then_some(frames);
        Some((sequence, first_frame, Self { gap: 0, restart: false, frames, ..thin }))
    }

    /// The bundle that it stands for by itself.
    ///
    /// # Errors
    /// As [`ThinReader::whole`].
    pub fn whole(self, sequence: u64, first_frame: u64, coded: bool, wire: Wire) -> Result<Message, OutOfRange> {
        let frames = self.frames.unwrap_or(FIRST_REGULAR);
        let restart = coded && !self.background;
        whole(Self { restart, ..self }, (sequence, first_frame, frames), coded, wire)
    }
}

fn no_frame(got: u64) -> OutOfRange {
    OutOfRange { what: "first frame", got: got.to_string(), allowed: "less than 2^64 - 50" }
}

/// A bundle with this number, first frame and so many frames.
fn whole(
    thin: Thin,
    (sequence, first_frame, frames): (u64, u64, u8),
    coded: bool,
    wire: Wire,
) -> Result<Message, OutOfRange> {
    let (coded, graded) = (coded && !thin.background, wire.graded);
    let error = |what, got: String, allowed| OutOfRange { what, got, allowed };
    if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames) {
        return Err(error("frames of a bundle", frames.to_string(), "1 to 50"));
    }
    if first_frame.checked_add(u64::from(frames)).is_none() {
        return Err(no_frame(first_frame));
    }
    let form = match (thin.background, thin.graded || (coded && graded)) {
        (true, _) => Form::Background,
        (false, true) => Form::Graded,
        (false, false) => Form::Plain,
    };
    let packed_len = PackedBundle::payload_len(frames, thin.stages, form);
    let check = if thin.checked { 2 } else { 0 };
    let length = thin.payload.len();
    let fits = match (coded, thin.plain) {
        _ if thin.background && !wire.silence => false,
        (false, _) => {
            let said = thin.plain || thin.restart || thin.checked || (thin.graded && !graded);
            !said && PackedBundle::allows(frames, thin.stages, form, length)
        }
        (true, _) if thin.graded => false,
        (true, true) => length.checked_sub(check).is_some_and(|n| PackedBundle::allows(frames, thin.stages, form, n)),
        (true, false) => (check..packed_len + check).contains(&length),
    };
    if !fits {
        return Err(error("payload in bytes", length.to_string(), "what its frames and stages take"));
    }
    let Thin { stages, restart, plain: packed, checked, payload, .. } = thin;
    Ok(if coded {
        let bundle = CodedBundle { first_frame, frames, stages, graded, restart, packed, payload };
        Message::Coded { sequence, bundle, checked }
    } else {
        Message::Bundle { sequence, bundle: PackedBundle { first_frame, frames, stages, form, payload } }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::Bundle;
    use crate::units::StageCount;

    const THIN: Wire = Wire { thin: true, graded: false, silence: false };

    fn bundle(first_frame: u64, frames: u8, stages: u8) -> PackedBundle {
        let stages = StageCount::new(stages).unwrap();
        let codes = (0..u16::from(frames) * u16::from(stages.value())).collect();
        PackedBundle::pack(&Bundle::new(first_frame, frames, stages, codes).unwrap())
    }

    #[test]
    fn bundles_come_back_whole_and_only_changes_are_said() {
        let sent = [(0, 5, 3), (5, 5, 8), (10, 2, 8), (12, 2, 1), (30, 2, 1), (32, 5, 24)];
        let (mut writer, mut reader) = (ThinWriter::default(), ThinReader::new(false, THIN));
        let mut said = Vec::new();
        for (n, (first, frames, stages)) in sent.into_iter().enumerate() {
            let whole = Message::Bundle { sequence: n as u64, bundle: bundle(first, frames, stages) };
            let Message::Thin(thin) = writer.thin(whole.clone()) else { panic!("not thin") };
            said.push((thin.gap, thin.frames));
            assert_eq!(reader.whole(Message::Thin(thin)).unwrap(), whole);
        }
        assert_eq!(said, [(0, None), (0, None), (0, Some(2)), (0, None), (16, None), (0, Some(5))]);
    }

    #[test]
    fn silence_has_a_form_in_sessions_of_both_kinds() {
        for coded in [false, true] {
            let (mut writer, mut reader) = (ThinWriter::default(), ThinReader::new(coded, Wire::ALL));
            for (sequence, first) in [(0, 0), (1, 20), (2, 40)] {
                let bundle = PackedBundle::background(first, 5, &[1, 2, 3, 4]).unwrap();
                let message = Message::Bundle { sequence, bundle };
                let thin = writer.thin(message.clone());
                assert!(matches!(&thin, Message::Thin(t) if t.background && t.gap == if first == 0 { 0 } else { 15 }));
                assert_eq!(reader.whole(thin).unwrap(), message);
            }
        }
    }

    #[test]
    fn what_stands_alone_says_all_that_is_needed() {
        for (sequence, first, frames, stages) in [(0, 0, 5, 3), (7, 1 << 40, 5, 8), (3, 12, 2, 24)] {
            let packed = bundle(first, frames, stages);
            let (message, wire) = (Message::Bundle { sequence, bundle: packed.clone() }, Wire::ALL);
            let (n, at, thin) = Thin::alone(message.clone()).unwrap();
            assert_eq!((n, at, thin.gap, thin.frames), (sequence, first, 0, (frames != 5).then_some(frames)));
            assert_eq!(thin.whole(n, at, false, wire).unwrap(), message);
            let PackedBundle { first_frame, frames, stages, mut payload, .. } = packed;
            payload.pop();
            let coded =
                CodedBundle { first_frame, frames, stages, graded: true, restart: true, packed: false, payload };
            let message = Message::Coded { sequence, bundle: coded, checked: false };
            let (n, at, thin) = Thin::alone(message.clone()).unwrap();
            assert!(!thin.restart);
            assert_eq!(thin.clone().whole(n, at, true, wire).unwrap(), message);
            assert!(thin.whole(n, u64::MAX - 1, true, wire).is_err());
        }
        assert_eq!(Thin::alone(Message::Control(crate::session::Control::default())), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = Thin { stages: StageCount::new(2).unwrap(), payload: vec![0; 13], ..Thin::default() };
        assert!(ThinReader::new(false, THIN).whole(Message::Thin(good.clone())).is_ok());
        for bad in [
            Thin { frames: Some(51), ..good.clone() },
            Thin { frames: Some(0), ..good.clone() },
            Thin { frames: Some(4), ..good.clone() },
            Thin { gap: u64::MAX, ..good.clone() },
            Thin { gap: u64::MAX - 4, ..good.clone() },
            Thin { restart: true, ..good.clone() },
            Thin { checked: true, ..good.clone() },
            Thin { graded: true, ..good.clone() },
            Thin { background: true, payload: vec![0; 3], ..good.clone() },
        ] {
            assert!(ThinReader::new(false, THIN).whole(Message::Thin(bad.clone())).is_err(), "{bad:?}");
        }
        // Coded payloads are shorter than packed ones, or packed and said to be so.
        let mut coded = ThinReader::new(true, THIN);
        assert!(coded.whole(Message::Thin(good.clone())).is_err());
        assert!(coded.whole(Message::Thin(Thin { plain: true, ..good.clone() })).is_ok());
        assert!(coded.whole(Message::Thin(Thin { checked: true, payload: vec![0; 1], ..good })).is_err());
    }
}
