//! Finding codes: greedy, or the M-algorithm (beam) over stages.

use std::sync::Arc;

use super::simd::{self, Survivor};
use super::{Codebooks, RvqError, SimdLevel};
use crate::beam::{Candidate, Candidates};
use crate::units::{MAX_STAGES, OutOfRange, StageCount};

/// Partial sums kept from stage to stage, 1 to 16; 1 is the greedy search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeamWidth(u8);

impl BeamWidth {
    /// One partial sum.
    pub const GREEDY: Self = Self(1);

    /// Four, for live streams that have a core of their own.
    pub const FOUR: Self = Self(4);

    /// Sixteen, for files.
    pub const WIDEST: Self = Self(16);

    ///
    /// # Errors
    /// `OutOfRange` unless 1 to 16.
    pub fn new(width: u8) -> Result<Self, OutOfRange> {
        if (1..=16).contains(&width) {
            Ok(Self(width))
        } else {
            Err(OutOfRange { what: "beam", got: width.to_string(), allowed: "1 to 16" })
        }
    }

    /// The width as a plain number.
    pub fn value(self) -> usize {
        usize::from(self.0)
    }
}

/// Frames that are searched together, so that a codebook is read once for all of them.
const GROUP: usize = 8;

/// A frame to find codes for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Its latent `[dim]`; values that are not finite count as 0.
    pub latent: &'a [f32],
    /// Result: a code for each stage that it shall have, 1 to all stages.
    pub codes: &'a mut [u16],
}

/// Searches codes for latents; owns its buffers, so a search allocates nothing.
///
/// Multistage search with several survivors: the M-algorithm (Jelinek and Anderson 1971), as used for residual
/// quantisers by Chan, Gupta and Gersho (1992).
#[derive(Debug)]
pub struct Searcher {
    books: Arc<Codebooks>,
    beam: usize,
    level: SimdLevel,
    frames: Vec<Survivors>,
    lists: Vec<Candidates>,
    survivors: Vec<Survivor>,
    /// Residuals of the survivors as the scan takes them `[survivors][dim / 2]`.
    pairs: Vec<i32>,
}

/// The survivors of one frame, best first.
#[derive(Debug, Clone)]
struct Survivors {
    alive: usize,
    /// Residuals `[beam][dim]` of the survivors, and of the next ones.
    residuals: Vec<f32>,
    next_residuals: Vec<f32>,
    /// Squared lengths of the residuals.
    errors: Vec<f32>,
    /// Codes `[beam][MAX_STAGES]`.
    codes: Vec<u16>,
    next_codes: Vec<u16>,
}

impl Searcher {
    /// A searcher for one thread.
    pub fn new(books: Arc<Codebooks>, beam: BeamWidth, level: SimdLevel) -> Self {
        let (width, dim, stages) = (beam.value(), books.dim(), usize::from(MAX_STAGES));
        let frame = Survivors {
            alive: 0,
            residuals: vec![0.0; width * dim],
            next_residuals: vec![0.0; width * dim],
            errors: vec![0.0; width],
            codes: vec![0; width * stages],
            next_codes: vec![0; width * stages],
        };
        Self {
            beam: width,
            level,
            frames: vec![frame; GROUP],
            lists: (0..GROUP).map(|_| Candidates::new(width)).collect(),
            survivors: Vec::with_capacity(GROUP * width),
            pairs: vec![0; GROUP * width * dim / 2],
            books,
        }
    }

    /// Codes `[stages]` for one latent `[dim]`. Values that are not finite count as 0.
    ///
    /// # Errors
    /// [`RvqError::Size`] when the latent, the stages or `codes` do not fit the codebooks.
    pub fn encode_into(&mut self, latent: &[f32], stages: StageCount, codes: &mut [u16]) -> Result<(), RvqError> {
        let wanted = stages.index();
        check("number of codes", codes.len(), codes.len() == wanted, || wanted.to_string())?;
        self.encode([Wanted { latent, codes }])
    }

