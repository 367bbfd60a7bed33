//! The codec for C: `include/undertone.h`.
//!
//! This border needs unsafe code, and this file is all of it: C hands over pointers whose life and length Rust cannot check. Each
//! function says what it asks of them, turns them into slices and references once, and leaves the rest to safe code. No panic crosses
//! the border: it becomes an error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use codec::{EncoderOptions, Model, Rate, SampleRate, StreamDecoder, StreamEncoder};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Keeps the text of an error for `undertone_last_error`.
fn remember(error: &dyn std::fmt::Display) {
    let text = error.to_string().replace('\0', " ");
    LAST_ERROR.with(|last| *last.borrow_mut() = CString::new(text).unwrap_or_default());
}

/// What `body` gives, or `failed` after an error or a panic.
fn guarded<T>(failed: T, body: impl FnOnce() -> Result<T, codec::Error>) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            remember(&error);
            failed
        }
        Err(_) => {
            remember(&"undertone panicked: a bug; please report it");
            failed
        }
    }
}

/// Says that an argument is NULL.
fn missing<T>(failed: T, what: &str) -> T {
    remember(&format!("{what} is NULL"));
    failed
}

/// `length` values that C owns, or none for NULL.
///
/// # Safety
/// `values` is NULL or points to `length` values that nobody changes meanwhile.
unsafe fn values<'a, T>(values: *const T, length: usize) -> &'a [T] {
    if values.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: the caller promises so many values, and the pointer is not NULL.
    unsafe { std::slice::from_raw_parts(values, length) }
}

/// Moves values from the front of a queue to memory of C; returns how many.
///
/// # Safety
/// `to` is NULL or points to room for `room` values.
unsafe fn pull<T: Copy>(queue: &mut Vec<T>, to: *mut T, room: usize) -> usize {
    let count = if to.is_null() { 0 } else { room.min(queue.len()) };
    if count > 0 {
        // SAFETY: the caller promises room for `room` values, of which `count` are no more; the queue is memory of Rust's own.
        unsafe { std::ptr::copy_nonoverlapping(queue.as_ptr(), to, count) };
        queue.drain(..count);
    }
    count
}

/// Lets go of what a function of this file has made.
///
/// # Safety
/// `made` is NULL or came from `Box::into_raw` and is not used again.
unsafe fn free<T>(made: *mut T) {
    if !made.is_null() {
        // SAFETY: the caller promises that it came from a box and is used no more.
        drop(unsafe { Box::from_raw(made) });
    }
}

/// A model that was read from its folder.
pub struct UndertoneModel(Model);

/// Samples to bytes.
pub struct UndertoneEncoder {
    encoder: StreamEncoder,
    bytes: Vec<u8>,
}

/// Bytes to samples.
pub struct UndertoneDecoder {
    decoder: StreamDecoder,
    pcm: Vec<f32>,
}

/// What the last error of this thread was; valid until the next one. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn undertone_last_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}

/// Reads a model folder and checks its hashes. `folder` is a path that ends with a zero byte.
///
/// # Safety
/// `folder` is NULL or a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_model_open(folder: *const c_char) -> *mut UndertoneModel {
    if folder.is_null() {
        return missing(std::ptr::null_mut(), "folder");
    }
    // SAFETY: the caller promises a string that ends with a zero byte, and it is not NULL.
    let folder = unsafe { CStr::from_ptr(folder) }.to_string_lossy().into_owned();
    guarded(std::ptr::null_mut(), || Ok(Box::into_raw(Box::new(UndertoneModel(Model::open(folder)?)))))
}

/// Lets go of a model; encoders and decoders made of it go on. NULL is allowed.
///
/// # Safety
/// `model` is NULL or came from `undertone_model_open`, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_model_free(model: *mut UndertoneModel) {
    // SAFETY: the caller promises what `free` asks for.
    unsafe { free(model) }
}

/// An encoder of one stream of `kbps` kbit/s (0.5 to 12 in steps of 0.5), for samples of one channel at `sample_rate_hz` (8000 to
/// 192000), in bundles of `bundle_frames` frames of 20 ms (1 to 50; 0: the usual 5).
///
/// # Safety
/// `model` is NULL or came from `undertone_model_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_encoder_new(
    model: *const UndertoneModel,
    kbps: f64,
    sample_rate_hz: u32,
    bundle_frames: u8,
) -> *mut UndertoneEncoder {
    // SAFETY: the caller promises a model or NULL.
    let Some(UndertoneModel(model)) = (unsafe { model.as_ref() }) else {
        return missing(std::ptr::null_mut(), "model");
    };
    guarded(std::ptr::null_mut(), || {
        let mut options = EncoderOptions::new(Rate::kbps(kbps)).sample_rate(SampleRate::new(sample_rate_hz)?);
        if bundle_frames > 0 {
            options = options.bundle(bundle_frames);
        }
        let encoder = StreamEncoder::new(model, &options)?;
        Ok(Box::into_raw(Box::new(UndertoneEncoder { encoder, bytes: Vec::new() })))
    })
}

