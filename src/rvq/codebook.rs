//! Codebooks, laid out for search and for decoding.

use half::f16;
use safetensors::{Dtype, SafeTensors};

use crate::units::MAX_STAGES;

/// Entries side by side in memory: eight AVX2 registers of sums.
pub(super) const BLOCK: usize = 64;

/// Why codebooks cannot be used, or a code cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RvqError {
    /// Sizes that do not fit together or are out of range.
    #[error("codebooks: {what} is {got}, allowed {allowed}")]
    Size {
        /// Which size.
        what: &'static str,
        /// As found.
        got: usize,
        /// What is allowed.
        allowed: String,
    },
    /// An entry holds NaN or infinity.
    #[error("codebooks: value {index} is not finite")]
    NotFinite {
        /// Position in `[stages][entries][dim]`.
        index: usize,
    },
    /// The file is not what it should be.
    #[error("codebooks: {0}")]
    File(String),
    /// An index beyond the codebook.
    #[error("code {code} of stage {stage} out of range, allowed 0 to {last}")]
    Code {
        /// The index.
        code: u16,
        /// Its stage.
        stage: usize,
        /// Largest allowed.
        last: usize,
    },
}

/// Codebooks of all stages.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebooks {
    stages: usize,
    entries: usize,
    dim: usize,
    /// `[stages][entries][dim]`, for decoding.
    rows: Vec<f32>,
    /// `[stages][blocks][dim / 2][BLOCK][2]`: entries as integers, pairs of values of a block's entries side by side, so that a
    /// search reads memory in order.
    blocked: Vec<i16>,
    /// `[stages][blocks * BLOCK]`: half the squared length of each entry in squared units, the largest number where a block is not full.
    half_norms: Vec<i32>,
    /// What one step of the integers stands for, by stage.
    units: Vec<f32>,
}

/// One stage as the search sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct StageView<'a> {
    pub(super) dim: usize,
    pub(super) blocked: &'a [i16],
    pub(super) half_norms: &'a [i32],
    /// What one step of the integers stands for.
    pub(super) unit: f32,
    /// Largest integer that a residual may have.
    pub(super) most: f32,
    pub(super) entries: usize,
}

/// Residuals are allowed to be so many times larger than the largest value of a stage before they are taken more coarsely.
const HEADROOM: usize = 4;

/// Largest value of an entry as an integer. Products with residuals and half norms of `dim` values add up in 32 bits.
fn largest(dim: usize) -> f64 {
    (f64::from(i32::MAX) / ((HEADROOM as f64 + 0.5) * dim as f64))
        .sqrt()
        .min(f64::from(i16::MAX / HEADROOM as i16))
        .floor()
        - 1.0
}

impl Codebooks {
    /// `data` is `[stages][entries][dim]`.
    ///
    /// # Errors
    /// [`RvqError::Size`] unless 1 to 24 stages, 2 to 1024 entries and a dimension of 8 to 512 that is a
    /// multiple of 8; [`RvqError::NotFinite`].
    pub fn new(data: Vec<f32>, stages: usize, entries: usize, dim: usize) -> Result<Self, RvqError> {
        let check = |what, got, fits, allowed: &str| {
            if fits { Ok(()) } else { Err(RvqError::Size { what, got, allowed: allowed.to_owned() }) }
        };
        check("number of stages", stages, (1..=usize::from(MAX_STAGES)).contains(&stages), "1 to 24")?;
        check("number of entries", entries, (2..=1024).contains(&entries), "2 to 1024")?;
        check("dimension", dim, (8..=512).contains(&dim) && dim.is_multiple_of(8), "8 to 512, a multiple of 8")?;
        let wanted = stages * entries * dim;
        check("number of values", data.len(), data.len() == wanted, &wanted.to_string())?;
        if let Some(index) = data.iter().position(|v| !v.is_finite()) {
            return Err(RvqError::NotFinite { index });
        }
        let (blocks, largest) = (entries.div_ceil(BLOCK), largest(dim));
        let mut blocked = vec![0; stages * blocks * dim * BLOCK];
        let mut half_norms = vec![i32::MAX; stages * blocks * BLOCK];
        let mut units = Vec::with_capacity(stages);
        for (stage, book) in data.chunks_exact(entries * dim).enumerate() {
            let most = book.iter().fold(f32::MIN_POSITIVE, |most, v| most.max(v.abs()));
            let unit = f64::from(most) / largest;
            for (k, entry) in book.chunks_exact(dim).enumerate() {
                let power = entry.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
                half_norms[stage * blocks * BLOCK + k] = (0.5 * power / (unit * unit)).round() as i32;
                let block = (stage * blocks + k / BLOCK) * dim * BLOCK;
                for (d, &v) in entry.iter().enumerate() {
                    blocked[block + d / 2 * 2 * BLOCK + k % BLOCK * 2 + d % 2] = (f64::from(v) / unit).round() as i16;
                }
            }
            units.push(unit as f32);
        }
        Ok(Self { stages, entries, dim, rows: data, blocked, half_norms, units })
    }

