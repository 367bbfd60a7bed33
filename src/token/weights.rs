//! Reading a token model file and checking everything that the arithmetic relies on.

use std::collections::HashMap;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::TokenError;
use super::linear::Linear;
use super::math::Tables;
use crate::rvq::Codebooks;
use crate::units::{MAX_STAGES, ModelId};

/// Sizes of a token model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenShape {
    /// Values of a frame inside the transformer.
    pub width: usize,
    /// Layers of the transformer.
    pub layers: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Hidden values of a layer.
    pub hidden: usize,
    /// Frames a frame can see, itself included.
    pub window: usize,
    /// Hidden values of the depth network.
    pub depth_hidden: usize,
    /// Values from which the logits of a stage are formed.
    pub rank: usize,
    /// First stage whose depth network is smaller: there is less to predict.
    pub late: usize,
    /// As `depth_hidden`, for late stages.
    pub late_hidden: usize,
    /// As `rank`, for late stages.
    pub late_rank: usize,
    /// Stages.
    pub stages: usize,
    /// Entries of a stage.
    pub entries: usize,
    /// Values of a latent.
    pub latent: usize,
}

impl TokenShape {
    /// Hidden values and rank of a stage's depth network.
    pub fn depth_size(&self, stage: usize) -> (usize, usize) {
        if stage < self.late { (self.depth_hidden, self.rank) } else { (self.late_hidden, self.late_rank) }
    }
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) qkv: Linear,
    pub(super) mix: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

#[derive(Debug)]
pub(super) struct Depth {
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) skip: Linear,
    pub(super) table: Linear,
}

/// A token model bound to the codebooks of its codec model.
#[derive(Debug)]
pub struct TokenModel {
    id: [u8; 8],
    pub(super) shape: TokenShape,
    pub(super) tables: Tables,
    pub(super) inp: Linear,
    pub(super) count: Vec<i32>,
    pub(super) start: Vec<i32>,
    pub(super) slopes: Vec<i32>,
    pub(super) score: i64,
    pub(super) layers: Vec<Layer>,
    pub(super) depth: Vec<Depth>,
    /// Codebooks with 10 fractional bits after division by 16, `[stages][entries][latent]`.
    pub(super) books: Vec<i32>,
    /// Codes of the golden example, and their ranges as the recipe has computed them.
    pub(super) golden: (Vec<u16>, Vec<(u32, u32)>),
    pub(super) golden_stages: usize,
}

/// Most inputs of a product: more could overflow a 32-bit sum.
const MAX_INPUTS: usize = 512;

struct Tensors<'a> {
    tensors: SafeTensors<'a>,
}

impl Tensors<'_> {
    fn get(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], TokenError> {
        let error = |reason: String| TokenError::Tensor { name: name.to_owned(), reason };
        let t = self.tensors.tensor(name).map_err(|e| error(e.to_string()))?;
        if t.dtype() != dtype || t.shape() != shape {
            return Err(error(format!("is {:?} {:?}, expected {dtype:?} {shape:?}", t.dtype(), t.shape())));
        }
        Ok(t.data())
    }

    fn i32s(&self, name: &str, shape: &[usize], most: i32) -> Result<Vec<i32>, TokenError> {
        let data = self.get(name, Dtype::I32, shape)?;
        let values: Vec<i32> = data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        match values.iter().find(|&&v| v.checked_abs().is_none_or(|a| a > most)) {
            Some(v) => Err(TokenError::Tensor {
                name: name.to_owned(),
                reason: format!("value {v} out of range, allowed -{most} to {most}"),
            }),
            None => Ok(values),
        }
    }

    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear, TokenError> {
        let weight = self.get(&format!("{name}.weight"), Dtype::I8, &[outputs, inputs])?;
        if let Some(at) = weight.iter().position(|&b| b == 0x80) {
            let reason = format!("weight {at} is -128, allowed -127 to 127");
            return Err(TokenError::Tensor { name: name.to_owned(), reason });
        }
        let weight: Vec<i8> = weight.iter().map(|&b| b as i8).collect();
        let factor = self.i32s(&format!("{name}.factor"), &[outputs], 1 << 24)?;
        Ok(Linear::new(inputs, &weight, factor, self.i32s(&format!("{name}.bias"), &[outputs], 1 << 24)?))
    }
}

