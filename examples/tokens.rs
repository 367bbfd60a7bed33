//! Codes as a matrix, how likely each is, and how they go on: `cargo run --example tokens -- MODEL_FOLDER`

use std::error::Error;
use std::sync::Arc;

use undertone::token::Generator;
use undertone::{Encoder, Model, Params, Rate};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: tokens MODEL_FOLDER")?;
    let model = Model::open(folder)?;
    let mut encoder = Encoder::new(&model, Rate::kbps(3.0))?;
    let stages = encoder.stages();
    let pcm: Vec<f32> = (0..24_000).map(|n| 0.3 * (0.05 * n as f32).sin()).collect();
    let codes: Vec<u16> = encoder.push(&pcm)?.into_iter().flat_map(|bundle| bundle.codes).collect();

    let likelihoods = model.log_likelihoods(&codes, stages)?;
    for (frame, (codes, likelihoods)) in
        codes.chunks(stages.index()).zip(likelihoods.chunks(stages.index())).enumerate().take(5)
    {
        let bits = -likelihoods.iter().sum::<f64>() / std::f64::consts::LN_2;
        println!("frame {frame}: {codes:?} in {bits:.1} of {} bits", 10 * codes.len());
    }

    let tokens = model.tokens().ok_or("the model has no token model")?;
    let seed = 1;
    let mut more = Generator::new(Arc::clone(tokens), codes.chunks(stages.index()), stages, Params::default(), seed);
    let mut continued = Vec::new();
    more.frame(&mut continued);
    println!("then: {continued:?}");
    Ok(())
}
