//! A chart of lines as SVG, with nothing beside it.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;
const COLOURS: [&str; 5] = ["#1971c2", "#c2255c", "#2f9e44", "#e8590c", "#6741d9"];

/// One chart of a picture.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x_name: &'a str,
    /// Whether values are shown by their logarithm.
    pub(super) log: bool,
    pub(super) lines: Vec<(&'a str, Vec<(f64, f64)>)>,
}

/// Round numbers that cover a span.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = (high - low).max(1e-9);
    let rough = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * rough).into_iter().find(|s| span / s <= 6.0).unwrap_or(span);
    (0..=12).map(|i| (low / step).ceil() * step + step * f64::from(i)).filter(|v| *v <= high + step * 1e-6).collect()
}

/// Charts below each other.
pub(super) fn svg(charts: &[Chart<'_>]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {0}\" width=\"{WIDTH}\" height=\"{0}\" \
         font-size=\"12\" font-family=\"sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        HEIGHT * charts.len() as f64
    );
    for (i, chart) in charts.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate(0 {})\">", HEIGHT * i as f64);
        one(chart, &mut out);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn one(chart: &Chart<'_>, out: &mut String) {
    let scale = |y: f64| if chart.log { y.max(0.1).log10() } else { y };
    let points = || chart.lines.iter().flat_map(|l| l.1.iter()).filter(|p| p.1.is_finite());
    let high_x = points().map(|p| p.0).fold(1e-9, f64::max);
    let low_y = if chart.log { points().map(|p| scale(p.1).floor()).fold(0.0, f64::min) } else { 0.0 };
    let high_y = points().map(|p| scale(p.1)).fold(low_y + 1e-3, f64::max) * 1.05;
    let at_x = |x: f64| LEFT + x / high_x * (WIDTH - LEFT - RIGHT);
    let at_y = |y: f64| HEIGHT - BOTTOM - (scale(y) - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM);
    let marks: Vec<f64> = if chart.log {
        (low_y as i32..=high_y.ceil() as i32).map(|e| 10f64.powi(e)).filter(|v| scale(*v) <= high_y).collect()
    } else {
        ticks(0.0, high_y)
    };
    for v in marks {
        let (y, right) = (at_y(v), WIDTH - RIGHT);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#e9ecef\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            (v * 1e3).round() / 1e3
        );
    }
    for v in ticks(0.0, high_x) {
        let (x, bottom) = (at_x(v), HEIGHT - BOTTOM);
        let v = (v * 1e3).round() / 1e3;
        let _ = writeln!(out, "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#f1f3f5\"/>");
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{v}</text>", bottom + 15.0);
    }
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"14\" font-weight=\"bold\">{}</text>", chart.title);
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    let _ =
        writeln!(out, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>", HEIGHT - 12.0, chart.x_name);
    for (i, (name, points)) in chart.lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let line: Vec<String> =
            points.iter().filter(|p| p.1.is_finite()).map(|p| format!("{:.1},{:.1}", at_x(p.0), at_y(p.1))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        let x = LEFT + 110.0 * i as f64;
        let _ = writeln!(out, "<text x=\"{x}\" y=\"29\" fill=\"{colour}\">{name}</text>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_lines_and_round_numbers() {
        assert_eq!(ticks(0.0, 64.0), [0.0, 20.0, 40.0, 60.0]);
        for log in [false, true] {
            let lines = vec![("p50", vec![(1.0, 2.0), (64.0, 30.0)]), ("p99", vec![(1.0, f64::NAN)])];
            let svg = svg(&[Chart { title: "latency, ms", x_name: "streams", log, lines }]);
            assert_eq!(svg.matches("<polyline").count(), 2);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