    /// Codes for frames of one or several streams; each gets those that it would get alone.
    ///
    /// # Errors
    /// [`RvqError::Size`] when a latent or the number of codes does not fit the codebooks.
    pub fn encode<'a>(&mut self, wanted: impl IntoIterator<Item = Wanted<'a>>) -> Result<(), RvqError> {
        let (dim, stages) = (self.books.dim(), self.books.stages());
        let mut wanted = wanted.into_iter().fuse();
        loop {
            let mut group: [Option<Wanted<'a>>; GROUP] = std::array::from_fn(|_| wanted.next());
            for w in group.iter().flatten() {
                check("width of a latent", w.latent.len(), w.latent.len() == dim, || dim.to_string())?;
                let count = w.codes.len();
                let fits = (1..=stages).contains(&count);
                check("number of stages", count, fits, || format!("1 to {stages}"))?;
            }
            let Some(most) = group.iter().flatten().map(|w| w.codes.len()).max() else { return Ok(()) };
            self.begin(group.iter().flatten().map(|w| w.latent));
            for stage in 0..most {
                self.step(stage, |frame| group[frame].as_ref().is_some_and(|w| w.codes.len() > stage));
            }
            for (w, found) in group.iter_mut().flatten().zip(&self.frames) {
                w.codes.copy_from_slice(&found.codes[..w.codes.len()]);
            }
        }
    }

    /// Codes for latents `[T * dim]` at every number of stages, each as [`Searcher::encode_into`] finds them, in one search.
    ///
    /// # Errors
    /// [`RvqError::Size`] when the latents are no whole number of frames.
    pub fn ladder(&mut self, latents: &[f32]) -> Result<Ladder, RvqError> {
        let (dim, stages) = (self.books.dim(), self.books.stages());
        let whole = latents.len().is_multiple_of(dim);
        check("number of latent values", latents.len(), whole, || format!("a multiple of {dim}"))?;
        let mut codes = vec![0; latents.len() / dim * rungs(stages)];
        for (latents, codes) in latents.chunks(GROUP * dim).zip(codes.chunks_mut(GROUP * rungs(stages))) {
            self.begin(latents.chunks_exact(dim));
            for stage in 0..stages {
                self.step(stage, |_| true);
                for (codes, found) in codes.chunks_exact_mut(rungs(stages)).zip(&self.frames) {
                    codes[rungs(stage)..][..=stage].copy_from_slice(&found.codes[..=stage]);
                }
            }
        }
        Ok(Ladder { stages, codes })
    }

    /// Starts a search for up to [`GROUP`] latents.
    fn begin<'a>(&mut self, latents: impl Iterator<Item = &'a [f32]>) {
        self.frames.iter_mut().for_each(|f| f.alive = 0);
        for (frame, latent) in self.frames.iter_mut().zip(latents) {
            for (r, &x) in frame.residuals.iter_mut().zip(latent) {
                *r = if x.is_finite() { x } else { 0.0 };
            }
            frame.errors[0] = frame.residuals[..latent.len()].iter().map(|v| v * v).sum();
            frame.alive = 1;
        }
    }

    /// Adds a stage to the survivors of the frames that go on.
    fn step(&mut self, stage: usize, goes_on: impl Fn(usize) -> bool) {
        let (dim, view) = (self.books.dim(), self.books.stage(stage));
        self.survivors.clear();
        let mut pairs = self.pairs.chunks_exact_mut(dim / 2);
        let going = |&(i, f): &(usize, &Survivors)| f.alive > 0 && goes_on(i);
        for (frame, survivors) in self.frames.iter().enumerate().filter(going) {
            self.lists[frame].clear();
            let residuals = survivors.residuals.chunks_exact(dim).zip(&survivors.errors).take(survivors.alive);
            for ((parent, (residual, &error)), pairs) in (0..).zip(residuals).zip(&mut pairs) {
                let shift = simd::integers(self.level, view, residual, pairs);
                self.survivors.push(Survivor { frame, parent, error, shift });
            }
        }
        simd::scan(self.level, view, &self.survivors, &self.pairs, &mut self.lists);
        for group in self.survivors.chunk_by(|a, b| a.frame == b.frame) {
            let frame = group[0].frame;
            self.frames[frame].extend(&self.books, stage, self.lists[frame].found(), self.beam);
        }
    }
}

fn check(what: &'static str, got: usize, fits: bool, allowed: impl FnOnce() -> String) -> Result<(), RvqError> {
    if fits { Ok(()) } else { Err(RvqError::Size { what, got, allowed: allowed() }) }
}

