//! How well codebooks are used: what a collapsed stage looks like before anybody hears it.

use super::{Codebooks, RvqError};

/// Entries are taken for copies of each other when they are nearer than this share of the stage's RMS length.
const COPY: f32 = 1e-3;

/// A stage with more copies than this share of its entries has collapsed.
const MOST_COPIES: f64 = 0.25;

/// A stage has collapsed when codes of real sound have less than this share of the perplexity that is possible.
const LEAST_PERPLEXITY: f64 = 0.1;

/// One stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageHealth {
    /// Share of the entries that occur.
    pub used: f64,
    /// 2 to the power of the entropy of the codes.
    pub perplexity: f64,
    /// The most it could be: entries, or frames if those are fewer.
    pub possible: f64,
    /// Energy of the latents left after this stage, as a share of that before the first.
    pub left: f64,
}

impl StageHealth {
    /// True if the stage says almost nothing.
    pub fn collapsed(&self) -> bool {
        self.perplexity < LEAST_PERPLEXITY * self.possible
    }
}

/// Health of every stage on latents `[N][dim]` and their codes `[N][stages]`.
///
/// # Errors
/// [`RvqError::Code`] for a code beyond its codebook.
pub fn stage_health(
    books: &Codebooks,
    latents: &[f32],
    codes: &[u16],
    stages: usize,
) -> Result<Vec<StageHealth>, RvqError> {
    let dim = books.dim();
    let energy = |x: &[f32]| x.iter().map(|v| f64::from(v * v)).sum::<f64>();
    let mut residual = latents.to_vec();
    let whole = energy(latents).max(f64::MIN_POSITIVE);
    let frames = codes.len() / stages.max(1);
    let mut entry = vec![0.0; dim];
    let mut all = Vec::with_capacity(stages);
    for stage in 0..stages {
        let mut counts = vec![0u32; books.entries()];
        for (frame, rest) in codes.chunks_exact(stages).zip(residual.chunks_exact_mut(dim)) {
            let code = frame[stage];
            let last = books.entries() - 1;
            *counts.get_mut(usize::from(code)).ok_or(RvqError::Code { code, stage, last })? += 1;
            books.entry_into(stage, code, &mut entry)?;
            rest.iter_mut().zip(&entry).for_each(|(r, e)| *r -= e);
        }
        let share = |&c: &u32| f64::from(c) / frames.max(1) as f64;
        let entropy: f64 = counts.iter().filter(|&&c| c > 0).map(|c| -share(c) * share(c).log2()).sum();
        all.push(StageHealth {
            used: counts.iter().filter(|&&c| c > 0).count() as f64 / books.entries() as f64,
            perplexity: entropy.exp2(),
            possible: books.entries().min(frames).max(1) as f64,
            left: energy(&residual) / whole,
        });
    }
    Ok(all)
}

/// Which stages have dimensions of the latents to themselves, as that of the pitch has. Codes of such a stage say something of their own,
/// which is the same for a long time where nothing sounds: their perplexity says nothing about its health.
pub fn standing_apart(books: &Codebooks) -> Vec<bool> {
    let (entries, dim) = (books.entries(), books.dim());
    let used = |book: &[f32]| (0..dim).map(|d| book.chunks_exact(dim).any(|row| row[d] != 0.0)).collect::<Vec<bool>>();
    let each: Vec<Vec<bool>> = books.values().chunks_exact(entries * dim).map(used).collect();
    let owners = |d: usize| each.iter().filter(|used| used[d]).count();
    let alone = |own: &Vec<bool>| own.contains(&true) && (0..dim).all(|d| !own[d] || owners(d) == 1);
    each.iter().map(|own| each.len() > 1 && alone(own)).collect()
}

/// The first stage, from 0, whose entries are mostly copies of each other, or that adds nothing; None if all are sound.
pub fn collapsed_stage(books: &Codebooks) -> Option<usize> {
    let (entries, dim) = (books.entries(), books.dim());
    books.values().chunks_exact(entries * dim).position(|book| {
        let rows: Vec<&[f32]> = book.chunks_exact(dim).collect();
        let square = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>();
        let mean = rows.iter().map(|r| square(r)).sum::<f32>() / entries as f32;
        if mean <= 0.0 {
            return true;
        }
        // Copies have almost the same length, so only neighbours by length have to be compared.
        let near = COPY * mean.sqrt();
        let mut by_length: Vec<(f32, &[f32])> = rows.iter().map(|r| (square(r).sqrt(), *r)).collect();
        by_length.sort_by(|a, b| a.0.total_cmp(&b.0));
        let copies = by_length.iter().enumerate().filter(|(i, (length, row))| {
            let others = by_length[i + 1..].iter().take_while(|(other, _)| other - length <= near);
            others
                .into_iter()
                .any(|(_, other)| row.iter().zip(*other).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() <= near * near)
        });
        copies.count() as f64 > MOST_COPIES * entries as f64
    })
}

