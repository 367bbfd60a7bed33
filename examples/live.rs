//! Sound as it comes, in bundles of 100 ms over a line that loses some: `cargo run --example live -- MODEL_FOLDER`

use std::error::Error;

use undertone::{Decoder, Encoder, Model, Rate};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: live MODEL_FOLDER")?;
    let model = Model::open(folder)?;
    let mut encoder = Encoder::new(&model, Rate::kbps(6.0))?;
    let mut decoder = Decoder::new(&model);
    let (mut sent, mut heard) = (0, 0);
    for piece in 0..40 {
        let pcm: Vec<f32> = (0..1_200).map(|n| 0.3 * (0.05 * (piece * 1_200 + n) as f32).sin()).collect();
        for bundle in encoder.push(&pcm)? {
            sent += 1;
            if sent % 7 == 0 {
                continue; // Lost: the next bundle tells the decoder, and what is missing is made up.
            }
            heard += decoder.push(bundle)?.len();
        }
    }
    println!("{sent} bundles sent, {heard} samples heard");
    Ok(())
}
