//! Which packets of a stream are lost: generated from a seed, or recorded.

use std::str::FromStr;

use crate::model::SplitMix;

/// How packets are lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossModel {
    /// Every packet is lost with this probability, independently.
    Uniform {
        /// 0 to 1.
        loss: f64,
    },
    /// Bursts: a two-state Markov chain in which every packet of the bad state is lost
    /// (Gilbert, "Capacity of a Burst-Noise Channel", Bell System Technical Journal 39(5), 1960).
    Gilbert {
        /// Share of packets lost in the long run, 0 to below 1.
        loss: f64,
        /// Mean length of a burst in packets, at least 1.
        burst: f64,
    },
}

/// Why a loss model or a recorded trace cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// A share of packets outside its range.
    #[error("loss {0} out of range, allowed 0 to 1, and below 1 in bursts")]
    Loss(f64),
    /// A burst shorter than a packet, or so short that the loss cannot be reached with it.
    #[error("mean burst of {burst} packets out of range at loss {loss}, allowed at least 1 and loss / (1 - loss)")]
    Burst {
        /// Packets.
        burst: f64,
        /// Share of packets lost.
        loss: f64,
    },
    /// A character of a trace that is neither 0 (arrived), 1 (lost) nor white space.
    #[error("trace: '{0}' is neither 0 (arrived) nor 1 (lost)")]
    Trace(char),
    /// A trace without packets.
    #[error("trace: no packets")]
    Empty,
}

impl LossModel {
    /// `packets` packets, true where one is lost. The same model and seed always give the same trace, and a longer
    /// trace starts with the shorter one.
    ///
    /// # Errors
    /// [`LossError`] for numbers outside their range.
    pub fn trace(self, packets: usize, seed: u64) -> Result<Vec<bool>, LossError> {
        Ok(self.losses(seed)?.take(packets).collect())
    }

    /// The endless trace of a seed.
    ///
    /// # Errors
    /// [`LossError`] for numbers outside their range.
    pub fn losses(self, seed: u64) -> Result<LossTrace, LossError> {
        let mut random = SplitMix(seed);
        match self {
            Self::Uniform { loss } if (0.0..=1.0).contains(&loss) => {
                Ok(LossTrace { random, enter: loss, leave: 1.0 - loss, bad: None })
            }
            Self::Uniform { loss } => Err(LossError::Loss(loss)),
            Self::Gilbert { loss, .. } if !(0.0..1.0).contains(&loss) => Err(LossError::Loss(loss)),
            Self::Gilbert { loss, burst } => {
                // Leaves the bad state with probability 1/burst; enters it so often that the share is `loss`.
                let enter = loss / (burst * (1.0 - loss));
                if !(1.0..f64::INFINITY).contains(&burst) || enter > 1.0 {
                    return Err(LossError::Burst { burst, loss });
                }
                let bad = Some(random.unit() < loss);
                Ok(LossTrace { random, enter, leave: 1.0 / burst, bad })
            }
        }
    }
}

impl FromStr for LossModel {
    type Err = String;

    /// `uniform:0.1`, or `gilbert:0.1:3` for 10 % in bursts of 3 packets on average.
    fn from_str(s: &str) -> Result<Self, String> {
        let mut parts = s.split(':');
        let kind = parts.next().unwrap_or("");
        let numbers: Vec<f64> = parts.map(|p| p.parse().unwrap_or(f64::NAN)).collect();
        let model = match (kind, numbers.as_slice()) {
            ("uniform", &[loss]) => Self::Uniform { loss },
            ("gilbert", &[loss, burst]) => Self::Gilbert { loss, burst },
            _ => return Err(format!("loss \"{s}\": expected uniform:LOSS or gilbert:LOSS:BURST")),
        };
        model.losses(0).map(|_| model).map_err(|e| format!("loss \"{s}\": {e}"))
    }
}

