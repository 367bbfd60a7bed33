//! Spectrograms, one panel below the other, as a PNG.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

const WINDOW: usize = 1024;
const HOP: usize = 256;
const PANEL: usize = 200;
const MARGIN: usize = 16;
const MAX_WIDTH: usize = 1600;
/// Levels below this many decibels are black.
const FLOOR_DB: f32 = -100.0;
const TOP_DB: f32 = -20.0;

/// Writes labelled spectrograms, 0 to 12 kHz from bottom to top, of signals at 24 kHz.
///
/// Errors: of the file.
pub fn write_spectrograms(path: &Path, panels: &[(String, Vec<f32>)]) -> std::io::Result<()> {
    let columns = panels.iter().map(|(_, pcm)| pcm.len() / HOP).max().unwrap_or(0).max(1);
    let width = columns.clamp(320, MAX_WIDTH);
    let height = panels.len() * (PANEL + MARGIN);
    let mut image = Image { width, pixels: vec![24; width * height * 3] };
    for (i, (label, pcm)) in panels.iter().enumerate() {
        let top = i * (PANEL + MARGIN);
        image.text(4, top + 3, label);
        image.panel(top + MARGIN, &levels(pcm), columns);
    }
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(std::io::Error::other)?;
    writer.write_image_data(&image.pixels).map_err(std::io::Error::other)
}

/// Level in decibels `[columns][WINDOW / 2]`, Hann window.
fn levels(pcm: &[f32]) -> Vec<Vec<f32>> {
    let fft = FftPlanner::<f32>::new().plan_fft_forward(WINDOW);
    let hann: Vec<f32> =
        (0..WINDOW).map(|n| 0.5 - 0.5 * (std::f32::consts::TAU * n as f32 / WINDOW as f32).cos()).collect();
    let mut column = vec![Complex::default(); WINDOW];
    (0..pcm.len() / HOP)
        .map(|c| {
            for (n, value) in column.iter_mut().enumerate() {
                let x = pcm.get(c * HOP + n).copied().unwrap_or(0.0);
                *value = Complex::new(x * hann[n], 0.0);
            }
            fft.process(&mut column);
            let scale = 4.0 / WINDOW as f32;
            column[..WINDOW / 2].iter().map(|v| 20.0 * (v.norm() * scale + 1e-9).log10()).collect()
        })
        .collect()
}

struct Image {
    width: usize,
    pixels: Vec<u8>,
}

impl Image {
    fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        let at = (y * self.width + x) * 3;
        if x < self.width && at + 3 <= self.pixels.len() {
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    fn panel(&mut self, top: usize, levels: &[Vec<f32>], columns: usize) {
        for x in 0..self.width {
            // A pixel shows the loudest of the columns and bins that fall on it.
            let (from, to) =
                (x * columns / self.width, ((x + 1) * columns / self.width).max(x * columns / self.width + 1));
            for y in 0..PANEL {
                let (low, high) =
                    (y * WINDOW / 2 / PANEL, ((y + 1) * WINDOW / 2 / PANEL).max(y * WINDOW / 2 / PANEL + 1));
                let loudest = levels
                    .get(from..to.min(levels.len()))
                    .unwrap_or(&[])
                    .iter()
                    .flat_map(|c| &c[low..high])
                    .fold(FLOOR_DB, |a, &b| a.max(b));
                let share = ((loudest - FLOOR_DB) / (TOP_DB - FLOOR_DB)).clamp(0.0, 1.0);
                self.set(x, top + PANEL - 1 - y, heat(share));
            }
        }
    }

    fn text(&mut self, left: usize, top: usize, text: &str) {
        for (i, c) in text.to_ascii_uppercase().chars().enumerate() {
            for (row, bits) in glyph(c).into_iter().enumerate() {
                for column in 0..3 {
                    if bits & (4 >> column) != 0 {
                        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                            self.set(left + i * 8 + column * 2 + dx, top + row * 2 + dy, [230, 230, 230]);
                        }
                    }
                }
            }
        }
    }
}

/// Black, violet, orange, pale yellow.
fn heat(share: f32) -> [u8; 3] {
    const STOPS: [[f32; 3]; 5] =
        [[0.0, 0.0, 4.0], [80.0, 18.0, 123.0], [182.0, 54.0, 121.0], [251.0, 136.0, 97.0], [252.0, 253.0, 191.0]];
    let at = share * (STOPS.len() - 1) as f32;
    let low = (at as usize).min(STOPS.len() - 2);
    let part = at - low as f32;
    std::array::from_fn(|i| (STOPS[low][i] + (STOPS[low + 1][i] - STOPS[low][i]) * part) as u8)
}

/// Rows of a letter of three by five dots, the left dot in bit 2.
fn glyph(c: char) -> [u8; 5] {
    match c {
        '0' | 'O' => [7, 5, 5, 5, 7],
        '1' => [2, 6, 2, 2, 7],
        '2' => [7, 1, 7, 4, 7],
        '3' => [7, 1, 7, 1, 7],
        '4' => [5, 5, 7, 1, 1],
        '5' | 'S' => [7, 4, 7, 1, 7],
        '6' => [7, 4, 7, 5, 7],
        '7' => [7, 1, 1, 1, 1],
        '8' => [7, 5, 7, 5, 7],
        '9' => [7, 5, 7, 1, 7],
        'A' => [2, 5, 7, 5, 5],
        'B' => [6, 5, 6, 5, 6],
        'G' => [7, 4, 5, 5, 7],
        'I' => [7, 2, 2, 2, 7],
        'K' => [5, 5, 6, 5, 5],
        'L' => [4, 4, 4, 4, 7],
        'N' => [6, 5, 5, 5, 5],
        'R' => [6, 5, 6, 5, 5],
        'T' => [7, 2, 2, 2, 2],
        '/' => [1, 1, 2, 4, 4],
        '.' => [0, 0, 0, 0, 2],
        _ => [0; 5],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_a_bright_line_at_its_place() {
        let tone: Vec<f32> =
            (0..24_000).map(|n| (n as f32 * 3_000.0 * std::f32::consts::TAU / 24_000.0).sin()).collect();
        let levels = levels(&tone);
        let column = &levels[40];
        assert!((column[128] - 0.0).abs() < 0.5, "3 kHz is bin 128, at {} dB", column[128]);
        assert!(column[200] < -80.0, "{} dB", column[200]);
    }

    #[test]
    fn the_file_is_a_png_of_the_right_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.png");
        write_spectrograms(&path, &[("original".to_owned(), vec![0.1; 9_000]), ("3 kbit/s".to_owned(), Vec::new())])
            .unwrap();
        let reader = png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        assert_eq!((reader.info().width, reader.info().height), (320, 2 * (200 + 16)));
    }
}
