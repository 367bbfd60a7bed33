//! Bundles as relays pass them on.

use super::{ABSENT, BitstreamError, Bundle};
use crate::profile::Profile;
use crate::units::{MAX_STAGES, StageCount};

/// How the payload of a relayed bundle is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Form {
    /// Every frame has all stages.
    #[default]
    Plain,
    /// Frames have stage counts of their own: docs/bitstream.md, section 1.
    Graded,
    /// The codes of one frame describe the background: no frame of the bundle is heard as it was, nor are those after it until the next
    /// bundle, at most a second of them.
    Background,
}

/// A bundle whose indices are still packed, as relays pass it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBundle {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    /// Frames, 1 to 50.
    pub frames: u8,
    /// Stages of each frame; of a graded bundle the most that one has.
    pub stages: StageCount,
    /// What the payload is.
    pub form: Form,
    /// Packed indices; the length fits frames, stages and form.
    pub payload: Vec<u8>,
}

impl PackedBundle {
    /// Packs a bundle: plainly if all its frames have equally many stages.
    pub fn pack(bundle: &Bundle) -> Self {
        let (first_frame, frames) = (bundle.first_frame, bundle.frames);
        let deepest = bundle.by_frame().map(<[u16]>::len).max().and_then(|n| StageCount::new(n as u8).ok());
        let stages = deepest.unwrap_or(bundle.stages);
        if bundle.is_graded() {
            let bundle = bundle.truncated(stages);
            if bundle.is_graded() {
                let mut payload = Vec::with_capacity(Bundle::graded_len(frames, stages));
                bundle.pack_graded_into(&mut payload);
                return Self { first_frame, frames, stages, form: Form::Graded, payload };
            }
            return Self::plain(&bundle);
        }
        Self::plain(bundle)
    }

    /// Describes the background of frames by the codes of one.
    ///
    /// # Errors
    /// [`BitstreamError`] as [`Bundle::new`].
    pub fn background(first_frame: u64, frames: u8, codes: &[u16]) -> Result<Self, BitstreamError> {
        let error = |source| BitstreamError::Field { offset: 0, source };
        let stages = StageCount::new(u8::try_from(codes.len()).unwrap_or(u8::MAX)).map_err(error)?;
        let mut payload = Vec::new();
        Bundle::new(first_frame, 1, stages, codes.to_vec())?.pack_into(&mut payload);
        Ok(Self { first_frame, frames, stages, form: Form::Background, payload })
    }

    /// Whether it is silence.
    pub fn is_background(&self) -> bool {
        self.form == Form::Background
    }

    fn plain(bundle: &Bundle) -> Self {
        let mut payload = Vec::with_capacity(Bundle::payload_len(bundle.frames, bundle.stages));
        bundle.pack_into(&mut payload);
        let (first_frame, frames, stages) = (bundle.first_frame, bundle.frames, bundle.stages);
        Self { first_frame, frames, stages, form: Form::Plain, payload }
    }

    /// The bundle's frames; of a background, the frame that describes it.
    ///
    /// # Errors
    /// [`BitstreamError`] for a payload that does not fit.
    pub fn unpack(&self) -> Result<Bundle, BitstreamError> {
        match self.form {
            Form::Plain => Bundle::unpack(self.first_frame, self.frames, self.stages, &self.payload),
            Form::Graded => Bundle::unpack_graded(self.first_frame, self.frames, self.stages, &self.payload),
            Form::Background => Bundle::unpack(self.first_frame, 1, self.stages, &self.payload),
        }
    }

    /// The same frames with at most `stages` stages; nothing is decoded.
    ///
    /// # Errors
    /// [`BitstreamError`] for a payload that does not fit.
    pub fn limited(&self, stages: StageCount) -> Result<Self, BitstreamError> {
        if stages >= self.stages {
            return Ok(self.clone());
        }
        match self.form {
            Form::Plain => {}
            Form::Graded => return Ok(Self::pack(&self.unpack()?.truncated(stages))),
            Form::Background => {
                let frame = self.unpack()?.truncated(stages);
                return Self::background(self.first_frame, self.frames, &frame.codes);
            }
        }
        let mut payload = Vec::with_capacity(Bundle::payload_len(self.frames, stages));
        Bundle::truncate_packed(self.frames, self.stages, stages, &self.payload, &mut payload)?;
        Ok(Self { stages, payload, ..*self })
    }

