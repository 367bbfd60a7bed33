//! Loss of packets, for tests and measurements: seeded, so that every codec meets the same losses.

use std::str::FromStr;

use crate::units::OutOfRange;

/// How packets get lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossModel {
    /// Each with the same probability, whatever happened before.
    Uniform {
        /// Share of packets lost, 0 to 0.9.
        rate: f64,
    },
    /// In bursts (Gilbert 1960): a good state without losses and a bad one in which all packets are lost.
    Gilbert {
        /// Share of packets lost, 0 to 0.9.
        rate: f64,
        /// Mean length of a burst in packets, 1 to 1000.
        burst: f64,
    },
}

impl LossModel {
    /// The losses that follow from a seed; true means lost.
    pub fn trace(self, seed: u64) -> LossTrace {
        LossTrace { model: self, state: seed, bad: false }
    }
}

impl FromStr for LossModel {
    type Err = OutOfRange;

    /// `uniform:0.1`, or `gilbert:0.1:3` for 10 % in bursts of 3 packets on average.
    fn from_str(s: &str) -> Result<Self, OutOfRange> {
        let error = |allowed| OutOfRange { what: "loss", got: s.to_owned(), allowed };
        let mut parts = s.split(':');
        let kind = parts.next().unwrap_or("");
        let numbers: Vec<f64> = parts.map(|p| p.parse().unwrap_or(f64::NAN)).collect();
        let rate_fits = |r: f64| (0.0..=0.9).contains(&r);
        match (kind, numbers.as_slice()) {
            ("uniform", &[rate]) if rate_fits(rate) => Ok(Self::Uniform { rate }),
            ("gilbert", &[rate, burst]) if rate_fits(rate) && (1.0..=1000.0).contains(&burst) => {
                Ok(Self::Gilbert { rate, burst })
            }
            _ => Err(error("uniform:RATE or gilbert:RATE:BURST, RATE 0 to 0.9, BURST 1 to 1000 packets")),
        }
    }
}

/// An endless sequence of losses.
#[derive(Debug, Clone)]
pub struct LossTrace {
    model: LossModel,
    state: u64,
    bad: bool,
}

impl LossTrace {
    /// SplitMix64 (Steele 2014), as a number in 0..1.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Iterator for LossTrace {
    type Item = bool;

    fn next(&mut self) -> Option<bool> {
        let draw = self.uniform();
        self.bad = match self.model {
            LossModel::Uniform { rate } => draw < rate,
            LossModel::Gilbert { rate, burst } => {
                let leave = 1.0 / burst;
                // In equilibrium a share `rate` of the packets is in the bad state.
                let enter = leave * rate / (1.0 - rate);
                if self.bad { draw >= leave } else { draw < enter }
            }
        };
        Some(self.bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_have_their_rate_and_bursts() {
        for (text, burst) in [("uniform:0.1", 1.11), ("gilbert:0.1:3", 3.0), ("gilbert:0.2:5", 5.0)] {
            let model: LossModel = text.parse().unwrap();
            let rate: f64 = text.split(':').nth(1).unwrap().parse().unwrap();
            let trace: Vec<bool> = model.trace(1).take(200_000).collect();
            let lost = trace.iter().filter(|&&l| l).count() as f64;
            let bursts = trace.windows(2).filter(|w| !w[0] && w[1]).count() as f64;
            assert!((lost / 2e5 - rate).abs() < 0.01, "{text}: {lost}");
            assert!((lost / bursts - burst).abs() < 0.15 * burst, "{text}: {}", lost / bursts);
            assert_eq!(trace[..100], model.trace(1).take(100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn errors_name_the_value() {
        for text in ["uniform:1.5", "gilbert:0.1", "gilbert:0.1:0", "x", "uniform:nan", "uniform:"] {
            let e = text.parse::<LossModel>().unwrap_err().to_string();
            assert!(e.contains(text) && e.contains("0 to 0.9"), "{e}");
        }
    }
}