/// The `most` entries of a stage that point most nearly where `entry` does, with the cosine, nearest first. Empty beyond the last
/// stage or entry.
pub fn neighbours(books: &Codebooks, stage: usize, entry: u16, most: usize) -> Vec<(u16, f32)> {
    let (entries, dim) = (books.entries(), books.dim());
    let book = books.values().chunks_exact(entries * dim).nth(stage).unwrap_or(&[]);
    let rows: Vec<&[f32]> = book.chunks_exact(dim).collect();
    let Some(own) = rows.get(usize::from(entry)) else { return Vec::new() };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let mut all: Vec<(u16, f32)> = (0u16..)
        .zip(&rows)
        .filter(|(e, _)| *e != entry)
        .map(|(e, r)| (e, dot(own, r) / (dot(own, own) * dot(r, r)).sqrt().max(f32::MIN_POSITIVE)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(most);
    all
}

/// Entries of a stage along its two strongest directions `[entries]` (principal components by power iteration; Pearson 1901),
/// and the share of the variance that these show.
pub fn principal_map(books: &Codebooks, stage: usize) -> (Vec<[f32; 2]>, f32) {
    const ROUNDS: usize = 60;
    let (entries, dim) = (books.entries(), books.dim());
    let book = books.values().chunks_exact(entries * dim).nth(stage).unwrap_or(&[]);
    let mut mean = vec![0.0f32; dim];
    for row in book.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / entries as f32);
    }
    let mut centred: Vec<f32> =
        book.chunks_exact(dim).flat_map(|row| row.iter().zip(&mean).map(|(v, m)| v - m)).collect();
    let power = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>();
    let whole = power(&centred).max(f32::MIN_POSITIVE);
    let mut map = vec![[0.0; 2]; book.len() / dim.max(1)];
    for axis in 0..2 {
        let mut direction: Vec<f32> = (0..dim).map(|d| 1.0 + 0.1 * d as f32).collect();
        for _ in 0..ROUNDS {
            let mut next = vec![0.0f32; dim];
            for row in centred.chunks_exact(dim) {
                let along: f32 = row.iter().zip(&direction).map(|(a, b)| a * b).sum();
                next.iter_mut().zip(row).for_each(|(n, v)| *n += along * v);
            }
            let length = power(&next).sqrt().max(f32::MIN_POSITIVE);
            direction = next.into_iter().map(|v| v / length).collect();
        }
        for (row, place) in centred.chunks_exact_mut(dim).zip(&mut map) {
            let along: f32 = row.iter().zip(&direction).map(|(a, b)| a * b).sum();
            place[axis] = along;
            row.iter_mut().zip(&direction).for_each(|(v, d)| *v -= along * d);
        }
    }
    (map, 1.0 - power(&centred) / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(spread: impl Fn(usize, usize) -> f32) -> Codebooks {
        let data = (0..2 * 32 * 8).map(|i| spread(i / 8, i % 8)).collect();
        Codebooks::new(data, 2, 32, 8).unwrap()
    }

    fn scattered(row: usize, d: usize) -> f32 {
        ((row * 7919 + d * 104_729) % 1009) as f32 / 504.0 - 1.0
    }

    #[test]
    fn use_and_energy_are_those_of_the_codes() {
        let b = books(scattered);
        // Every latent is exactly entry 3 of stage 0 plus entry 0 or 5 of stage 1.
        let codes: Vec<u16> = (0..40).flat_map(|i| [3, if i % 2 == 0 { 0 } else { 5 }]).collect();
        let mut latents = vec![0.0; 40 * 8];
        for (frame, x) in codes.chunks_exact(2).zip(latents.chunks_exact_mut(8)) {
            b.decode_into(frame, x).unwrap();
        }
        let h = stage_health(&b, &latents, &codes, 2).unwrap();
        assert!((h[0].perplexity - 1.0).abs() < 1e-9 && h[0].collapsed() && (h[0].used - 1.0 / 32.0).abs() < 1e-9);
        assert!((h[1].perplexity - 2.0).abs() < 1e-9 && h[1].left < 1e-9 && h[0].left > 0.1);
        assert!(stage_health(&b, &latents, &[32; 80], 2).is_err());
    }

    #[test]
    fn copies_and_empty_stages_are_collapse() {
        assert_eq!(collapsed_stage(&books(scattered)), None);
        assert_eq!(collapsed_stage(&books(|row, d| if row < 32 { scattered(row, d) } else { 0.0 })), Some(1));
        assert_eq!(collapsed_stage(&books(|row, d| scattered(row % 12, d))), Some(0));
    }

    #[test]
    fn a_stage_with_dimensions_to_itself_stands_apart() {
        // Rows 0 to 31 are the first stage's, which keeps out of the last two dimensions; the second stage is in these only.
        let apart = books(|row, d| if (row < 32) == (d < 6) { scattered(row, d) } else { 0.0 });
        assert_eq!(standing_apart(&apart), [true, true]);
        let shared = books(|row, d| if row < 32 || d < 7 { scattered(row, d) } else { 0.0 });
        assert_eq!(standing_apart(&shared), [false, false]);
    }

    #[test]
    fn neighbours_point_the_same_way_and_the_map_shows_the_strongest_directions() {
        let b = books(|row, d| match (row, d) {
            (1, d) => 3.0 * scattered(0, d),
            (row, d) => scattered(row, d),
        });
        let near = neighbours(&b, 0, 0, 3);
        assert_eq!((near.len(), near[0].0), (3, 1));
        assert!(near[0].1 > 0.999 && neighbours(&b, 2, 0, 3).is_empty() && neighbours(&b, 0, 32, 3).is_empty());
        let flat = books(|row, d| [(row % 8) as f32 * 10.0, (row / 8) as f32, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5][d]);
        let (map, share) = principal_map(&flat, 0);
        assert!(share > 0.9999, "{share}");
        assert!((map[7][0] - map[0][0]).abs() > 69.0 && (map[24][1] - map[0][1]).abs() > 2.9);
    }
}
