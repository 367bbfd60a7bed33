//! The machine's sound systems through cpal: ALSA, and PulseAudio (or PipeWire in its place) where it runs.

use std::sync::Arc;

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{BufferSize, ErrorKind, FromSample, Sample, SampleFormat, SizedSample, StreamConfig, SupportedStreamConfig};

use super::{Backend, DEFAULT, DeviceError, Link, MakeCapture, MakePlayback, Opened};
use crate::units::SampleRate;

/// How long opening may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// Callbacks a second that a capture device is asked for; the default of some systems is one in two seconds.
const CAPTURE_CALLS: u32 = 50;

/// A sound device as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What `--device` takes, as in `alsa:hw:CARD=0`.
    pub name: String,
    /// What its maker calls it.
    pub description: String,
    /// Whether it captures, and its rate and channels if so.
    pub input: Option<(u32, u16)>,
    /// Whether it plays, and its rate and channels if so.
    pub output: Option<(u32, u16)>,
    /// Whether it is its sound system's default for capturing or playing.
    pub default: bool,
}

fn system(name: &str, e: &cpal::Error) -> DeviceError {
    DeviceError::System { name: name.to_owned(), reason: e.to_string() }
}

/// All devices of all sound systems.
///
/// # Errors
/// [`DeviceError`] if a sound system answers with an error.
pub fn list() -> Result<Vec<DeviceInfo>, DeviceError> {
    let mut all = Vec::new();
    for id in cpal::available_hosts() {
        let host = cpal::host_from_id(id).map_err(|e| system(id.name(), &e))?;
        let defaults: Vec<_> = [host.default_input_device(), host.default_output_device()]
            .into_iter()
            .flatten()
            .filter_map(|d| d.id().ok())
            .collect();
        for device in host.devices().map_err(|e| system(id.name(), &e))? {
            let Ok(id) = device.id() else { continue };
            let shape = |c: SupportedStreamConfig| (c.sample_rate(), c.channels());
            let description = device.description();
            all.push(DeviceInfo {
                default: defaults.contains(&id),
                name: id.to_string(),
                description: description.map_or_else(|_| String::new(), |d| d.name().to_owned()),
                input: device.default_input_config().ok().map(shape),
                output: device.default_output_config().ok().map(shape),
            });
        }
    }
    Ok(all)
}

/// cpal.
#[derive(Debug, Default)]
pub struct CpalBackend;

/// The device of that name: as listed, without the sound system in front, or the default.
fn find(name: &str, direction: &'static str) -> Result<cpal::Device, DeviceError> {
    let unknown = || DeviceError::Unknown { direction, name: name.to_owned() };
    if name == DEFAULT {
        let host = cpal::default_host();
        let device = if direction == "input" { host.default_input_device() } else { host.default_output_device() };
        return device.ok_or_else(unknown);
    }
    for id in cpal::available_hosts() {
        // A system that does not answer may still have a neighbour that has the device.
        let Ok(host) = cpal::host_from_id(id) else { continue };
        let Ok(devices) = host.devices() else { continue };
        for device in devices {
            if !device.id().is_ok_and(|id| id.id() == name || id.to_string() == name) {
                continue;
            }
            // Asked only of a device that fits: ALSA opens a device to answer, and complains on the standard error.
            let able = if direction == "input" {
                device.default_input_config().is_ok()
            } else {
                device.default_output_config().is_ok()
            };
            if able {
                return Ok(device);
            }
        }
    }
    Err(unknown())
}

/// What the system's error callback is told, sorted by what it means for us.
fn failed(link: &Link, e: &cpal::Error) {
    match e.kind() {
        // Counted where it shows: at the ring.
        ErrorKind::Xrun => {}
        ErrorKind::RealtimeDenied | ErrorKind::DeviceChanged => link.note(e.to_string()),
        _ => link.fail(e.to_string()),
    }
}

fn rate(name: &str, config: &SupportedStreamConfig) -> Result<SampleRate, DeviceError> {
    SampleRate::new(config.sample_rate())
        .map_err(|e| DeviceError::System { name: name.to_owned(), reason: e.to_string() })
}

