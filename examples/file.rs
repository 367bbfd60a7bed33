//! A recording to a `.utn` file and back: `cargo run --example file -- MODEL_FOLDER IN.wav OUT.wav`

use std::error::Error;

use undertone::{EncoderOptions, Model, Rate, SampleRate};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(input), Some(output)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: file MODEL_FOLDER IN.wav OUT.wav (16 bit, one channel)".into());
    };
    let model = Model::open(folder)?;
    let mut wav = hound::WavReader::open(input)?;
    let pcm = wav.samples::<i16>().map(|x| x.map(|x| f32::from(x) / 32_768.0)).collect::<Result<Vec<_>, _>>()?;
    let options = EncoderOptions::new(Rate::kbps(3.0)).sample_rate(SampleRate::new(wav.spec().sample_rate)?);

    let bytes = model.encode(&pcm, &options)?;
    println!("{} samples, {} bytes", pcm.len(), bytes.len());
    let sound = model.decode(&bytes)?;

    let spec = hound::WavSpec { channels: 1, sample_rate: 24_000, ..wav.spec() };
    let mut wav = hound::WavWriter::create(output, spec)?;
    sound.iter().try_for_each(|x| wav.write_sample((x * 32_767.0) as i16))?;
    Ok(wav.finalize()?)
}
