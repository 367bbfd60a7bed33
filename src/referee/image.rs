//! A small picture: pixels, text, colours, PNG.

use std::convert::Infallible;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::ascii::FONT_6X9;
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::text::{Baseline, Text};

/// Pixels in red, green and blue.
pub(super) struct Image {
    pub(super) width: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// A dark grey image.
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, pixels: vec![24; width * height * 3] }
    }

    /// Writes a PNG.
    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        let height = self.pixels.len() / (3 * self.width);
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), self.width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(std::io::Error::other)?;
        writer.write_image_data(&self.pixels).map_err(std::io::Error::other)
    }

    pub(super) fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        let at = (y * self.width + x) * 3;
        if x < self.width && at + 3 <= self.pixels.len() {
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    /// Writes a line of light letters, nine pixels high.
    pub(super) fn text(&mut self, left: usize, top: usize, text: &str) {
        let style = MonoTextStyle::new(&FONT_6X9, Rgb888::new(230, 230, 230));
        let Ok(_) = Text::with_baseline(text, Point::new(left as i32, top as i32), style, Baseline::Top).draw(self);
    }
}

impl OriginDimensions for Image {
    fn size(&self) -> Size {
        Size::new(self.width as u32, (self.pixels.len() / (3 * self.width)) as u32)
    }
}

impl DrawTarget for Image {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            if let (Ok(x), Ok(y)) = (usize::try_from(at.x), usize::try_from(at.y)) {
                self.set(x, y, [colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// Black, violet, orange, pale yellow.
pub(super) fn heat(share: f32) -> [u8; 3] {
    const STOPS: [[f32; 3]; 5] =
        [[0.0, 0.0, 4.0], [80.0, 18.0, 123.0], [182.0, 54.0, 121.0], [251.0, 136.0, 97.0], [252.0, 253.0, 191.0]];
    let at = share * (STOPS.len() - 1) as f32;
    let low = (at as usize).min(STOPS.len() - 2);
    let part = at - low as f32;
    std::array::from_fn(|i| (STOPS[low][i] + (STOPS[low + 1][i] - STOPS[low][i]) * part) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_light_where_it_is_put_and_cut_at_the_border() {
        let mut image = Image::new(40, 20);
        image.text(4, 3, "3 kbit/s, a long line");
        let light: Vec<_> = image.pixels.chunks(3).enumerate().filter(|p| p.1[0] > 200).map(|p| p.0).collect();
        assert!(light.len() > 30, "{} pixels", light.len());
        assert!(light.iter().all(|at| (3..12).contains(&(at / 40)) && at % 40 >= 4));
    }
}