fn unsupported(name: &str, format: SampleFormat) -> DeviceError {
    DeviceError::System { name: name.to_owned(), reason: format!("samples of type {format} are not supported") }
}

impl Backend for CpalBackend {
    fn open_input(&mut self, name: &str, link: &Arc<Link>, make: MakeCapture<'_>) -> Result<Opened, DeviceError> {
        let device = find(name, "input")?;
        let config = device.default_input_config().map_err(|e| system(name, &e))?;
        match config.sample_format() {
            SampleFormat::F32 => capture::<f32>(&device, name, &config, link, make),
            SampleFormat::I16 => capture::<i16>(&device, name, &config, link, make),
            SampleFormat::I24 => capture::<cpal::I24>(&device, name, &config, link, make),
            SampleFormat::I32 => capture::<i32>(&device, name, &config, link, make),
            SampleFormat::U8 => capture::<u8>(&device, name, &config, link, make),
            other => Err(unsupported(name, other)),
        }
    }

    fn open_output(&mut self, name: &str, link: &Arc<Link>, make: MakePlayback<'_>) -> Result<Opened, DeviceError> {
        let device = find(name, "output")?;
        let config = device.default_output_config().map_err(|e| system(name, &e))?;
        match config.sample_format() {
            SampleFormat::F32 => playback::<f32>(&device, name, &config, link, make),
            SampleFormat::I16 => playback::<i16>(&device, name, &config, link, make),
            SampleFormat::I24 => playback::<cpal::I24>(&device, name, &config, link, make),
            SampleFormat::I32 => playback::<i32>(&device, name, &config, link, make),
            SampleFormat::U8 => playback::<u8>(&device, name, &config, link, make),
            other => Err(unsupported(name, other)),
        }
    }
}

fn capture<T>(
    device: &cpal::Device,
    name: &str,
    config: &SupportedStreamConfig,
    link: &Arc<Link>,
    make: MakeCapture<'_>,
) -> Result<Opened, DeviceError>
where
    T: SizedSample + Send + 'static,
    f32: FromSample<T>,
{
    let rate = rate(name, config)?;
    let wanted = rate.hz() / CAPTURE_CALLS;
    let buffer = match config.buffer_size() {
        cpal::SupportedBufferSize::Range { min, max } if (*min..=*max).contains(&wanted) => BufferSize::Fixed(wanted),
        _ => BufferSize::Default,
    };
    let stream_config = StreamConfig { buffer_size: buffer, ..config.config() };
    let (mut callback, link) = (make(rate, config.channels()), Arc::clone(link));
    let stream = device
        .build_input_stream(
            stream_config,
            move |data: &[T], _| callback.run(data),
            move |e| failed(&link, &e),
            Some(PATIENCE),
        )
        .map_err(|e| system(name, &e))?;
    stream.play().map_err(|e| system(name, &e))?;
    Ok(Box::new(stream))
}

fn playback<T>(
    device: &cpal::Device,
    name: &str,
    config: &SupportedStreamConfig,
    link: &Arc<Link>,
    make: MakePlayback<'_>,
) -> Result<Opened, DeviceError>
where
    T: SizedSample + Sample + FromSample<f32> + Send + 'static,
{
    let rate = rate(name, config)?;
    // Small fixed buffers are played as silence by some (PulseAudio's null sink), so the device may choose.
    let stream_config = StreamConfig { buffer_size: BufferSize::Default, ..config.config() };
    let (mut callback, told) = (make(rate, config.channels()), Arc::clone(link));
    let link = Arc::clone(link);
    let run = move |data: &mut [T], info: &cpal::OutputCallbackInfo| {
        callback.run(data);
        let time = info.timestamp();
        link.set_delay(time.playback.duration_since(time.callback));
    };
    let stream = device
        .build_output_stream(stream_config, run, move |e| failed(&told, &e), Some(PATIENCE))
        .map_err(|e| system(name, &e))?;
    stream.play().map_err(|e| system(name, &e))?;
    Ok(Box::new(stream))
}