impl Survivors {
    /// Puts the candidates that were found for a stage in place of the survivors.
    fn extend(&mut self, books: &Codebooks, stage: usize, found: &[Candidate], beam: usize) {
        let (dim, row) = (books.dim(), usize::from(MAX_STAGES));
        for (i, c) in found.iter().enumerate() {
            let parent = usize::from(c.parent);
            let from = &self.residuals[parent * dim..(parent + 1) * dim];
            let to = &mut self.next_residuals[i * dim..(i + 1) * dim];
            let mut error = 0.0;
            for ((t, f), e) in to.iter_mut().zip(from).zip(books.entry(stage, usize::from(c.entry))) {
                *t = f - e;
                error += *t * *t;
            }
            self.errors[i] = error;
            self.next_codes[i * row..i * row + stage].copy_from_slice(&self.codes[parent * row..parent * row + stage]);
            self.next_codes[i * row + stage] = c.entry;
        }
        self.alive = found.len().min(beam);
        std::mem::swap(&mut self.residuals, &mut self.next_residuals);
        std::mem::swap(&mut self.codes, &mut self.next_codes);
    }
}

/// Codes of some frames at every number of stages: a recording is searched once and then tried at any rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    stages: usize,
    /// By frame and number of stages, 1, 2, ... codes.
    codes: Vec<u16>,
}

/// Codes of a frame at all numbers of stages up to `stages`.
const fn rungs(stages: usize) -> usize {
    stages * (stages + 1) / 2
}

impl Ladder {
    /// Frames in it.
    pub fn frames(&self) -> usize {
        self.codes.len() / rungs(self.stages)
    }

    /// Codes of a frame with so many stages; None if it has no such frame or number of stages.
    pub fn codes(&self, frame: usize, stages: StageCount) -> Option<&[u16]> {
        let stages = stages.index();
        if stages > self.stages {
            return None;
        }
        let at = frame * rungs(self.stages) + rungs(stages - 1);
        self.codes.get(at..at + stages)
    }