/// An endless sequence of packets, true where one is lost.
#[derive(Debug, Clone)]
pub struct LossTrace {
    random: SplitMix,
    enter: f64,
    leave: f64,
    /// The state that the next packet meets; None where packets do not depend on each other.
    bad: Option<bool>,
}

impl Iterator for LossTrace {
    type Item = bool;

    fn next(&mut self) -> Option<bool> {
        let u = self.random.unit();
        Some(match self.bad {
            None => u < self.enter,
            Some(bad) => {
                self.bad = Some(if bad { u >= self.leave } else { u < self.enter });
                bad
            }
        })
    }
}

/// Reads a recorded trace: a character a packet, 0 arrived, 1 lost, white space ignored.
///
/// # Errors
/// [`LossError::Trace`], [`LossError::Empty`].
pub fn parse_trace(text: &str) -> Result<Vec<bool>, LossError> {
    let lost = |c| match c {
        '0' => Ok(false),
        '1' => Ok(true),
        other => Err(LossError::Trace(other)),
    };
    let trace: Vec<bool> = text.chars().filter(|c| !c.is_whitespace()).map(lost).collect::<Result<_, _>>()?;
    if trace.is_empty() { Err(LossError::Empty) } else { Ok(trace) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(trace: &[bool]) -> f64 {
        trace.iter().filter(|&&l| l).count() as f64 / trace.len() as f64
    }

    #[test]
    fn uniform_loss_has_its_share_and_no_memory() {
        let t = LossModel::Uniform { loss: 0.1 }.trace(100_000, 1).unwrap();
        assert!((share(&t) - 0.1).abs() < 0.004);
        let after: Vec<bool> = t.windows(2).filter(|w| w[0]).map(|w| w[1]).collect();
        assert!((share(&after) - 0.1).abs() < 0.015);
    }

    #[test]
    fn bursts_have_their_share_and_length() {
        let t = LossModel::Gilbert { loss: 0.1, burst: 4.0 }.trace(200_000, 1).unwrap();
        assert!((share(&t) - 0.1).abs() < 0.006, "{}", share(&t));
        let bursts = t.windows(2).filter(|w| !w[0] && w[1]).count();
        let length = t.iter().filter(|&&l| l).count() as f64 / bursts as f64;
        assert!((length - 4.0).abs() < 0.2, "{length}");
    }

    #[test]
    fn a_seed_decides_the_trace() {
        let model = LossModel::Gilbert { loss: 0.2, burst: 3.0 };
        let (a, b) = (model.trace(500, 9).unwrap(), model.trace(600, 9).unwrap());
        assert_eq!(a, b[..500]);
        assert_ne!(a, model.trace(500, 10).unwrap());
    }

    #[test]
    fn edges_and_wrong_numbers() {
        assert_eq!(share(&LossModel::Uniform { loss: 0.0 }.trace(1_000, 1).unwrap()), 0.0);
        assert_eq!(share(&LossModel::Uniform { loss: 1.0 }.trace(1_000, 1).unwrap()), 1.0);
        assert!(LossModel::Uniform { loss: -0.1 }.trace(1, 1).is_err());
        assert!(LossModel::Uniform { loss: f64::NAN }.trace(1, 1).is_err());
        assert!(LossModel::Gilbert { loss: 0.1, burst: 0.5 }.trace(1, 1).is_err());
        assert!(LossModel::Gilbert { loss: 0.9, burst: 2.0 }.trace(1, 1).is_err());
        assert_eq!("gilbert:0.1:3".parse(), Ok(LossModel::Gilbert { loss: 0.1, burst: 3.0 }));
        for text in ["uniform:2", "gilbert:0.1", "gilbert:0.1:0", "x", "uniform:"] {
            let e = text.parse::<LossModel>().unwrap_err();
            assert!(e.contains(text), "{e}");
        }
        assert_eq!(parse_trace("01 1\n0").unwrap(), [false, true, true, false]);
        assert_eq!(parse_trace("012"), Err(LossError::Trace('2')));
        assert_eq!(parse_trace(" \n"), Err(LossError::Empty));
    }
}
