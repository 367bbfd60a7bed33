//! A lower rate without decoding: any prefix of the stages decodes. `cargo run --example relay -- MODEL_FOLDER`

use std::error::Error;

use undertone::{Decoder, Encoder, Model, PackedBundle, Rate, StageCount};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: relay MODEL_FOLDER")?;
    let model = Model::open(folder)?;
    let mut encoder = Encoder::new(&model, Rate::kbps(6.0))?;
    let mut decoder = Decoder::new(&model);
    let pcm: Vec<f32> = (0..24_000).map(|n| 0.3 * (0.05 * n as f32).sin()).collect();
    for bundle in encoder.push(&pcm)? {
        let whole = PackedBundle::pack(&bundle);
        let thin = whole.limited(StageCount::from_kbps(1.5)?)?;
        let sound = decoder.push(thin.unpack()?)?;
        println!("{} bytes came, {} went on, {} samples", whole.payload.len(), thin.payload.len(), sound.len());
    }
    Ok(())
}
