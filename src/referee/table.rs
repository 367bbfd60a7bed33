//! Rows of results, their summary, and both as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::RefereeError;
use super::stats::{Interval, bootstrap, mean, rate_at};

/// One recording through one codec at one setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Recording.
    pub item: String,
    /// Kind of recording: what stands before the first underscore or digit of its name.
    pub kind: String,
    /// Codec with its mode: points of one curve share it.
    pub system: String,
    /// Nominal rate in kbit/s.
    pub nominal: f64,
    /// The measured numbers, in the order of [`Row::NUMBERS`].
    pub values: [f64; 12],
}

impl Row {
    /// Names of the measured numbers; the last is that of another program, NaN without one.
    pub const NUMBERS: [&'static str; 12] = [
        "payload_kbps",
        "message_kbps",
        "ip_kbps",
        "pesq_wb",
        "estoi",
        "lsd_db",
        "encode_x",
        "decode_x",
        "delay_ms",
        "lag_samples",
        "loss_share",
        "other_score",
    ];
}

const HEAD: [&str; 4] = ["item", "kind", "system", "nominal_kbps"];

/// Rows as CSV with a head line; commas and quotes in names become spaces.
pub fn write_rows(rows: &[Row]) -> String {
    let mut out = format!("{},{}\n", HEAD.join(","), Row::NUMBERS.join(","));
    for row in rows {
        let _ = write!(out, "{},{},{},{}", clean(&row.item), clean(&row.kind), clean(&row.system), row.nominal);
        for v in row.values {
            let _ = write!(out, ",{v:.5}");
        }
        out.push('\n');
    }
    out
}

/// A name that fits a cell.
fn clean(name: &str) -> String {
    name.replace([',', '"', '\n', '\r'], " ")
}

/// Reads what [`write_rows`] wrote.
///
/// Errors: [`RefereeError::Table`].
pub fn read_rows(text: &str) -> Result<Vec<Row>, RefereeError> {
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate().skip(1) {
        let error = |reason: &str| RefereeError::Table { line: i + 1, reason: reason.to_owned() };
        let cells: Vec<&str> = line.split(',').collect();
        if cells.len() != HEAD.len() + Row::NUMBERS.len() {
            return Err(error("wrong number of cells"));
        }
        let number = |s: &str| s.parse::<f64>().map_err(|_| error("not a number"));
        let mut values = [0.0; 12];
        for (v, cell) in values.iter_mut().zip(&cells[HEAD.len()..]) {
            *v = number(cell)?;
        }
        let [item, kind, system] = [0, 1, 2].map(|c| cells[c].to_owned());
        rows.push(Row { item, kind, system, nominal: number(cells[3])?, values });
    }
    Ok(rows)
}

/// Means of one codec at one setting over the recordings of a kind.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Kind of recording.
    pub kind: String,
    /// Codec with its mode.
    pub system: String,
    /// Nominal rate in kbit/s.
    pub nominal: f64,
    /// Recordings.
    pub items: usize,
    /// Means with intervals, in the order of [`Row::NUMBERS`]; None where no recording has a number.
    pub means: [Option<Interval>; 12],
}

/// Means over recordings, sorted by kind, system, rate.
pub fn summarise(rows: &[Row]) -> Vec<Summary> {
    let mut groups: BTreeMap<(&str, &str, u64), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry((&row.kind, &row.system, (row.nominal * 1e3) as u64)).or_default().push(row);
    }
    groups
        .into_values()
        .map(|g| Summary {
            kind: g[0].kind.clone(),
            system: g[0].system.clone(),
            nominal: g[0].nominal,
            items: g.len(),
            means: std::array::from_fn(|k| mean(&g.iter().map(|r| r.values[k]).collect::<Vec<_>>())),
        })
        .collect()
}

