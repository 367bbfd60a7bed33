//! `undertone devices`: what can be captured from and played on; and devices for `send` and `listen`.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};

use crate::capture::device::{DeviceEvent, DeviceInfo, Report, list};
use crate::table;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let devices = list()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", devices.iter().map(json).collect::<Value>())?;
        return Ok(());
    }
    let shape =
        |s: Option<(u32, u16)>| s.map_or_else(|| "-".to_owned(), |(hz, channels)| format!("{hz} Hz x {channels}"));
    let default = |d: &DeviceInfo| if d.default { "yes" } else { "" }.to_owned();
    let row = |d: &DeviceInfo| [d.name.clone(), shape(d.input), shape(d.output), default(d), one_line(&d.description)];
    let head = ["device", "input", "output", "default", "description"];
    out.write_all(table::lines(&head, &devices.iter().map(row).collect::<Vec<_>>()).as_bytes())?;
    if devices.is_empty() {
        errln!("undertone: no sound system answers here");
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn json(d: &DeviceInfo) -> Value {
    let shape = |s: Option<(u32, u16)>| s.map(|(hz, channels)| json!({"sample_rate_hz": hz, "channels": channels}));
    json!({
        "device": d.name,
        "description": d.description,
        "input": shape(d.input),
        "output": shape(d.output),
        "default": d.default,
    })
}

/// Tells people at the terminal what happens to a device.
pub(super) fn report(name: &str) -> Report {
    let name = name.to_owned();
    Box::new(move |event: &DeviceEvent| errln!("undertone: {name}: {event}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_escapes_what_makers_call_their_devices() {
        let (name, description) = ("alsa:hw:0".to_owned(), "A \"good\" one\n\\o/".to_owned());
        let info = DeviceInfo { name, description, input: Some((48_000, 2)), output: None, default: true };
        assert_eq!(
            json(&info).to_string(),
            r#"{"default":true,"description":"A \"good\" one\n\\o/","device":"alsa:hw:0","input":{"channels":2,"sample_rate_hz":48000},"output":null}"#
        );
    }
}
