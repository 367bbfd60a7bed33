//! Where the entries of codebooks lie, as a PNG.

use std::path::Path;

use super::image::{Image, heat};
use crate::rvq::{Codebooks, principal_map};

const SIDE: usize = 220;
const MARGIN: usize = 16;
const COLUMNS: usize = 6;

/// Writes one panel a stage: the entries along the stage's two strongest directions, brighter the more often they are used
/// (`uses` `[stages][entries]`; entries that are never used are dark blue).
///
/// # Errors
/// Of the file.
pub fn write_codebook_map(path: &Path, books: &Codebooks, uses: &[Vec<u32>]) -> std::io::Result<()> {
    let rows = uses.len().div_ceil(COLUMNS).max(1);
    let mut image = Image::new(COLUMNS * SIDE, rows * (SIDE + MARGIN));
    for (stage, uses) in uses.iter().enumerate() {
        let (left, top) = (stage % COLUMNS * SIDE, stage / COLUMNS * (SIDE + MARGIN));
        let (places, share) = principal_map(books, stage);
        image.text(left + 4, top + 3, &format!("stage {}  {:.0} %", stage + 1, share * 100.0));
        let far = places.iter().flatten().fold(1e-6f32, |a, v| a.max(v.abs()));
        let most = uses.iter().copied().max().unwrap_or(0).max(1) as f32;
        let at = |v: f32| ((v / far + 1.0) / 2.0 * (SIDE - 8) as f32) as usize + 3;
        for (place, &n) in places.iter().zip(uses) {
            let colour = if n == 0 { [40, 60, 110] } else { heat(0.35 + 0.65 * (n as f32 / most).sqrt()) };
            for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                image.set(left + at(place[0]) + dx, top + MARGIN + SIDE - at(place[1]) - 2 + dy, colour);
            }
        }
    }
    image.write(path)
}
