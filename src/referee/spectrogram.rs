//! Spectrograms, one panel below the other, as a PNG.

use std::path::Path;

use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

use super::image::{Image, heat};

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
/// # Errors
/// Of the file.
pub fn write_spectrograms(path: &Path, panels: &[(String, Vec<f32>)]) -> std::io::Result<()> {
    let columns = panels.iter().map(|(_, pcm)| pcm.len() / HOP).max().unwrap_or(0).max(1);
    let width = columns.clamp(320, MAX_WIDTH);
    let height = panels.len() * (PANEL + MARGIN);
    let mut image = Image::new(width, height);
    for (i, (label, pcm)) in panels.iter().enumerate() {
        let top = i * (PANEL + MARGIN);
        image.text(4, top + 3, label);
        panel(&mut image, top + MARGIN, &levels(pcm), columns);
    }
    image.write(path)
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

fn panel(image: &mut Image, top: usize, levels: &[Vec<f32>], columns: usize) {
    for x in 0..image.width {
        // A pixel shows the loudest of the columns and bins that fall on it.
        let (from, to) =
            (x * columns / image.width, ((x + 1) * columns / image.width).max(x * columns / image.width + 1));
        for y in 0..PANEL {
            let (low, high) = (y * WINDOW / 2 / PANEL, ((y + 1) * WINDOW / 2 / PANEL).max(y * WINDOW / 2 / PANEL + 1));
            let loudest = levels
                .get(from..to.min(levels.len()))
                .unwrap_or(&[])
                .iter()
                .flat_map(|c| &c[low..high])
                .fold(FLOOR_DB, |a, &b| a.max(b));
            let share = ((loudest - FLOOR_DB) / (TOP_DB - FLOOR_DB)).clamp(0.0, 1.0);
            image.set(x, top + PANEL - 1 - y, heat(share));
        }
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
        let reader =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
        assert_eq!((reader.info().width, reader.info().height), (320, 2 * (200 + 16)));
    }
}
