//! The undertone codec for browsers: what `codec.js` of the page calls in WebAssembly.
//!
//! A plain border, without generated code: JavaScript asks for room, writes bytes there, calls a function, and reads what it made at
//! the places that the `_at` functions tell. Nothing here is handed a pointer, so nothing here is unsafe. One instance has one
//! model and one session, and lives in a Worker of its own.
//!
//! Functions that can fail give 0, 1 when the session came to its end, and -1 after an error; the text of either is then there.

pub mod dialog;
pub mod listening;
pub mod publishing;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use codec::portable::Networks;
use codec::{Model, StageCount};

use dialog::{Dialog, End, failed};
use listening::{Figures, Listening};
use publishing::Publishing;

/// Which functions there are, and what they mean; `codec.js` knows one number.
const ABI: u32 = 1;

#[derive(Debug)]
enum Session {
    Listening(Box<Listening>),
    Publishing(Box<Publishing>),
}

#[derive(Debug, Default)]
struct State {
    /// Written by JavaScript.
    input: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
    model: Option<Model>,
    session: Option<Session>,
    /// Bytes to be sent, samples to be played, and words for people.
    out: Vec<u8>,
    pcm: Vec<f32>,
    text: String,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

fn with<T>(body: impl FnOnce(&mut State) -> T) -> T {
    STATE.with(|state| body(&mut state.borrow_mut()))
}

/// Runs what makes bytes and samples, and keeps them and the text of an end.
fn run(body: impl FnOnce(&mut State) -> Result<(), End>) -> i32 {
    with(|state| {
        state.out.clear();
        state.pcm.clear();
        let result = body(state);
        if let Some(session) = &mut state.session {
            state.out = session.dialog().take();
        }
        match result {
            Ok(()) => 0,
            Err(End::Done(text)) => {
                state.text = text;
                1
            }
            Err(End::Failed(text)) => {
                state.text = text;
                -1
            }
        }
    })
}

impl Session {
    fn dialog(&mut self) -> &mut Dialog {
        match self {
            Self::Listening(session) => session.dialog(),
            Self::Publishing(session) => session.dialog(),
        }
    }
}

impl State {
    /// The input: a text of so many bytes and what follows it.
    fn parts(&self, text: usize) -> Result<(&str, &[u8]), End> {
        let (text, rest) = self.input.split_at_checked(text).ok_or_else(|| failed("the input is shorter"))?;
        Ok((std::str::from_utf8(text).map_err(failed)?, rest))
    }

    /// The name of a stream and a token.
    fn names(&self, name: usize) -> Result<(&str, &str), End> {
        let (name, token) = self.parts(name)?;
        Ok((name, std::str::from_utf8(token).map_err(failed)?))
    }

    fn model(&self) -> Result<&Model, End> {
        self.model.as_ref().ok_or_else(|| failed("no model was loaded"))
    }
}

fn now(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()
}

fn stages(stages: u32) -> Result<StageCount, End> {
    StageCount::new(u8::try_from(stages).unwrap_or(0)).map_err(failed)
}

/// The number of this border.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_abi() -> u32 {
    ABI
}

/// Makes room for the next input of exactly so many bytes; gives where it is.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_room(bytes: usize) -> *mut u8 {
    with(|state| {
        state.input.clear();
        state.input.resize(bytes, 0);
        state.input.as_mut_ptr()
    })
}

/// Takes a file of the model: the input is its name of `name` bytes, and its content.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_file(name: usize) -> i32 {
    run(|state| {
        let (name, content) = state.parts(name)?;
        let (name, content) = (name.to_owned(), content.to_vec());
        state.files.insert(name, content);
        Ok(())
    })
}

/// Makes a model of the files: 0 to decode, 1 to encode.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_model(encodes: u32) -> i32 {
    run(|state| {
        let files = std::mem::take(&mut state.files);
        state.input = Vec::new();
        let networks = if encodes == 0 { Networks::Decoder } else { Networks::Encoder };
        state.model = Some(Model::with_networks(&|name: &str| files.get(name).cloned(), networks).map_err(failed)?);
        Ok(())
    })
}

