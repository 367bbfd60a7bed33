//! Charts of lines as SVG.

use std::io;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 300;
const COLOURS: [RGBColor; 8] = [
    RGBColor(25, 113, 194),
    RGBColor(194, 37, 92),
    RGBColor(47, 158, 68),
    RGBColor(232, 89, 12),
    RGBColor(103, 65, 217),
    RGBColor(12, 133, 153),
    RGBColor(134, 142, 150),
    RGBColor(92, 148, 13),
];
/// What a logarithmic axis shows of values that are smaller.
const LEAST: f64 = 0.1;

/// A curve. Points that are not finite are left out.
pub struct Line<'a> {
    /// For the legend.
    pub name: &'a str,
    /// x and y, by x.
    pub points: Vec<(f64, f64)>,
    /// How sure the points are: x, low and high. With them the points themselves are marked.
    pub bars: Vec<(f64, f64, f64)>,
}

impl<'a> From<(&'a str, Vec<(f64, f64)>)> for Line<'a> {
    fn from((name, points): (&'a str, Vec<(f64, f64)>)) -> Self {
        Self { name, points, bars: Vec::new() }
    }
}

/// What an axis shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scale {
    /// From zero to the largest value.
    #[default]
    FromZero,
    /// From the smallest value to the largest.
    Fit,
    /// From the smallest value to the largest, by their logarithms.
    Log,
}

/// One chart of a picture.
#[derive(Default)]
pub struct Chart<'a> {
    /// What y is.
    pub title: &'a str,
    /// What x is.
    pub x_name: &'a str,
    /// How x is shown.
    pub x: Scale,
    /// How y is shown.
    pub y: Scale,
    /// Curves.
    pub lines: Vec<Line<'a>>,
}

/// Charts below each other.
///
/// # Errors
/// Of the drawing library.
pub fn svg(charts: &[Chart<'_>]) -> io::Result<String> {
    let mut out = String::new();
    let area = SVGBackend::with_string(&mut out, (WIDTH, HEIGHT * charts.len() as u32)).into_drawing_area();
    area.fill(&WHITE).map_err(io::Error::other)?;
    for (part, chart) in area.split_evenly((charts.len(), 1)).iter().zip(charts) {
        let points = || chart.lines.iter().flat_map(|l| &l.points).filter(|p| p.0.is_finite() && p.1.is_finite());
        let bars = || chart.lines.iter().flat_map(|l| &l.bars);
        let x = span(chart.x, points().map(|p| p.0));
        let y = span(chart.y, points().map(|p| p.1).chain(bars().flat_map(|b| [b.1, b.2])));
        let drawn = match (chart.x, chart.y) {
            (Scale::Log, Scale::Log) => draw(part, chart, x.log_scale(), y.log_scale()),
            (Scale::Log, _) => draw(part, chart, x.log_scale(), y),
            (_, Scale::Log) => draw(part, chart, x, y.log_scale()),
            _ => draw(part, chart, x, y),
        };
        drawn.map_err(io::Error::other)?;
    }
    area.present().map_err(io::Error::other)?;
    drop(area);
    Ok(out)
}

/// What an axis covers, never empty.
fn span(scale: Scale, values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let values = values.filter(|v| v.is_finite()).map(|v| (v, v));
    let (low, high) = values.reduce(|(a, b), (v, w)| (a.min(v), b.max(w))).unwrap_or_default();
    let low = match scale {
        Scale::FromZero => 0.0,
        Scale::Fit => low,
        Scale::Log => low.max(LEAST),
    };
    if high > low { low..high + 0.05 * (high - low) } else { low..low + 1.0 }
}

type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a, X, Y>(area: &DrawingArea<SVGBackend<'a>, Shift>, chart: &Chart<'_>, x: X, y: Y) -> Result<(), DrawError<'a>>
where
    X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
{
    let number = |v: &f64| ((v * 1e3).round() / 1e3).to_string();
    let shown = |y: f64| if chart.y == Scale::Log { y.max(LEAST) } else { y };
    let mut axes = ChartBuilder::on(area)
        .caption(chart.title, ("sans-serif", 14))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(x, y)?;
    axes.configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(233, 236, 239))
        .x_desc(chart.x_name)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .draw()?;
    for (line, colour) in chart.lines.iter().zip(COLOURS.iter().cycle()) {
        let points = line.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite()).map(|p| (p.0, shown(p.1)));
        let marks = points.clone().filter(|_| !line.bars.is_empty()).map(|p| Circle::new(p, 3, colour.filled()));
        axes.draw_series(marks)?;
        axes.draw_series(line.bars.iter().map(|b| PathElement::new([(b.0, b.1), (b.0, b.2)], colour)))?;
        axes.draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(line.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    let legend = if chart.y == Scale::Fit { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::UpperLeft };
    axes.configure_series_labels().position(legend).background_style(WHITE.mix(0.8)).draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_lines_their_names_and_no_number_that_is_none() {
        for (x, y) in [(Scale::FromZero, Scale::FromZero), (Scale::FromZero, Scale::Log), (Scale::Log, Scale::Fit)] {
            let late = Line::from(("p99", vec![(1.0, f64::NAN)]));
            let bars = vec![(1.0, 1.5, 2.5), (64.0, 29.0, 31.0)];
            let lines = vec![Line { name: "p50", points: vec![(1.0, 2.0), (64.0, 30.0)], bars }, late];
            let svg = svg(&[Chart { title: "latency, ms", x_name: "streams", x, y, lines }]).unwrap();
            for text in ["p50", "p99", "latency, ms", "streams"] {
                assert!(svg.contains(text), "{x:?} {y:?} {text}: {svg}");
            }
            assert_eq!(svg.matches("<circle").count(), 2);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn a_chart_of_nothing_is_empty_axes() {
        let chart = Chart { title: "t", x_name: "x", x: Scale::Log, y: Scale::Fit, lines: Vec::new() };
        assert!(svg(&[chart]).unwrap().contains("<svg"));
    }
}