    /// Reads tensor `codebooks` `[stages, entries, dim]`, floats of 32 or 16 bits, from a safetensors file.
    ///
    /// # Errors
    /// [`RvqError::File`] and those of [`Codebooks::new`].
    pub fn from_safetensors(bytes: &[u8], stages: usize, entries: usize, dim: usize) -> Result<Self, RvqError> {
        let file = |reason: String| RvqError::File(reason);
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| file(e.to_string()))?;
        let tensor = tensors.tensor("codebooks").map_err(|e| file(e.to_string()))?;
        let data: Vec<f32> = match tensor.dtype() {
            _ if tensor.shape() != [stages, entries, dim] => {
                return Err(file(format!(
                    "tensor is {:?}, the manifest says [{stages}, {entries}, {dim}]",
                    tensor.shape()
                )));
            }
            Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => tensor.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => return Err(file(format!("tensor is {other:?}, allowed F32, F16"))),
        };
        Self::new(data, stages, entries, dim)
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.stages
    }

    /// Entries of a stage.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Width of a latent.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All entries, `[stages][entries][dim]`.
    pub fn values(&self) -> &[f32] {
        &self.rows
    }

    /// Root mean square of the first stage's entries: about the size of the latents.
    pub fn scale(&self) -> f32 {
        let first = &self.rows[..self.entries * self.dim];
        (first.iter().map(|v| v * v).sum::<f32>() / first.len() as f32).sqrt()
    }

    /// Copies entry `code` of a stage to `out` `[dim]`.
    ///
    /// # Errors
    /// [`RvqError::Code`] beyond the codebooks.
    pub(super) fn entry_into(&self, stage: usize, code: u16, out: &mut [f32]) -> Result<(), RvqError> {
        let last = self.entries - 1;
        if stage >= self.stages || usize::from(code) > last {
            return Err(RvqError::Code { code, stage, last });
        }
        out.copy_from_slice(self.entry(stage, usize::from(code)));
        Ok(())
    }

    /// Entry `[dim]` of a stage; both must be in range.
    pub(super) fn entry(&self, stage: usize, code: usize) -> &[f32] {
        let at = (stage * self.entries + code) * self.dim;
        &self.rows[at..at + self.dim]
    }

    pub(super) fn stage(&self, stage: usize) -> StageView<'_> {
        let blocks = self.entries.div_ceil(BLOCK);
        let (b, n) = (blocks * self.dim * BLOCK, blocks * BLOCK);
        StageView {
            dim: self.dim,
            blocked: &self.blocked[stage * b..(stage + 1) * b],
            half_norms: &self.half_norms[stage * n..(stage + 1) * n],
            unit: self.units[stage],
            most: (HEADROOM as f64 * largest(self.dim)) as f32,
            entries: self.entries,
        }
    }

    /// Sum of the entries that `codes` name, one a stage from the first on, into `out` `[dim]`.
    ///
    /// # Errors
    /// [`RvqError::Code`], and [`RvqError::Size`] for more codes than stages or an `out` of another width.
    pub fn decode_into(&self, codes: &[u16], out: &mut [f32]) -> Result<(), RvqError> {
        if codes.len() > self.stages {
            let allowed = format!("0 to {}", self.stages);
            return Err(RvqError::Size { what: "number of codes", got: codes.len(), allowed });
        }
        if out.len() != self.dim {
            let allowed = self.dim.to_string();
            return Err(RvqError::Size { what: "width of a latent", got: out.len(), allowed });
        }
        out.fill(0.0);
        for (stage, &code) in codes.iter().enumerate() {
            if usize::from(code) >= self.entries {
                return Err(RvqError::Code { code, stage, last: self.entries - 1 });
            }
            for (o, v) in out.iter_mut().zip(self.entry(stage, usize::from(code))) {
                *o += v;
            }
        }
        Ok(())
    }
}
