//! Which packets of a stream are lost: generated from a seed, or recorded.

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
    /// Errors: [`LossError`] for numbers outside their range.
    pub fn trace(self, packets: usize, seed: u64) -> Result<Vec<bool>, LossError> {
        let mut random = SplitMix(seed);
        match self {
            Self::Uniform { loss } => {
                if !(0.0..=1.0).contains(&loss) {
                    return Err(LossError::Loss(loss));
                }
                Ok((0..packets).map(|_| random.unit() < loss).collect())
            }
            Self::Gilbert { loss, burst } => {
                if !(0.0..1.0).contains(&loss) {
                    return Err(LossError::Loss(loss));
                }
                // Leaves the bad state with probability 1/burst; enters it so often that the share is `loss`.
                let enter = loss / (burst * (1.0 - loss));
                if !(1.0..f64::INFINITY).contains(&burst) || enter > 1.0 {
                    return Err(LossError::Burst { burst, loss });
                }
                let mut bad = random.unit() < loss;
                Ok((0..packets)
                    .map(|_| {
                        let lost = bad;
                        let u = random.unit();
                        bad = if bad { u >= 1.0 / burst } else { u < enter };
                        lost
                    })
                    .collect())
            }
        }
    }
}

/// Reads a recorded trace: a character a packet, 0 arrived, 1 lost, white space ignored.
///
/// Errors: [`LossError::Trace`], [`LossError::Empty`].
pub fn parse_trace(text: &str) -> Result<Vec<bool>, LossError> {
    let lost = |c| match c {
        '0' => Ok(false),
        '1' => Ok(true),
        other => Err(LossError::Trace(other)),
    };
    let trace: Vec<bool> = text.chars().filter(|c| !c.is_whitespace()).map(lost).collect::<Result<_, _>>()?;
    if trace.is_empty() { Err(LossError::Empty) } else { Ok(trace) }
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
struct SplitMix(u64);

impl SplitMix {
    /// Uniform in 0..1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
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
        assert_eq!(parse_trace("01 1\n0").unwrap(), [false, true, true, false]);
        assert_eq!(parse_trace("012"), Err(LossError::Trace('2')));
        assert_eq!(parse_trace(" \n"), Err(LossError::Empty));
    }
}