    /// The same frames, all with as many stages as the one that has the fewest.
    ///
    /// # Errors
    /// [`BitstreamError`] for a payload that does not fit.
    pub fn even(self) -> Result<Self, BitstreamError> {
        if self.form != Form::Graded {
            return Ok(self);
        }
        let bundle = self.unpack()?;
        let fewest = bundle.by_frame().map(<[u16]>::len).min().unwrap_or(1);
        let stages = StageCount::new(fewest as u8).unwrap_or(StageCount::ONE);
        Ok(Self::pack(&bundle.truncated(stages)))
    }

    /// The same frames in plain bundles, one for each run of frames with equally many stages: for peers that know no others.
    ///
    /// # Errors
    /// [`BitstreamError`] for a payload that does not fit.
    pub fn plain_runs(self) -> Result<Vec<Self>, BitstreamError> {
        if self.form != Form::Graded {
            return Ok(vec![self]);
        }
        let bundle = self.unpack()?;
        let mut runs: Vec<Bundle> = Vec::new();
        for (first_frame, codes) in (bundle.first_frame..).zip(bundle.by_frame()) {
            let stages = StageCount::new(codes.len() as u8).unwrap_or(bundle.stages);
            match runs.last_mut().filter(|run| run.stages == stages) {
                Some(run) => {
                    run.frames += 1;
                    run.codes.extend_from_slice(codes);
                }
                None => runs.push(Bundle { first_frame, frames: 1, stages, codes: codes.to_vec() }),
            }
        }
        Ok(runs.iter().map(Self::plain).collect())
    }

    /// Two bundles as one; None if they do not follow each other, one is background, or they have more than 50 frames together.
    ///
    /// # Errors
    /// [`BitstreamError`] for payloads that do not fit.
    pub fn joined(&self, next: &Self) -> Result<Option<Self>, BitstreamError> {
        let frames = u16::from(self.frames) + u16::from(next.frames);
        let follows = self.first_frame.checked_add(u64::from(self.frames)) == Some(next.first_frame);
        if !follows
            || self.is_background()
            || next.is_background()
            || frames > u16::from(Profile::MAX_FRAMES_PER_BUNDLE)
        {
            return Ok(None);
        }
        let (first, second) = (self.unpack()?, next.unpack()?);
        let stages = first.stages.max(second.stages);
        let mut codes = Vec::with_capacity(usize::from(frames) * stages.index());
        for frame in first.by_frame().chain(second.by_frame()) {
            codes.extend_from_slice(frame);
            codes.resize(codes.len() + stages.index() - frame.len(), ABSENT);
        }
        Ok(Some(Self::pack(&Bundle { first_frame: first.first_frame, frames: frames as u8, stages, codes })))
    }

    /// How many frames have codes of each stage.
    pub fn frames_by_stage(&self) -> [u8; MAX_STAGES as usize] {
        let mut frames = [0; MAX_STAGES as usize];
        match (self.form, self.unpack()) {
            (Form::Graded, Ok(bundle)) => {
                bundle.by_frame().flat_map(|codes| 0..codes.len()).for_each(|stage| frames[stage] += 1);
            }
            (Form::Background, _) => frames[..self.stages.index()].fill(1),
            _ => frames[..self.stages.index()].fill(self.frames),
        }
        frames
    }

    /// How many codes its payload holds.
    pub fn codes(&self) -> u32 {
        self.frames_by_stage().iter().copied().map(u32::from).sum()
    }

    /// Bytes of a payload of this form; of a graded one, the most.
    pub fn payload_len(frames: u8, stages: StageCount, form: Form) -> usize {
        match form {
            Form::Plain => Bundle::payload_len(frames, stages),
            Form::Graded => Bundle::graded_len(frames, stages),
            Form::Background => Bundle::payload_len(1, stages),
        }
    }

