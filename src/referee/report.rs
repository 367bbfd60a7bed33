//! The report: one HTML file without anything beside it.

use std::fmt::Write;

use super::run::wav_bytes;
use super::stats::Interval;
use super::table::{Row, Summary, quoted};

/// Sounds of one recording for listening; every recording has the same names in the same order.
#[derive(Debug, Clone)]
pub struct Listening {
    /// Recording.
    pub item: String,
    /// Name and samples at 24 kHz: the original first, then codecs.
    pub sounds: Vec<(String, Vec<f32>)>,
    /// Spectrograms of the sounds, a PNG.
    pub spectrograms: Vec<u8>,
}

/// Index of another program's score.
const OTHER: usize = Row::NUMBERS.len() - 1;

const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 48.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 8] = ["#c2255c", "#1971c2", "#2f9e44", "#e8590c", "#6741d9", "#0c8599", "#868e96", "#5c940d"];

/// The report as HTML.
///
/// `title` and `notes` (method, versions, machine, command) are shown as they are; `equivalents` are lines of kind,
/// what is compared, and the rate of the reference that sounds alike.
pub fn write_report(
    title: &str,
    notes: &[String],
    summary: &[Summary],
    equivalents: &[(String, String, Option<Interval>)],
    listening: &[Listening],
) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{0}</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escape(title)
    );
    for note in notes {
        let _ = writeln!(out, "<p>{}</p>", escape(note));
    }
    let mut kinds: Vec<&str> = summary.iter().map(|s| s.kind.as_str()).collect();
    kinds.dedup();
    for kind in &kinds {
        let rows: Vec<&Summary> = summary.iter().filter(|s| s.kind == *kind).collect();
        let items = rows.iter().map(|s| s.items).max().unwrap_or(0);
        let _ = writeln!(out, "<h2>{} ({items} recordings)</h2>", escape(kind));
        for (x, xname) in [(0, "payload kbit/s"), (2, "IP kbit/s")] {
            for (y, yname) in [(3, "PESQ-WB"), (4, "ESTOI"), (OTHER, "other score")] {
                out.push_str(&chart(&rows, (x, xname), (y, yname)));
            }
        }
        out.push_str(&table(&rows));
    }
    if !equivalents.is_empty() {
        out.push_str("<h2>Sounds like</h2>\n<table><tr><th>recordings<th>undertone<th>Opus payload, kbit/s\n");
        for (kind, what, rate) in equivalents {
            let rate = rate.map_or("outside the measured curve".to_owned(), |r| {
                format!("{:.1} ({:.1} to {:.1})", r.mean, r.low, r.high)
            });
            let _ = writeln!(out, "<tr><td>{}<td>{}<td>{rate}", escape(kind), escape(what));
        }
        out.push_str("</table>\n");
    }
    listen(listening, &mut out);
    out.push_str("</html>\n");
    out
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1300px;margin:2em auto;padding:0 1em;color:#212529}\
svg{background:#fff;max-width:100%}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
td,th{padding:.15em .7em;text-align:right;border-bottom:1px solid #dee2e6}td:first-child,th:first-child{text-align:left}\
td:nth-child(2){text-align:left}img{max-width:100%}button,select{font:inherit;padding:.3em .8em}pre{background:#f1f3f5;padding:1em}\
small{color:#868e96}";

/// Curves of one number over another, with the bootstrap interval as a bar.
fn chart(rows: &[&Summary], (x, xname): (usize, &str), (y, yname): (usize, &str)) -> String {
    let mut systems: Vec<&str> = rows.iter().map(|r| r.system.as_str()).collect();
    systems.dedup();
    let points: Vec<(&str, f64, Interval)> = rows
        .iter()
        .filter_map(|r| Some((r.system.as_str(), r.means[x]?.mean, r.means[y]?)))
        .filter(|p| p.1 > 0.0)
        .collect();
    let extent = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let (x0, x1) = extent(&mut points.iter().map(|p| p.1.log2()));
    let (y0, y1) = extent(&mut points.iter().flat_map(|p| [p.2.low, p.2.high]));
    if points.is_empty() {
        return String::new();
    }
    let (xspan, yspan) = ((x1 - x0).max(1e-6), (y1 - y0).max(1e-6));
    let at_x = |v: f64| LEFT + (v.log2() - x0) / xspan * (WIDTH - LEFT - 20.0);
    let at_y = |v: f64| HEIGHT - BOTTOM - (v - y0) / yspan * (HEIGHT - BOTTOM - 20.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"{yname} over {xname}\" \
         font-size=\"12\" font-family=\"sans-serif\">\n",
        HEIGHT + 16.0 * systems.len() as f64
    );
    for rate in [0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0f64] {
        if (x0 - 1e-9..=x1 + 1e-9).contains(&rate.log2()) {
            let _ = writeln!(
                svg,
                "<path d=\"M{0:.1} 20V{1}\" stroke=\"#e9ecef\"/><text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\">{rate}</text>",
                at_x(rate),
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 15.0
            );
        }
    }
    for i in 0..=4 {
        let v = y0 + yspan * f64::from(i) / 4.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#e9ecef\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{v:.2}</text>",
            at_y(v),
            WIDTH - 20.0,
            LEFT - 5.0,
            at_y(v) + 4.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{xname}</text><text x=\"{LEFT}\" y=\"13\">{yname}</text>",
        WIDTH / 2.0,
        HEIGHT - 8.0
    );
    for (i, system) in systems.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let mut curve: Vec<_> = points.iter().filter(|p| p.0 == *system).collect();
        curve.sort_by(|a, b| a.1.total_cmp(&b.1));
        let line: Vec<String> = curve.iter().map(|p| format!("{:.1},{:.1}", at_x(p.1), at_y(p.2.mean))).collect();
        let dash = if i >= COLOURS.len() { " stroke-dasharray=\"5 3\"" } else { "" };
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            line.join(" ")
        );
        for p in curve {
            let px = at_x(p.1);
            let _ = writeln!(
                svg,
                "<circle cx=\"{px:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/><path d=\"M{px:.1} {:.1}V{:.1}\" stroke=\"{colour}\"/>",
                at_y(p.2.mean),
                at_y(p.2.low),
                at_y(p.2.high)
            );
        }
        let top = HEIGHT + 16.0 * i as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {0:.1}h24\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/><text x=\"{1}\" y=\"{2:.1}\">{3}</text>",
            top + 4.0,
            LEFT + 30.0,
            top + 8.0,
            escape(system)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn table(rows: &[&Summary]) -> String {
    let mut out = "<table><tr><th>codec<th>nominal".to_owned();
    let shown = |k: usize| k != OTHER || rows.iter().any(|s| s.means[k].is_some());
    for name in Row::NUMBERS.iter().enumerate().filter(|n| shown(n.0)).map(|n| n.1) {
        let _ = write!(out, "<th>{}", name.replace('_', " "));
    }
    out.push('\n');
    for s in rows {
        let _ = write!(out, "<tr><td>{}<td>{}", escape(&s.system), s.nominal);
        for (k, m) in s.means.iter().enumerate().filter(|m| shown(m.0)) {
            match m {
                Some(m) if (3..=5).contains(&k) || k == OTHER => {
                    let _ = write!(out, "<td>{:.3} <small>{:.3} to {:.3}</small>", m.mean, m.low, m.high);
                }
                Some(m) => {
                    let digits = if k < 3 || k == 10 { 2 } else { 1 };
                    let _ = write!(out, "<td>{:.digits$}", m.mean);
                }
                None => out.push_str("<td>-"),
            }
        }
        out.push('\n');
    }
    out.push_str("</table>\n");
    out
}

fn listen(listening: &[Listening], out: &mut String) {
    if listening.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Listen blind</h2>\n<div id=\"abx\"><p>A <select id=\"left\"></select> B <select id=\"right\"></select> \
         recording <b id=\"trial\"></b></p>\n<p><button data-key=\"1\">1: play A</button> <button data-key=\"2\">2: play B</button> \
         <button data-key=\"x\">x: play X</button> X is: <button data-key=\"a\">a: A</button> <button data-key=\"b\">b: B</button></p>\n\
         <pre id=\"results\"></pre><p><button id=\"save\">Save results</button> <button id=\"forget\">Forget results</button></p></div>\n",
    );
    for l in listening {
        let _ = writeln!(out, "<h3>{}</h3>", escape(&l.item));
        if !l.spectrograms.is_empty() {
            let names: Vec<String> = l.sounds.iter().map(|s| escape(&s.0)).collect();
            let _ = writeln!(
                out,
                "<p>Spectrograms, 0 to 12 kHz, from top: {}.</p><img alt=\"spectrograms\" src=\"data:image/png;base64,{}\">",
                names.join("; "),
                base64(&l.spectrograms)
            );
        }
    }
    let items: Vec<String> = listening
        .iter()
        .map(|l| {
            let sounds: Vec<String> = l
                .sounds
                .iter()
                .map(|(name, pcm)| {
                    format!("{{name:{},wav:\"data:audio/wav;base64,{}\"}}", quoted(name), base64(&wav_bytes(pcm)))
                })
                .collect();
            format!("{{name:{},sounds:[{}]}}", quoted(&l.item), sounds.join(","))
        })
        .collect();
    let _ = writeln!(out, "<script>\nconst items = [{}];\n{}</script>", items.join(",\n"), include_str!("abx.js"));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Base 64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let word = part.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - part.len()));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= part.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn the_report_stands_alone() {
        let i = |m| Some(Interval { mean: m, low: m - 0.1, high: m + 0.1 });
        let summary: Vec<Summary> = [1.5, 6.0]
            .map(|r| Summary {
                kind: "speech".into(),
                system: "under<tone".into(),
                nominal: r,
                items: 3,
                means: [i(r); 12],
            })
            .to_vec();
        let sound = Listening { item: "a".into(), sounds: vec![("x".into(), vec![0.0; 10])], spectrograms: vec![1] };
        let html = write_report("t", &["n".into()], &summary, &[("speech".into(), "3".into(), None)], &[sound]);
        assert!(html.contains("<polyline") && html.contains("under&lt;tone") && !html.contains("under<tone"));
        assert!(!html.contains("http://") && !html.contains("https://"), "nothing is loaded from elsewhere");
    }
}
