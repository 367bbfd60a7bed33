//! Rows of results, their summary, and both as text.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::RefereeError;
use super::stats::{Interval, bootstrap, mean, rate_at};
use crate::table;

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

/// Rows as CSV with a head line.
///
/// # Errors
/// [`RefereeError::Table`].
pub fn write_rows(rows: &[Row]) -> Result<String, RefereeError> {
    let head: Vec<_> = HEAD.into_iter().chain(Row::NUMBERS).collect();
    let cells = |row: &Row| {
        let names = [row.item.clone(), row.kind.clone(), row.system.clone(), row.nominal.to_string()];
        names.into_iter().chain(row.values.map(|v| format!("{v:.5}"))).collect::<Vec<_>>()
    };
    Ok(table::csv(&head, &rows.iter().map(cells).collect::<Vec<_>>())?)
}

/// Reads what [`write_rows`] wrote.
///
/// # Errors
/// [`RefereeError::Table`].
pub fn read_rows(text: &str) -> Result<Vec<Row>, RefereeError> {
    csv::Reader::from_reader(text.as_bytes())
        .deserialize()
        .map(|row| {
            let (item, kind, system, nominal, values) = row?;
            Ok(Row { item, kind, system, nominal, values })
        })
        .collect()
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
///
/// # Errors
/// [`RefereeError::Table`].
pub fn write_summary_csv(summary: &[Summary]) -> Result<String, RefereeError> {
    let names = Row::NUMBERS.iter().flat_map(|n| [(*n).to_owned(), format!("{n}_low"), format!("{n}_high")]);
    let head: Vec<_> =
        ["kind", "system", "nominal_kbps", "items"].map(str::to_owned).into_iter().chain(names).collect();
    let cells = |s: &Summary| {
        let number = |v| format!("{v:.4}");
        let means =
            s.means.iter().flat_map(|m| m.map_or_else(Default::default, |m| [m.mean, m.low, m.high].map(number)));
        [s.kind.clone(), s.system.clone(), s.nominal.to_string(), s.items.to_string()]
            .into_iter()
            .chain(means)
            .collect()
    };
    let head: Vec<_> = head.iter().map(String::as_str).collect();
    Ok(table::csv(&head, &summary.iter().map(cells).collect::<Vec<Vec<_>>>())?)
}

/// Means as lines for people; `numbers` are those of [`Row::NUMBERS`] to show, by place, head and digits.
pub fn summary_lines(summary: &[Summary], numbers: &[(usize, &str, usize)]) -> String {
    let head: Vec<_> = ["recordings", "codec", "kbit/s"].into_iter().chain(numbers.iter().map(|n| n.1)).collect();
    let mean = |m: Option<Interval>, digits| m.map_or_else(|| "-".to_owned(), |m| format!("{:.digits$}", m.mean));
    let cells = |s: &Summary| {
        let means = numbers.iter().map(|&(place, _, digits)| mean(s.means[place], digits));
        [s.kind.clone(), s.system.clone(), s.nominal.to_string()].into_iter().chain(means).collect()
    };
    table::lines(&head, &summary.iter().map(cells).collect::<Vec<Vec<_>>>())
}

/// Summary as a JSON array of objects; a number is `[mean, low, high]` or null.
pub fn write_summary_json(summary: &[Summary]) -> String {
    let rounded = |v: f64| (v * 1e4).round() / 1e4;
    let objects: Vec<Value> = summary
        .iter()
        .map(|s| {
            let mut o = json!({"kind": s.kind, "system": s.system, "nominal_kbps": s.nominal, "items": s.items});
            for (name, m) in Row::NUMBERS.iter().zip(s.means) {
                o[*name] = m.map(|m| [m.mean, m.low, m.high].map(rounded)).into();
            }
            o
        })
        .collect();
    format!("{:#}\n", Value::from(objects))
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
        let rows = [row("a, \"b\"\n", "Opus", 6.0, 2.5), row("b", "undertone", 1.5, f64::NAN)];
        let back = read_rows(&write_rows(&rows).unwrap()).unwrap();
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
    fn what_has_no_mean_is_null_and_an_empty_cell() {
        let mut means = [None; 12];
        means[0] = Some(Interval { mean: 1.5, low: 1.25, high: 1.750_04 });
        let s = Summary { kind: "speech".into(), system: "a, b".into(), nominal: 1.5, items: 2, means };
        let csv = write_summary_csv(std::slice::from_ref(&s)).unwrap();
        assert!(csv.contains("\nspeech,\"a, b\",1.5,2,1.5000,1.2500,1.7500,,,,"), "{csv}");
        let json: Value = serde_json::from_str(&write_summary_json(&[s])).unwrap();
        assert_eq!((&json[0]["payload_kbps"], &json[0]["pesq_wb"]), (&json!([1.5, 1.25, 1.75]), &Value::Null));
    }
}