    /// Whether a payload of so many bytes is possible; what is in it is not looked at.
    pub fn allows(frames: u8, stages: StageCount, form: Form, bytes: usize) -> bool {
        let most = Self::payload_len(frames, stages, form);
        match form {
            Form::Plain | Form::Background => bytes == most,
            Form::Graded => (1..=most).contains(&bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bundle whose frames have so many stages.
    fn graded(first_frame: u64, depths: &[u8], stages: u8) -> Bundle {
        let stages = StageCount::new(stages).unwrap();
        let mut codes = Vec::new();
        for (n, &depth) in depths.iter().enumerate() {
            codes.extend((0..depth).map(|k| n as u16 % 10 * 100 + u16::from(k)));
            codes.resize((n + 1) * stages.index(), ABSENT);
        }
        Bundle::new(first_frame, depths.len() as u8, stages, codes).unwrap()
    }

    fn depths(bundle: &PackedBundle) -> Vec<usize> {
        bundle.unpack().unwrap().by_frame().map(<[u16]>::len).collect()
    }

    #[test]
    fn graded_bundles_keep_their_stages_and_are_lowered_frame_by_frame() {
        let whole = graded(10, &[3, 8, 8, 1, 5], 24);
        let packed = PackedBundle::pack(&whole);
        assert_eq!((packed.form, packed.stages.value()), (Form::Graded, 8));
        assert_eq!(packed.unpack().unwrap(), whole.truncated(StageCount::new(8).unwrap()));
        assert!(PackedBundle::allows(5, packed.stages, Form::Graded, packed.payload.len()));
        let lower = packed.limited(StageCount::new(4).unwrap()).unwrap();
        assert_eq!(depths(&lower), [3, 4, 4, 1, 4]);
        assert_eq!((lower.frames_by_stage()[..6].to_vec(), lower.codes()), (vec![5, 4, 4, 3, 0, 0], 16));
        let even = packed.limited(StageCount::ONE).unwrap();
        assert_eq!((even.form, even.payload.len()), (Form::Plain, 7));
        let full = PackedBundle::pack(&graded(0, &[4, 4], 24));
        assert_eq!((full.form, full.stages.value()), (Form::Plain, 4));
    }

    #[test]
    fn peers_that_know_plain_bundles_only_get_every_index() {
        let whole = graded(10, &[3, 8, 8, 1, 5], 24);
        let runs = PackedBundle::pack(&whole).plain_runs().unwrap();
        let shape: Vec<_> = runs.iter().map(|r| (r.first_frame, r.frames, r.stages.value(), r.form)).collect();
        assert_eq!(shape, [(10, 1, 3), (11, 2, 8), (13, 1, 1), (14, 1, 5)].map(|(f, n, s)| (f, n, s, Form::Plain)));
        let codes: Vec<u16> = runs.iter().flat_map(|r| r.unpack().unwrap().codes).collect();
        assert_eq!(codes, whole.by_frame().flatten().copied().collect::<Vec<_>>());
    }

    #[test]
    fn a_background_is_one_frame_for_many() {
        let silent = PackedBundle::background(40, 5, &[1, 2, 3, 4]).unwrap();
        assert_eq!((silent.payload.len(), silent.frames, silent.is_background()), (5, 5, true));
        assert_eq!(silent.unpack().unwrap().codes, [1, 2, 3, 4]);
        let lower = silent.limited(StageCount::new(2).unwrap()).unwrap();
        assert_eq!(lower, PackedBundle::background(40, 5, &[1, 2]).unwrap());
        assert_eq!(silent.frames_by_stage()[..5], [1, 1, 1, 1, 0]);
        assert!(PackedBundle::background(0, 5, &[]).is_err());
        let next = PackedBundle::pack(&graded(45, &[4, 4], 4));
        assert_eq!(silent.joined(&next).unwrap(), None);
    }

    #[test]
    fn bundles_that_follow_each_other_are_joined() {
        let (a, b) = (PackedBundle::pack(&graded(0, &[4, 4], 4)), PackedBundle::pack(&graded(2, &[6, 1], 6)));
        let joined = a.joined(&b).unwrap().unwrap();
        assert_eq!((joined.first_frame, joined.frames, joined.form), (0, 4, Form::Graded));
        assert_eq!(depths(&joined), [4, 4, 6, 1]);
        let later = PackedBundle { first_frame: 3, ..b.clone() };
        assert_eq!(a.joined(&later).unwrap(), None);
        let long = PackedBundle::pack(&graded(2, &[1; 49], 1));
        assert_eq!(a.joined(&long).unwrap(), None);
        let same = PackedBundle::pack(&graded(2, &[4, 4], 4));
        assert_eq!(a.joined(&same).unwrap().unwrap().form, Form::Plain);
    }
}