/// Listens to a stream; the input is its name of `name` bytes, and the token.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_listen(name: usize, most_stages: u32) -> i32 {
    run(|state| {
        let (name, token) = state.names(name)?;
        let session = Listening::new(state.model()?, name, token, stages(most_stages)?)?;
        state.session = Some(Session::Listening(Box::new(session)));
        Ok(())
    })
}

/// Publishes a stream; the input is its name of `name` bytes, and the token.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_publish(name: usize, kbps: f64, rate_hz: u32) -> i32 {
    run(|state| {
        let (name, token) = state.names(name)?;
        let session = Publishing::new(state.model()?, name, token, kbps, rate_hz)?;
        state.session = Some(Session::Publishing(Box::new(session)));
        Ok(())
    })
}

/// Takes what the daemon sent, at so many milliseconds of a clock that never goes back.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_receive(now_ms: f64) -> i32 {
    run(|state| match &mut state.session {
        Some(Session::Listening(session)) => session.receive(&state.input, now(now_ms), &mut state.pcm),
        Some(Session::Publishing(session)) => session.receive(&state.input),
        None => Err(failed("there is no session")),
    })
}

/// Milliseconds at which [`undertone_quiet`] is to be called if nothing comes before; negative if it need not be.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_due() -> f64 {
    with(|state| match &state.session {
        Some(Session::Listening(session)) => session.due().map_or(-1.0, |due| due.as_secs_f64() * 1e3),
        _ => -1.0,
    })
}

/// Makes up the background that is due.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_quiet(now_ms: f64) -> i32 {
    run(|state| match &mut state.session {
        Some(Session::Listening(session)) => session.be_quiet(now(now_ms), &mut state.pcm),
        _ => Ok(()),
    })
}

/// Asks for at most so many stages.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_want(most_stages: u32) -> i32 {
    run(|state| {
        if let Some(session) = &mut state.session {
            session.dialog().want(stages(most_stages)?);
        }
        Ok(())
    })
}

/// Takes samples of the microphone: the input is f32, little endian.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_sound() -> i32 {
    run(|state| match &mut state.session {
        Some(Session::Publishing(session)) => {
            let (samples, _) = state.input.as_chunks::<4>();
            session.sound(&samples.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<_>>())
        }
        _ => Ok(()),
    })
}

/// Says that we are still here.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_alive() -> i32 {
    run(|state| {
        if let Some(session) = &mut state.session {
            session.dialog().sign_of_life();
        }
        Ok(())
    })
}

/// Ends what is published.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_finish() -> i32 {
    run(|state| match &mut state.session {
        Some(Session::Publishing(session)) => session.finish(),
        Some(Session::Listening(session)) => {
            session.dialog().finish();
            Ok(())
        }
        None => Ok(()),
    })
}

/// A figure of the session: stages of the last bundle, frames, those missing, those skipped, whether codes are coded, whether it is
/// open.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_figure(which: u32) -> f64 {
    with(|state| {
        let (figures, open) = match &state.session {
            Some(Session::Listening(session)) => (session.figures(), true),
            Some(Session::Publishing(session)) => {
                (Figures { frames: session.frames(), ..Figures::default() }, session.is_open())
            }
            None => (Figures::default(), false),
        };
        let coded = state.session.as_mut().is_some_and(|s| s.dialog().session().is_coded());
        match which {
            0 => f64::from(figures.stages),
            1 => figures.frames as f64,
            2 => figures.missing as f64,
            3 => figures.skipped as f64,
            4 => f64::from(u8::from(coded)),
            5 => f64::from(u8::from(open)),
            _ => f64::NAN,
        }
    })
}

/// Where what was made lies: 0 bytes to be sent, 1 samples (f32), 2 a text.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_at(what: u32) -> *const u8 {
    with(|state| match what {
        0 => state.out.as_ptr(),
        1 => state.pcm.as_ptr().cast(),
        _ => state.text.as_ptr(),
    })
}

/// Bytes of it, or samples.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_length(what: u32) -> usize {
    with(|state| match what {
        0 => state.out.len(),
        1 => state.pcm.len(),
        _ => state.text.len(),
    })
}