fn shape_of(meta: &HashMap<String, String>) -> Result<TokenShape, TokenError> {
    let number = |key: &str, low: usize, high: usize| -> Result<usize, TokenError> {
        let text = meta.get(key).ok_or_else(|| TokenError::File(format!("no \"{key}\" in its metadata")))?;
        match text.parse::<usize>() {
            Ok(v) if (low..=high).contains(&v) => Ok(v),
            _ => Err(TokenError::File(format!("{key} = {text}, allowed {low} to {high}"))),
        }
    };
    if meta.get("format").map(String::as_str) != Some("1") {
        return Err(TokenError::File(format!("format {:?}, allowed 1", meta.get("format"))));
    }
    // Models of before there were late stages do not mention them.
    let has_late = meta.contains_key("late");
    let shape = TokenShape {
        width: number("width", 8, 384)?,
        layers: number("layers", 1, 16)?,
        heads: number("heads", 1, 16)?,
        hidden: number("hidden", 8, MAX_INPUTS)?,
        window: number("window", 1, 1024)?,
        depth_hidden: number("depth_hidden", 8, MAX_INPUTS)?,
        rank: number("rank", 1, MAX_INPUTS)?,
        late: if has_late { number("late", 0, usize::from(MAX_STAGES))? } else { usize::from(MAX_STAGES) },
        late_hidden: if has_late { number("late_hidden", 8, MAX_INPUTS)? } else { 8 },
        late_rank: if has_late { number("late_rank", 1, MAX_INPUTS)? } else { 1 },
        stages: number("stages", 1, usize::from(MAX_STAGES))?,
        entries: number("entries", 2, 1024)?,
        latent: number("latent", 8, 128)?,
    };
    if !shape.width.is_multiple_of(shape.heads) {
        return Err(TokenError::File(format!("width {} is not a multiple of {} heads", shape.width, shape.heads)));
    }
    // Scores are sums of products of 12-bit numbers.
    if shape.width / shape.heads > 96 {
        return Err(TokenError::File(format!("{} values a head, allowed at most 96", shape.width / shape.heads)));
    }
    Ok(shape)
}

impl TokenModel {
    /// Reads a token model without running its golden example.
    pub(super) fn read(bytes: &[u8], codec: ModelId, codebooks: &Codebooks) -> Result<Self, TokenError> {
        let file = |e: &dyn std::fmt::Display| TokenError::File(e.to_string());
        let (_, head) = SafeTensors::read_metadata(bytes).map_err(|e| file(&e))?;
        let none = HashMap::new();
        let meta = head.metadata().as_ref().unwrap_or(&none);
        let shape = shape_of(meta)?;
        let digest = Sha256::digest(bytes);
        let id: [u8; 8] = std::array::from_fn(|i| digest[i]);
        let made_for = meta.get("codec").cloned().unwrap_or_default();
        if made_for != codec.to_string() {
            return Err(TokenError::Codec { token: HEXLOWER.encode(&id), made_for, codec: codec.to_string() });
        }
        let r = Tensors { tensors: SafeTensors::deserialize(bytes).map_err(|e| file(&e))? };
        let s = &shape;
        let books = books(s, codebooks)?;
        let layer = |i: usize| -> Result<Layer, TokenError> {
            Ok(Layer {
                qkv: r.linear(&format!("layers.{i}.qkv"), s.width, 3 * s.width)?,
                mix: r.linear(&format!("layers.{i}.mix"), s.width, s.width)?,
                up: r.linear(&format!("layers.{i}.up"), s.width, s.hidden)?,
                down: r.linear(&format!("layers.{i}.down"), s.hidden, s.width)?,
            })
        };
        let depth = |k: usize| -> Result<Depth, TokenError> {
            let (hidden, rank) = s.depth_size(k);
            Ok(Depth {
                up: r.linear(&format!("depth.{k}.up"), s.width + s.latent, hidden)?,
                down: r.linear(&format!("depth.{k}.down"), hidden, rank)?,
                skip: r.linear(&format!("depth.{k}.skip"), s.width + s.latent, rank)?,
                table: r.linear(&format!("depth.{k}.table"), rank, s.entries)?,
            })
        };
        let gelu = r.get("gelu", Dtype::I16, &[2048])?;
        let exp2 = r.i32s("exp2", &[1024], 1 << 21)?;
        if exp2.iter().any(|&v| v < 1 << 20) || exp2.first() != Some(&(1 << 20)) {
            return Err(TokenError::Tensor { name: "exp2".to_owned(), reason: "not 2^20 to 2^21".to_owned() });
        }
        let golden = golden(&r, &shape)?;
        Ok(Self {
            id,
            tables: Tables { gelu: gelu.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect(), exp2 },
            inp: r.linear("inp", 3 * s.latent, s.width)?,
            count: r.i32s("count", &[s.stages, s.width], 1 << 24)?,
            start: r.i32s("start", &[s.width], 1 << 24)?,
            slopes: r.i32s("slopes", &[s.heads], 1 << 20)?,
            score: score(s),
            layers: (0..s.layers).map(layer).collect::<Result<_, _>>()?,
            depth: (0..s.stages).map(depth).collect::<Result<_, _>>()?,
            books,
            golden_stages: golden.2,
            golden: (golden.0, golden.1),
            shape,
        })
    }