    /// Appends the frames of another of the same codebooks.
    pub fn append(&mut self, other: &Self) {
        assert_eq!(self.stages, other.stages, "ladders of the same codebooks");
        self.codes.extend_from_slice(&other.codes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIM: usize = 16;
    const ENTRIES: usize = 100;
    const STAGES: usize = 5;

    fn noise(seed: u64, n: usize) -> Vec<f32> {
        let mut x = seed | 1;
        std::iter::repeat_with(move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .take(n)
        .collect()
    }

    fn books(seed: u64) -> Arc<Codebooks> {
        let mut data = noise(seed, STAGES * ENTRIES * DIM);
        for (i, v) in data.iter_mut().enumerate() {
            *v *= 0.6f32.powi((i / (ENTRIES * DIM)) as i32);
        }
        Arc::new(Codebooks::new(data, STAGES, ENTRIES, DIM).unwrap())
    }

    fn encode(books: &Arc<Codebooks>, beam: u8, level: SimdLevel, x: &[f32], stages: u8) -> Vec<u16> {
        let mut codes = vec![0; usize::from(stages)];
        let mut s = Searcher::new(Arc::clone(books), BeamWidth::new(beam).unwrap(), level);
        s.encode_into(x, StageCount::new(stages).unwrap(), &mut codes).unwrap();
        codes
    }

    fn error(books: &Codebooks, codes: &[u16], x: &[f32]) -> f32 {
        let mut y = vec![0.0; DIM];
        books.decode_into(codes, &mut y).unwrap();
        x.iter().zip(&y).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    #[test]
    fn greedy_takes_the_nearest_entry_of_each_stage() {
        let books = books(3);
        for seed in 1..200 {
            let x = noise(seed, DIM);
            let mut r: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let codes = encode(&books, 1, SimdLevel::Scalar, &x, STAGES as u8);
            for (stage, &code) in codes.iter().enumerate() {
                let distance = |k: usize| -> f64 {
                    r.iter().zip(books.entry(stage, k)).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum()
                };
                let least = (0..ENTRIES).map(distance).fold(f64::INFINITY, f64::min);
                // Straight from the definition in double precision, up to what integers cannot tell apart.
                let taken = distance(usize::from(code));
                assert!(taken <= least * 1.002, "seed {seed} stage {stage}: {taken}, least {least}");
                r.iter_mut().zip(books.entry(stage, usize::from(code))).for_each(|(a, &b)| *a -= f64::from(b));
            }
        }
    }

    #[test]
    fn frames_searched_together_get_what_they_get_alone() {
        let books = books(9);
        let latents = noise(13, 21 * DIM);
        let counts: Vec<u8> = (0..21).map(|i| 1 + (i * 7 % STAGES) as u8).collect();
        let mut codes: Vec<Vec<u16>> = counts.iter().map(|&n| vec![0; usize::from(n)]).collect();
        let wanted = latents.chunks_exact(DIM).zip(&mut codes).map(|(latent, codes)| Wanted { latent, codes });
        let mut s = Searcher::new(Arc::clone(&books), BeamWidth::new(3).unwrap(), SimdLevel::detect());
        s.encode(wanted).unwrap();
        for ((x, codes), &n) in latents.chunks_exact(DIM).zip(&codes).zip(&counts) {
            assert_eq!(*codes, encode(&books, 3, SimdLevel::detect(), x, n));
        }
        assert!(s.encode([Wanted { latent: &latents[..DIM], codes: &mut [] }]).is_err());
    }

    #[test]
    fn a_wider_beam_is_closer_and_more_stages_are_closer() {
        let books = books(5);
        let (mut greedy, mut beam, mut by_stage) = (0.0, 0.0, [0.0f32; STAGES]);
        for seed in 1..200 {
            let x = noise(seed, DIM);
            greedy += error(&books, &encode(&books, 1, SimdLevel::detect(), &x, 5), &x);
            beam += error(&books, &encode(&books, 8, SimdLevel::detect(), &x, 5), &x);
            for (s, sum) in (1..).zip(&mut by_stage) {
                *sum += error(&books, &encode(&books, 4, SimdLevel::detect(), &x, s), &x);
            }
        }
        assert!(beam < 0.9 * greedy, "beam {beam}, greedy {greedy}");
        assert!(by_stage.is_sorted_by(|a, b| a > b), "{by_stage:?}");
    }

    #[test]
    fn a_ladder_holds_what_each_number_of_stages_finds() {
        let books = books(7);
        let latents = noise(11, 9 * DIM);
        for beam in [1, 4, 16] {
            let mut s = Searcher::new(Arc::clone(&books), BeamWidth::new(beam).unwrap(), SimdLevel::detect());
            let ladder = s.ladder(&latents).unwrap();
            assert_eq!(ladder.frames(), 9);
            for (frame, x) in latents.chunks_exact(DIM).enumerate() {
                for stages in 1..=STAGES as u8 {
                    let want = encode(&books, beam, SimdLevel::detect(), x, stages);
                    assert_eq!(ladder.codes(frame, StageCount::new(stages).unwrap()), Some(&want[..]));
                }
            }
            assert!(ladder.codes(9, StageCount::new(1).unwrap()).is_none());
            assert!(ladder.codes(0, StageCount::new(6).unwrap()).is_none());
            assert!(s.ladder(&latents[1..]).is_err());
        }
    }

    #[test]
    fn wrong_sizes_and_codes_are_errors() {
        let books = books(1);
        let mut s = Searcher::new(Arc::clone(&books), BeamWidth::GREEDY, SimdLevel::Scalar);
        let five = StageCount::new(5).unwrap();
        assert!(s.encode_into(&[0.0; 15], five, &mut [0; 5]).is_err());
        assert!(s.encode_into(&[0.0; 16], five, &mut [0; 4]).is_err());
        assert!(s.encode_into(&[0.0; 16], StageCount::new(6).unwrap(), &mut [0; 6]).is_err());
        let e = books.decode_into(&[0, 100], &mut [0.0; 16]).unwrap_err().to_string();
        assert!(e.contains("100") && e.contains("0 to 99"), "{e}");
        assert!(Codebooks::new(vec![f32::NAN; 2 * 8], 1, 2, 8).is_err());
        assert!(Codebooks::new(vec![0.0; 9 * 2], 1, 2, 9).is_err());
        assert!(BeamWidth::new(0).is_err() && BeamWidth::new(17).is_err());
        for bytes in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\x02\0\0\0\0\0\0\0{}"] {
            assert!(Codebooks::from_safetensors(bytes, 1, 2, 8).is_err());
        }
    }

    proptest! {
        #[test]
        fn every_level_finds_what_the_scalar_code_finds(
            seed in any::<u64>(),
            beam in 1u8..=16,
            stages in 1u8..=5,
            odd in prop::option::of(prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::MAX, -0.0])),
        ) {
            let books = books(seed);
            let mut x = noise(seed ^ 0x5555, DIM);
            if let Some(v) = odd {
                x[3] = v;
            }
            let want = encode(&books, beam, SimdLevel::Scalar, &x, stages);
            for level in SimdLevel::available() {
                prop_assert_eq!(&encode(&books, beam, level, &x, stages), &want);
            }
        }
    }
}