/// Encodes `length` samples in -1 to 1; the bytes are then there to be pulled.
///
/// # Safety
/// `encoder` is NULL or came from `undertone_encoder_new`; `pcm` points to `length` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_encoder_push(
    encoder: *mut UndertoneEncoder,
    pcm: *const f32,
    length: usize,
) -> c_int {
    // SAFETY: the caller promises an encoder or NULL, which no other thread uses.
    let Some(UndertoneEncoder { encoder, bytes }) = (unsafe { encoder.as_mut() }) else {
        return missing(-1, "encoder");
    };
    // SAFETY: the caller promises `length` samples.
    let pcm = unsafe { values(pcm, length) };
    guarded(-1, || encoder.push(pcm, bytes).map(|()| 0))
}

/// Ends the stream; its last bytes are then there to be pulled.
///
/// # Safety
/// `encoder` is NULL or came from `undertone_encoder_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_encoder_finish(encoder: *mut UndertoneEncoder) -> c_int {
    // SAFETY: the caller promises an encoder or NULL, which no other thread uses.
    let Some(UndertoneEncoder { encoder, bytes }) = (unsafe { encoder.as_mut() }) else {
        return missing(-1, "encoder");
    };
    guarded(-1, || encoder.finish(bytes).map(|()| 0))
}

/// Moves up to `room` bytes to `bytes`; returns how many. 0: none are there yet.
///
/// # Safety
/// `encoder` is NULL or came from `undertone_encoder_new`; `bytes` has room for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_encoder_pull(encoder: *mut UndertoneEncoder, bytes: *mut u8, room: usize) -> usize {
    // SAFETY: the caller promises an encoder or NULL, which no other thread uses.
    let Some(encoder) = (unsafe { encoder.as_mut() }) else { return missing(0, "encoder") };
    // SAFETY: the caller promises room for `room` bytes.
    unsafe { pull(&mut encoder.bytes, bytes, room) }
}

/// Lets go of an encoder. NULL is allowed.
///
/// # Safety
/// `encoder` is NULL or came from `undertone_encoder_new`, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_encoder_free(encoder: *mut UndertoneEncoder) {
    // SAFETY: the caller promises what `free` asks for.
    unsafe { free(encoder) }
}

/// A decoder of one stream, packed or coded; it gives one channel at 24000 Hz.
///
/// # Safety
/// `model` is NULL or came from `undertone_model_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_decoder_new(model: *const UndertoneModel) -> *mut UndertoneDecoder {
    // SAFETY: the caller promises a model or NULL.
    let Some(UndertoneModel(model)) = (unsafe { model.as_ref() }) else {
        return missing(std::ptr::null_mut(), "model");
    };
    guarded(std::ptr::null_mut(), || {
        let decoder = StreamDecoder::new(model);
        Ok(Box::into_raw(Box::new(UndertoneDecoder { decoder, pcm: Vec::new() })))
    })
}

/// Decodes `length` bytes of the stream, in pieces of any length; the samples are then there to be pulled.
///
/// # Safety
/// `decoder` is NULL or came from `undertone_decoder_new`; `bytes` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_decoder_push(
    decoder: *mut UndertoneDecoder,
    bytes: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: the caller promises a decoder or NULL, which no other thread uses.
    let Some(UndertoneDecoder { decoder, pcm }) = (unsafe { decoder.as_mut() }) else {
        return missing(-1, "decoder");
    };
    // SAFETY: the caller promises `length` bytes.
    let bytes = unsafe { values(bytes, length) };
    guarded(-1, || decoder.push(bytes, pcm).map(|()| 0))
}

/// Gives the last samples free to be pulled; -1 if the stream's end has not come.
///
/// # Safety
/// `decoder` is NULL or came from `undertone_decoder_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_decoder_finish(decoder: *mut UndertoneDecoder) -> c_int {
    // SAFETY: the caller promises a decoder or NULL, which no other thread uses.
    let Some(UndertoneDecoder { decoder, pcm }) = (unsafe { decoder.as_mut() }) else {
        return missing(-1, "decoder");
    };
    guarded(-1, || decoder.finish(pcm).map(|()| 0))
}

/// Moves up to `room` samples to `pcm`; returns how many. 0: none are there yet.
///
/// # Safety
/// `decoder` is NULL or came from `undertone_decoder_new`; `pcm` has room for `room` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_decoder_pull(decoder: *mut UndertoneDecoder, pcm: *mut f32, room: usize) -> usize {
    // SAFETY: the caller promises a decoder or NULL, which no other thread uses.
    let Some(decoder) = (unsafe { decoder.as_mut() }) else { return missing(0, "decoder") };
    // SAFETY: the caller promises room for `room` samples.
    unsafe { pull(&mut decoder.pcm, pcm, room) }
}

/// Lets go of a decoder. NULL is allowed.
///
/// # Safety
/// `decoder` is NULL or came from `undertone_decoder_new`, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undertone_decoder_free(decoder: *mut UndertoneDecoder) {
    // SAFETY: the caller promises what `free` asks for.
    unsafe { free(decoder) }
}
