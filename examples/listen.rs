//! The codes of a daemon's stream: `cargo run --example listen -- HOST:PORT STREAM MODEL_FOLDER`

use std::error::Error;

use undertone::service::Client;
use undertone::session::{Hello, StreamName};
use undertone::{Decoder, Model};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(stream), Some(folder)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: listen HOST:PORT STREAM MODEL_FOLDER".into());
    };
    let model = Model::open(folder)?;
    let hello = Hello::subscribe(StreamName::new(&stream)?, model.profile().model_id);
    let mut client = Client::connect(&address, hello).await?;
    let mut decoder = Decoder::new(&model);
    while let Some(packed) = client.next().await? {
        if packed.is_background() {
            continue;
        }
        let bundle = packed.unpack()?;
        println!("frame {}: {:?}", bundle.first_frame, &bundle.codes[..bundle.stages.index()]);
        let _sound = decoder.push(bundle)?;
    }
    Ok(())
}
