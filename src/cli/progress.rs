//! Progress bars, only where a person watches.

use std::io::IsTerminal;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `total` of something; hidden without a terminal or when a pipe is involved.
pub(super) fn bar(total: Option<u64>, unit: &str, ends: [&Path; 2]) -> ProgressBar {
    let pipe = ends.iter().any(|p| *p == Path::new("-"));
    let Some(total) = total.filter(|_| !pipe && std::io::stderr().is_terminal()) else {
        return ProgressBar::hidden();
    };
    let style = ProgressStyle::with_template(&format!("{{bar:40}} {{percent:>3}} % of {total} {unit}, {{eta}} left"));
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
