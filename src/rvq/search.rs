//! Finding codes: greedy, or the M-algorithm (beam) over stages.

use std::sync::Arc;

use super::simd;
use super::{Codebooks, RvqError, SimdLevel};
use crate::sampling::beam::Candidates;
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

    /// Errors: `OutOfRange` unless 1 to 16.
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

/// Searches codes for latents; owns its buffers, so a search allocates nothing.
///
/// Multistage search with several survivors: the M-algorithm (Jelinek and Anderson 1971), as used for residual
/// quantisers by Chan, Gupta and Gersho (1992).
#[derive(Debug)]
pub struct Searcher {
    books: Arc<Codebooks>,
    beam: usize,
    level: SimdLevel,
    /// Residuals `[beam][dim]` of the survivors, and of the next ones.
    residuals: Vec<f32>,
    next_residuals: Vec<f32>,
    /// Squared lengths of the residuals.
    errors: Vec<f32>,
    /// Codes `[beam][MAX_STAGES]`.
    codes: Vec<u16>,
    next_codes: Vec<u16>,
    candidates: Candidates,
}

impl Searcher {
    /// A searcher for one thread.
    pub fn new(books: Arc<Codebooks>, beam: BeamWidth, level: SimdLevel) -> Self {
        let (width, dim, stages) = (beam.value(), books.dim(), usize::from(MAX_STAGES));
        Self {
            beam: width,
            level,
            residuals: vec![0.0; width * dim],
            next_residuals: vec![0.0; width * dim],
            errors: vec![0.0; width],
            codes: vec![0; width * stages],
            next_codes: vec![0; width * stages],
            candidates: Candidates::new(width),
            books,
        }
    }

    /// Codes `[stages]` for one latent `[dim]`. Values that are not finite count as 0.
    ///
    /// Errors: [`RvqError::Size`] when the latent, the stages or `codes` do not fit the codebooks.
    pub fn encode_into(&mut self, latent: &[f32], stages: StageCount, codes: &mut [u16]) -> Result<(), RvqError> {
        let (dim, wanted) = (self.books.dim(), stages.index());
        let check = |what, got: usize, fits: bool, allowed: usize| {
            if fits { Ok(()) } else { Err(RvqError::Size { what, got, allowed: allowed.to_string() }) }
        };
        check("width of a latent", latent.len(), latent.len() == dim, dim)?;
        check("number of stages", wanted, wanted <= self.books.stages(), self.books.stages())?;
        check("number of codes", codes.len(), codes.len() == wanted, wanted)?;
        let mut alive = self.begin(latent);
        for stage in 0..wanted {
            alive = self.step(stage, alive);
        }
        codes.copy_from_slice(&self.codes[..wanted]);
        Ok(())
    }

    /// Codes for latents `[T * dim]` at every number of stages, each as [`Searcher::encode_into`] finds them, in one search.
    ///
    /// Errors: [`RvqError::Size`] when the latents are no whole number of frames.
    pub fn ladder(&mut self, latents: &[f32]) -> Result<Ladder, RvqError> {
        let (dim, stages) = (self.books.dim(), self.books.stages());
        if !latents.len().is_multiple_of(dim) {
            let allowed = format!("a multiple of {dim}");
            return Err(RvqError::Size { what: "number of latent values", got: latents.len(), allowed });
        }
        let mut codes = Vec::with_capacity(latents.len() / dim * rungs(stages));
        for latent in latents.chunks_exact(dim) {
            let mut alive = self.begin(latent);
            for stage in 0..stages {
                alive = self.step(stage, alive);
                codes.extend_from_slice(&self.codes[..=stage]);
            }
        }
        Ok(Ladder { stages, codes })
    }

    /// Starts a search; returns the number of survivors.
    fn begin(&mut self, latent: &[f32]) -> usize {
        for (r, &x) in self.residuals.iter_mut().zip(latent) {
            *r = if x.is_finite() { x } else { 0.0 };
        }
        self.errors[0] = self.residuals[..latent.len()].iter().map(|v| v * v).sum();
        1
    }

    /// Adds a stage to the survivors, best first; returns their number.
    fn step(&mut self, stage: usize, alive: usize) -> usize {
        let (dim, row) = (self.books.dim(), usize::from(MAX_STAGES));
        let view = self.books.stage(stage);
        self.candidates.clear();
        simd::scan(self.level, view, &self.residuals[..alive * dim], &self.errors[..alive], &mut self.candidates);
        let found = self.candidates.found();
        for (i, c) in found.iter().enumerate() {
            let (parent, entry) = (usize::from(c.parent), usize::from(c.entry));
            let from = &self.residuals[parent * dim..(parent + 1) * dim];
            let to = &mut self.next_residuals[i * dim..(i + 1) * dim];
            let mut error = 0.0;
            for ((t, f), e) in to.iter_mut().zip(from).zip(self.books.entry(stage, entry)) {
                *t = f - e;
                error += *t * *t;
            }
            self.errors[i] = error;
            self.next_codes[i * row..i * row + stage].copy_from_slice(&self.codes[parent * row..parent * row + stage]);
            self.next_codes[i * row + stage] = c.entry;
        }
        let alive = found.len().min(self.beam);
        std::mem::swap(&mut self.residuals, &mut self.next_residuals);
        std::mem::swap(&mut self.codes, &mut self.next_codes);
        alive
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

    /// Straight from the definition, in double precision.
    fn greedy_by_definition(books: &Codebooks, x: &[f32]) -> Vec<u16> {
        let mut r: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        (0..STAGES)
            .map(|stage| {
                let distance = |k: &usize| -> f64 {
                    r.iter().zip(books.entry(stage, *k)).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum()
                };
                let best = (0..ENTRIES).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
                r.iter_mut().zip(books.entry(stage, best)).for_each(|(a, &b)| *a -= f64::from(b));
                best as u16
            })
            .collect()
    }

    #[test]
    fn greedy_is_the_nearest_entry_of_each_stage() {
        let books = books(3);
        for seed in 1..200 {
            let x = noise(seed, DIM);
            assert_eq!(encode(&books, 1, SimdLevel::Scalar, &x, STAGES as u8), greedy_by_definition(&books, &x));
        }
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