/// The payload rate at which `reference` reaches the mean quality of `system` at `nominal` over recordings of `kind`,
/// paired: the interval resamples recordings for both together. `metric` counts in [`Row::NUMBERS`].
///
/// None where the reference's curve does not span that quality.
pub fn equivalent_rate(
    rows: &[Row],
    kind: &str,
    (system, nominal): (&str, f64),
    reference: &str,
    metric: usize,
) -> Option<Interval> {
    type Curve = BTreeMap<u64, (f64, f64)>;
    let mut items: BTreeMap<&str, (Option<f64>, Curve)> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.kind == kind && r.values[metric].is_finite()) {
        let entry = items.entry(&row.item).or_default();
        if row.system == system && row.nominal == nominal {
            entry.0 = Some(row.values[metric]);
        } else if row.system == reference {
            entry.1.insert((row.nominal * 1e3) as u64, (row.values[0], row.values[metric]));
        }
    }
    let points = items.values().map(|i| i.1.len()).max()?;
    let items: Vec<(f64, Curve)> =
        items.into_values().filter(|i| i.1.len() == points).filter_map(|(q, c)| q.map(|q| (q, c))).collect();
    bootstrap(items.len(), |picks| {
        let n = picks.len() as f64;
        let quality = picks.iter().map(|&i| items[i].0).sum::<f64>() / n;
        let curve: Vec<(f64, f64)> = items[0]
            .1
            .keys()
            .map(|k| {
                let sum =
                    picks.iter().filter_map(|&i| items[i].1.get(k)).fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
                (sum.0 / n, sum.1 / n)
            })
            .collect();
        rate_at(&curve, quality)
    })
}

/// Summary as CSV: mean, low and high of every number.
pub fn write_summary_csv(summary: &[Summary]) -> String {
    let mut out = "kind,system,nominal_kbps,items".to_owned();
    for name in Row::NUMBERS {
        let _ = write!(out, ",{name},{name}_low,{name}_high");
    }
    out.push('\n');
    for s in summary {
        let _ = write!(out, "{},{},{},{}", clean(&s.kind), clean(&s.system), s.nominal, s.items);
        for m in s.means {
            match m {
                Some(m) => drop(write!(out, ",{:.4},{:.4},{:.4}", m.mean, m.low, m.high)),
                None => out.push_str(",,,"),
            }
        }
        out.push('\n');
    }
    out
}

/// Summary as a JSON array of objects; a number is `[mean, low, high]` or null.
pub fn write_summary_json(summary: &[Summary]) -> String {
    let objects: Vec<String> = summary
        .iter()
        .map(|s| {
            let mut o = format!(
                "{{\"kind\":{},\"system\":{},\"nominal_kbps\":{},\"items\":{}",
                quoted(&s.kind),
                quoted(&s.system),
                s.nominal,
                s.items
            );
            for (name, m) in Row::NUMBERS.iter().zip(s.means) {
                let value = m.map_or("null".to_owned(), |m| format!("[{:.4},{:.4},{:.4}]", m.mean, m.low, m.high));
                let _ = write!(o, ",\"{name}\":{value}");
            }
            o.push('}');
            o
        })
        .collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() || c == '<' => drop(write!(out, "\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(item: &str, system: &str, nominal: f64, quality: f64) -> Row {
        let mut values = [0.0; 12];
        (values[0], values[3]) = (nominal, quality);
        Row { item: item.to_owned(), kind: "speech".to_owned(), system: system.to_owned(), nominal, values }
    }

    #[test]
    fn rows_survive_their_file() {
        let rows = [row("a", "Opus", 6.0, 2.5), row("b", "undertone", 1.5, f64::NAN)];
        let back = read_rows(&write_rows(&rows)).unwrap();
        assert_eq!(back[0], rows[0]);
        assert!(back[1].values[3].is_nan());
        assert!(read_rows("head\n1,2,3\n").is_err());
    }

    #[test]
    fn the_equivalent_rate_is_where_the_curve_crosses() {
        let mut rows = Vec::new();
        for item in ["a", "b", "c"] {
            rows.extend([row(item, "Opus", 4.0, 2.0), row(item, "Opus", 16.0, 4.0), row(item, "undertone", 3.0, 3.0)]);
        }
        let i = equivalent_rate(&rows, "speech", ("undertone", 3.0), "Opus", 3).unwrap();
        assert!((i.mean - 8.0).abs() < 1e-9 && (i.high - i.low) < 1e-9, "{i:?}");
        rows.retain(|r| r.nominal < 16.0);
        assert_eq!(equivalent_rate(&rows, "speech", ("undertone", 3.0), "Opus", 3), None);
    }

    #[test]
    fn a_name_cannot_break_the_json() {
        assert_eq!(quoted("a\"b\\c\n</script>"), "\"a\\\"b\\\\c\\u000a\\u003c/script>\"");
    }
}
