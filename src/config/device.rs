//! Sound devices in the configuration.

use serde::Deserialize;

use super::{ConfigError, value_error};
use crate::capture::device::DEFAULT;
use crate::session::StreamName;

/// Longest name of a device.
const MAX_NAME: usize = 200;

/// A sound device and its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePort {
    /// Name as `undertone devices` lists it, or `default`.
    pub device: String,
    /// Stream that its sound becomes, or that it plays.
    pub stream: StreamName,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDevice {
    #[serde(default = "default_device")]
    device: String,
    stream: String,
}

fn default_device() -> String {
    DEFAULT.to_owned()
}

/// Whether a name can stand in logs, metrics and JSON as it is.
fn checked_name(name: &str) -> Result<String, String> {
    let plain = |c: char| !c.is_control() && !['"', '\\'].contains(&c);
    if (1..=MAX_NAME).contains(&name.len()) && name.chars().all(plain) {
        Ok(name.to_owned())
    } else {
        Err(format!("device must be 1 to {MAX_NAME} bytes without quotes, backslashes and control characters"))
    }
}

impl RawDevice {
    pub(super) fn check(self, key: &'static str) -> Result<DevicePort, ConfigError> {
        let device = checked_name(&self.device).map_err(|allowed| value_error(key, &self.device, allowed))?;
        let stream = StreamName::new(&self.stream)
            .map_err(|e| value_error(key, &e.got, format!("{} must be {}", e.what, e.allowed)))?;
        Ok(DevicePort { device, stream })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn devices_are_named_and_have_a_stream() {
        let config = Config::parse(
            "[[device_input]]\nstream = \"a\"\n[[device_output]]\ndevice = \"alsa:hw:0\"\nstream = \"b\"",
        );
        let config = config.unwrap();
        assert_eq!(
            (config.device_input[0].device.as_str(), config.device_output[0].device.as_str()),
            ("default", "alsa:hw:0")
        );
        for (text, wanted) in [
            ("[[device_input]]\nstream = \"a b\"", ["device_input", "a b", "1 to 64"]),
            ("[[device_output]]\nstream = \"a\"\ndevice = \"\"", ["device_output", "device", "1 to 200"]),
            ("[[device_output]]\nstream = \"a\"\ndevice = 'x\"y'", ["device_output", "x\"y", "quotes"]),
            ("[[device_input]]\nstream = \"a\"\nrate = 3", ["rate", "unknown field", "stream"]),
        ] {
            let e = Config::parse(text).unwrap_err().to_string();
            assert!(wanted.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
