//! The report: one HTML file without anything beside it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::chart::{Chart, Line, Scale, svg};
use super::run::wav_bytes;
use super::stats::Interval;
use super::table::{Row, Summary};

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

/// The report as HTML.
///
/// `title` and `notes` (method, versions, machine, command) are shown as they are; `equivalents` are lines of kind,
/// what is compared, and the rate of the reference that sounds alike.
///
/// # Errors
/// Of the library that draws.
pub fn write_report(
    title: &str,
    notes: &[String],
    summary: &[Summary],
    equivalents: &[(String, String, Option<Interval>)],
    listening: &[Listening],
) -> io::Result<String> {
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
                out.push_str(&chart(&rows, (x, xname), (y, yname))?);
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
    Ok(out)
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1300px;margin:2em auto;padding:0 1em;color:#212529}\
svg{background:#fff;max-width:100%}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
td,th{padding:.15em .7em;text-align:right;border-bottom:1px solid #dee2e6}td:first-child,th:first-child{text-align:left}\
td:nth-child(2){text-align:left}img{max-width:100%}button,select{font:inherit;padding:.3em .8em}pre{background:#f1f3f5;padding:1em}\
small{color:#868e96}";

/// Curves of one number over another, with the bootstrap interval as a bar; nothing if there are no numbers.
fn chart(rows: &[&Summary], (x, x_name): (usize, &str), (y, title): (usize, &str)) -> io::Result<String> {
    let mut lines: BTreeMap<&str, Line<'_>> = BTreeMap::new();
    for row in rows {
        if let (Some(at), Some(value)) = (row.means[x].filter(|at| at.mean > 0.0), row.means[y]) {
            let line = lines.entry(&row.system).or_insert_with(|| Line::from((row.system.as_str(), Vec::new())));
            line.points.push((at.mean, value.mean));
            line.bars.push((at.mean, value.low, value.high));
        }
    }
    if lines.is_empty() {
        return Ok(String::new());
    }
    lines.values_mut().for_each(|l| l.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let lines = lines.into_values().collect();
    let svg = svg(&[Chart { title, x_name, x: Scale::Log, y: Scale::Fit, lines }])?;
    // Inside HTML the name space is known, and this page is to hold no address.
    let svg = svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    Ok(format!("<div role=\"img\" aria-label=\"{title} over {x_name}\">{svg}</div>\n"))
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
                BASE64.encode(&l.spectrograms)
            );
        }
    }
    let wav = |pcm: &[f32]| format!("data:audio/wav;base64,{}", BASE64.encode(&wav_bytes(pcm)));
    let sounds =
        |l: &Listening| l.sounds.iter().map(|(name, pcm)| json!({"name": name, "wav": wav(pcm)})).collect::<Value>();
    let items: Value = listening.iter().map(|l| json!({"name": l.item, "sounds": sounds(l)})).collect();
    // A name must not end the script.
    let items = items.to_string().replace('<', "\\u003c");
    let _ = writeln!(out, "<script>\nconst items = {items};\n{}</script>", include_str!("abx.js"));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let sound =
            Listening { item: "a</script>".into(), sounds: vec![("x".into(), vec![0.0; 10])], spectrograms: vec![1] };
        let html =
            write_report("t", &["n".into()], &summary, &[("speech".into(), "3".into(), None)], &[sound]).unwrap();
        assert_eq!(html.matches("</script>").count(), 1, "a name ends the script");
        assert!(html.contains("<polyline") && html.contains("under&lt;tone") && !html.contains("under<tone"));
        assert!(!html.contains("http://") && !html.contains("https://"), "nothing is loaded from elsewhere");
    }
}
