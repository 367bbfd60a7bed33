//! Finding and opening libonnxruntime.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;

use super::InferError;

/// File name without a version, as `make setup` leaves it.
const NAME: &str = "libonnxruntime.so";

/// The one environment that ONNX Runtime allows in a process.
static ENVIRONMENT: OnceLock<Result<Environment, InferError>> = OnceLock::new();

/// Where the library is: `ORT_DYLIB_PATH`, else `onnxruntime/` beside or above the program (as `make setup` leaves it
/// under target/), else `lib/undertone/` of the prefix the program is installed in.
///
/// # Errors
/// [`InferError::NoLibrary`] with the places that were looked at.
pub fn library_path() -> Result<PathBuf, InferError> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(InferError::NoLibrary { looked: format!("ORT_DYLIB_PATH={}", path.display()) })
        };
    }
    let exe = std::env::current_exe().unwrap_or_default();
    let mut places: Vec<PathBuf> =
        exe.ancestors().skip(1).take(4).map(|dir| dir.join("onnxruntime").join(NAME)).collect();
    if let Some(prefix) = exe.ancestors().nth(2) {
        places.push(prefix.join("lib/undertone").join(NAME));
    }
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| InferError::NoLibrary { looked: list(&places) })
}

/// Opens the library once for the whole process.
///
/// # Errors
/// [`InferError::NoLibrary`], [`InferError::Library`]; the first answer stays.
pub(super) fn environment() -> Result<&'static Environment, InferError> {
    ENVIRONMENT.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Environment, InferError> {
    let path = library_path()?;
    let error = |reason: String| InferError::Library { path: path.clone(), reason };
    ort::init_from(&path)
        .map_err(|e| error(e.to_string()))?
        .with_name("undertone")
        .with_telemetry(false)
        .build()
        .map_err(|e| error(e.to_string()))
}

pub(super) fn list(places: &[impl AsRef<Path>]) -> String {
    places.iter().map(|p| p.as_ref().display().to_string()).collect::<Vec<_>>().join(", ")
}
