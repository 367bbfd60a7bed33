//! A codec that is only known by two commands: any rival, run as its own program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::recordings::read;
use crate::referee::{Codec, Packet, RefereeError, wav_bytes};

/// A codec of two shell commands. Each finds its input's path in `$IN` and writes to the path in `$OUT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: String,
    /// From a WAV file (mono, 24 kHz, 16 bits) to a file of codes, whose bytes are what is counted.
    encode: String,
    /// From that file to a recording, of any rate and format that `undertone encode` reads.
    decode: String,
}

impl Peer {
    /// From the three words of `--peer`.
    pub(super) fn parse(words: &[String]) -> Result<Vec<Self>> {
        let peer = |w: &[String]| match w {
            [name, encode, decode] if !name.trim().is_empty() && !name.contains(['/', '\n']) => {
                Ok(Self { name: name.clone(), encode: encode.clone(), decode: decode.clone() })
            }
            _ => Err(anyhow::anyhow!("--peer {}: wanted NAME ENCODE DECODE, and no / in the name", w.join(" "))),
        };
        words.chunks(3).map(peer).collect()
    }

    /// The commands, with files in `folder`.
    pub(super) fn codec(&self, folder: &Path) -> PeerCodec {
        let file =
            |what: &str| folder.join(format!("{:?}.{what}", std::thread::current().id()).replace(['(', ')'], "-"));
        PeerCodec { peer: self.clone(), wav: file("wav"), codes: file("codes") }
    }
}

/// A [`Peer`] at work on one recording.
#[derive(Debug)]
pub(super) struct PeerCodec {
    peer: Peer,
    wav: PathBuf,
    codes: PathBuf,
}

impl PeerCodec {
    fn run(command: &str, input: &Path, output: &Path) -> Result<()> {
        let (input, output) = (std::path::absolute(input)?, std::path::absolute(output)?);
        let done = Command::new("sh").args(["-c", command]).env("IN", input).env("OUT", &output).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{command}: {}: {}", done.status, said.trim());
        ensure!(output.exists(), "{command}: it wrote nothing to $OUT");
        Ok(())
    }

    fn encoded(&self, pcm: &[f32]) -> Result<Vec<u8>> {
        std::fs::write(&self.wav, wav_bytes(pcm)).with_context(|| self.wav.display().to_string())?;
        Self::run(&self.peer.encode, &self.wav, &self.codes)?;
        Ok(std::fs::read(&self.codes)?)
    }

    fn decoded(&self, codes: &[u8]) -> Result<Vec<f32>> {
        std::fs::write(&self.codes, codes).with_context(|| self.codes.display().to_string())?;
        let _ = std::fs::remove_file(&self.wav);
        Self::run(&self.peer.decode, &self.codes, &self.wav)?;
        read(&self.wav, 0)
    }
}

impl Drop for PeerCodec {
    fn drop(&mut self) {
        for file in [&self.wav, &self.codes] {
            let _ = std::fs::remove_file(file);
        }
    }
}

fn failed(e: anyhow::Error) -> RefereeError {
    RefereeError::Codec { codec: "--peer", reason: format!("{e:#}") }
}

impl Codec for PeerCodec {
    fn encode(&mut self, pcm: &[f32]) -> Result<Vec<Packet>, RefereeError> {
        let payload = self.encoded(pcm).map_err(failed)?;
        // How it would travel is not known.
        let bytes = payload.len();
        Ok(vec![Packet { payload, message_bytes: bytes, ip_bytes: bytes }])
    }

    fn decode(&mut self, packets: &[Option<&Packet>]) -> Result<Vec<f32>, RefereeError> {
        match packets {
            [Some(packet)] => self.decoded(&packet.payload).map_err(failed),
            _ => Err(failed(anyhow::anyhow!("{}: a file can only come whole", self.peer.name))),
        }
    }

    fn packet_ms(&self) -> usize {
        0
    }

    fn delay_ms(&self) -> f64 {
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[&str]) -> Vec<String> {
        all.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn commands_are_given_files_and_what_they_write_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let peers = Peer::parse(&words(&["copy", "cp \"$IN\" \"$OUT\"", "cp \"$IN\" \"$OUT\""])).unwrap();
        let mut codec = peers[0].codec(dir.path());
        let pcm: Vec<f32> = (0..24_000).map(|n| (n as f32 * 0.1).sin() * 0.5).collect();
        let packets = codec.encode(&pcm).unwrap();
        assert_eq!((packets.len(), packets[0].payload.len()), (1, 44 + 2 * pcm.len()));
        let back = codec.decode(&[Some(&packets[0])]).unwrap();
        assert!(back.len() == pcm.len() && back.iter().zip(&pcm).all(|(a, b)| (a - b).abs() < 1e-3));
        assert!(codec.decode(&[None]).is_err());
        drop(codec);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_command_does_wrong_is_said_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = |encode: &str| {
            let peers = Peer::parse(&words(&["p", encode, "true"])).unwrap();
            peers[0].codec(dir.path()).encode(&[0.0; 240]).unwrap_err().to_string()
        };
        assert!(error("echo no such rate >&2; exit 3").contains("exit status: 3: no such rate"));
        assert!(error("true").contains("wrote nothing"));
        assert!(Peer::parse(&words(&["a/b", "x", "y"])).unwrap_err().to_string().contains("NAME ENCODE DECODE"));
    }
}