    /// A model from its parts, without a golden example; `linear` makes the input layer.
    pub(super) fn from_parts(
        id: [u8; 8],
        shape: TokenShape,
        tables: Tables,
        layers: Vec<Layer>,
        depth: Vec<Depth>,
        books: Vec<i32>,
        mut linear: impl FnMut(usize, usize) -> Linear,
    ) -> Arc<Self> {
        let inp = linear(3 * shape.latent, shape.width);
        Arc::new(Self {
            id,
            tables,
            inp,
            count: vec![0; shape.stages * shape.width],
            start: (0..shape.width as i32).map(|i| (i * 977 % 4001) - 2000).collect(),
            slopes: vec![64; shape.heads],
            score: score(&shape),
            layers,
            depth,
            books,
            golden: (vec![1; 8 * shape.stages], Vec::new()),
            golden_stages: shape.stages,
            shape,
        })
    }

    /// First 8 bytes of the SHA-256 of the file.
    pub fn id(&self) -> [u8; 8] {
        self.id
    }

    /// Sizes.
    pub fn shape(&self) -> &TokenShape {
        &self.shape
    }

    /// Parameters: weights and biases.
    pub fn parameters(&self) -> usize {
        let sum = |all: [&Linear; 4]| all.into_iter().map(Linear::parameters).sum::<usize>();
        let layers = self.layers.iter().map(|l| sum([&l.qkv, &l.mix, &l.up, &l.down]));
        let depth = self.depth.iter().map(|d| sum([&d.up, &d.down, &d.skip, &d.table]));
        self.inp.parameters() + self.count.len() + self.start.len() + layers.sum::<usize>() + depth.sum::<usize>()
    }

    /// The `most` entries of a stage whose output embeddings point most nearly where that of `entry` does, with the cosine,
    /// nearest first. Empty beyond the last stage or entry.
    pub fn neighbours(&self, stage: usize, entry: u16, most: usize) -> Vec<(u16, f32)> {
        let Some(table) = self.depth.get(stage).map(|d| &d.table) else { return Vec::new() };
        // Rows are scaled one by one, which a cosine does not see.
        let row = |e: u16| table.row(usize::from(e)).map(|r| r.map(f32::from).collect::<Vec<_>>());
        let Some(own) = row(entry) else { return Vec::new() };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let mut all: Vec<(u16, f32)> = (0u16..)
            .map_while(|e| Some((e, row(e)?)))
            .filter(|(e, _)| *e != entry)
            .map(|(e, r)| (e, dot(&own, &r) / (dot(&own, &own) * dot(&r, &r)).sqrt().max(1.0)))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(most);
        all
    }
}

/// Scale of attention scores. Root and quotient are correctly rounded by IEEE 754, so every machine gets the same.
fn score(s: &TokenShape) -> i64 {
    (std::f64::consts::LOG2_E / ((s.width / s.heads) as f64).sqrt() * 65536.0).round() as i64
}

fn books(s: &TokenShape, codebooks: &Codebooks) -> Result<Vec<i32>, TokenError> {
    if (codebooks.stages(), codebooks.entries(), codebooks.dim()) != (s.stages, s.entries, s.latent) {
        return Err(TokenError::File(format!(
            "for {} stages x {} entries x {} values, the codec has {} x {} x {}",
            s.stages,
            s.entries,
            s.latent,
            codebooks.stages(),
            codebooks.entries(),
            codebooks.dim()
        )));
    }
    Ok(codebooks
        .values()
        .iter()
        .map(|v| (v * 64.0).round_ties_even() as i32)
        .map(|v| v.clamp(-(1 << 24), 1 << 24))
        .collect())
}

type Golden = (Vec<u16>, Vec<(u32, u32)>, usize);

fn golden(r: &Tensors<'_>, s: &TokenShape) -> Result<Golden, TokenError> {
    let name = "golden.codes";
    let error = |reason: String| TokenError::Tensor { name: name.to_owned(), reason };
    let shape = r.tensors.tensor(name).map_err(|e| error(e.to_string()))?.shape().to_vec();
    let &[frames, stages] = shape.as_slice() else { return Err(error(format!("shape {shape:?}"))) };
    if !(1..=64).contains(&frames) || !(1..=s.stages).contains(&stages) {
        return Err(error(format!("{frames} frames of {stages} stages, allowed 1 to 64 of 1 to {}", s.stages)));
    }
    let codes = r.i32s(name, &[frames, stages], s.entries as i32 - 1)?;
    let codes = codes.into_iter().map(|c| u16::try_from(c).map_err(|_| error(format!("code {c}"))));
    let ranges = r.i32s("golden.frequencies", &[frames, stages, 2], 1 << 20)?;
    let ranges = ranges.chunks_exact(2).map(|p| (p[0] as u32, p[1] as u32)).collect();
    Ok((codes.collect::<Result<_, _>>()?, ranges, stages))
}
