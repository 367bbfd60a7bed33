//! The codec for Python: `undertone._undertone`.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use codec::{Bundle, EncoderOptions, Profile, Rate, SampleRate, StageCount};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

create_exception!(_undertone, UndertoneError, PyValueError, "What undertone cannot do, and why.");

fn error(e: impl std::fmt::Display) -> PyErr {
    UndertoneError::new_err(e.to_string())
}

/// What a lock guards, whatever became of the thread that had it.
fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options(kbps: f64, sample_rate: u32, bundle: Option<u8>) -> PyResult<EncoderOptions> {
    let options = EncoderOptions::new(Rate::kbps(kbps)).sample_rate(SampleRate::new(sample_rate).map_err(error)?);
    Ok(match bundle {
        Some(frames) => options.bundle(frames),
        None => options,
    })
}

/// Rows of codes as an array.
fn matrix<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    columns: usize,
) -> PyResult<Bound<'py, PyArray2<T>>> {
    let rows = values.len() / columns.max(1);
    PyArray1::from_vec(py, values).reshape([rows, columns])
}

fn rows<'py>(py: Python<'py>, bundles: Vec<Bundle>, stages: StageCount) -> PyResult<Bound<'py, PyArray2<u16>>> {
    matrix(py, bundles.into_iter().flat_map(|bundle| bundle.codes).collect(), stages.index())
}

/// An array of codes as a list with its number of stages.
fn codes_of(codes: &PyReadonlyArray2<'_, u16>) -> PyResult<(Vec<u16>, StageCount)> {
    let array = codes.as_array();
    let stages = u8::try_from(array.ncols()).map_err(error)?;
    Ok((array.iter().copied().collect(), StageCount::new(stages).map_err(error)?))
}

/// A codec model, read from its folder.
#[pyclass(frozen)]
struct Model(codec::Model);

#[pymethods]
impl Model {
    /// Reads a model folder and checks its hashes.
    #[new]
    fn new(folder: PathBuf) -> PyResult<Self> {
        codec::Model::open(folder).map(Self).map_err(error)
    }

    /// Its name.
    #[getter]
    fn name(&self) -> String {
        self.0.profile().name.clone()
    }

    /// Which codes these are: 16 hexadecimal digits.
    #[getter]
    fn id(&self) -> String {
        self.0.profile().model_id.to_string()
    }

    /// Most stages of a frame.
    #[getter]
    fn stages(&self) -> u8 {
        self.0.profile().stages.value()
    }

    /// Entries of a codebook.
    #[getter]
    fn entries(&self) -> usize {
        self.0.profile().entries
    }

    /// Samples of a frame.
    #[getter]
    fn frame_samples(&self) -> usize {
        self.0.profile().frame_samples
    }

    /// Whether it has a token model.
    #[getter]
    fn has_tokens(&self) -> bool {
        self.0.tokens().is_some()
    }

    /// A whole recording as the bytes of a .utn file, of at most that rate.
    #[pyo3(signature = (pcm, kbps=3.0, sample_rate=24_000, bundle=None))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        pcm: PyReadonlyArray1<'py, f32>,
        kbps: f64,
        sample_rate: u32,
        bundle: Option<u8>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (pcm, options) = (pcm.to_vec().map_err(error)?, options(kbps, sample_rate, bundle)?);
        let bytes = py.detach(|| self.0.encode(&pcm, &options)).map_err(error)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The samples of a whole .utn file, at 24 kHz.
    fn decode<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let pcm = py.detach(|| self.0.decode(data)).map_err(error)?;
        Ok(PyArray1::from_vec(py, pcm))
    }

    /// The codes of a whole .utn file, [frames, stages].
    fn codes<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyArray2<u16>>> {
        let (codes, stages) = py.detach(|| self.0.codes(data)).map_err(error)?;
        matrix(py, codes, stages.index())
    }

    /// Natural logarithms of the probabilities of codes, each knowing all before it, [frames, stages].
    fn log_likelihoods<'py>(
        &self,
        py: Python<'py>,
        codes: PyReadonlyArray2<'py, u16>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let (codes, stages) = codes_of(&codes)?;
        let made = py.detach(|| self.0.log_likelihoods(&codes, stages)).map_err(error)?;
        matrix(py, made, stages.index())
    }
}

/// Samples to codes, as they come.
#[pyclass(frozen)]
struct Encoder(Mutex<codec::Encoder>);

#[pymethods]
impl Encoder {
    /// An encoder of 0.5 to 12 kbit/s, for samples at that rate, in bundles of so many frames.
    #[new]
    #[pyo3(signature = (model, kbps=6.0, sample_rate=24_000, bundle=None))]
    fn new(model: &Model, kbps: f64, sample_rate: u32, bundle: Option<u8>) -> PyResult<Self> {
        let made = codec::Encoder::with(&model.0, &options(kbps, sample_rate, bundle)?);
        made.map(|encoder| Self(Mutex::new(encoder))).map_err(error)
    }

    /// Stages of every frame.
    #[getter]
    fn stages(&self) -> u8 {
        locked(&self.0).stages().value()
    }

    /// Takes samples in pieces of any length; the codes of the bundles that they complete, [frames, stages].
    fn push<'py>(&self, py: Python<'py>, pcm: PyReadonlyArray1<'py, f32>) -> PyResult<Bound<'py, PyArray2<u16>>> {
        let pcm = pcm.to_vec().map_err(error)?;
        let (bundles, stages) = py.detach(|| {
            let mut encoder = locked(&self.0);
            (encoder.push(&pcm), encoder.stages())
        });
        rows(py, bundles.map_err(error)?, stages)
    }

    /// Ends the stream: what is left, filled up with silence.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u16>>> {
        let (bundles, stages) = py.detach(|| {
            let mut encoder = locked(&self.0);
            (encoder.finish(), encoder.stages())
        });
        rows(py, bundles.map_err(error)?, stages)
    }
}

/// A decoder and the number of the frame that comes next.
struct Decoding {
    decoder: codec::Decoder,
    next: u64,
}

/// Codes to samples, as they come.
#[pyclass(frozen)]
struct Decoder(Mutex<Decoding>);

#[pymethods]
impl Decoder {
    /// A decoder at the start of a stream.
    #[new]
    fn new(model: &Model) -> Self {
        Self(Mutex::new(Decoding { decoder: codec::Decoder::new(&model.0), next: 0 }))
    }

    /// Takes the codes of the next frames, [frames, stages]; their samples at 24 kHz, 10 ms late.
    fn push<'py>(&self, py: Python<'py>, codes: PyReadonlyArray2<'py, u16>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (codes, stages) = codes_of(&codes)?;
        let made = py.detach(|| {
            let mut decoding = locked(&self.0);
            let mut pcm = Vec::new();
            for codes in codes.chunks(usize::from(Profile::MAX_FRAMES_PER_BUNDLE) * stages.index()) {
                let frames = (codes.len() / stages.index()) as u8;
                let bundle = Bundle::new(decoding.next, frames, stages, codes.to_vec())?;
                pcm.extend(decoding.decoder.push(bundle)?);
                decoding.next += u64::from(frames);
            }
            Ok::<_, codec::Error>(pcm)
        });
        Ok(PyArray1::from_vec(py, made.map_err(error)?))
    }

    /// Makes up the next frames, which were lost.
    fn lose<'py>(&self, py: Python<'py>, frames: u64) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let made = py.detach(|| {
            let mut decoding = locked(&self.0);
            decoding.next = decoding.next.saturating_add(frames);
            decoding.decoder.lose(frames)
        });
        Ok(PyArray1::from_vec(py, made.map_err(error)?))
    }
}

/// Samples to the bytes of a .utn stream, as they come.
#[pyclass(frozen)]
struct StreamEncoder(Mutex<codec::StreamEncoder>);

#[pymethods]
impl StreamEncoder {
    /// As Encoder.
    #[new]
    #[pyo3(signature = (model, kbps=6.0, sample_rate=24_000, bundle=None))]
    fn new(model: &Model, kbps: f64, sample_rate: u32, bundle: Option<u8>) -> PyResult<Self> {
        let made = codec::StreamEncoder::new(&model.0, &options(kbps, sample_rate, bundle)?);
        made.map(|encoder| Self(Mutex::new(encoder))).map_err(error)
    }

    /// Takes samples; the bytes that they complete.
    fn push<'py>(&self, py: Python<'py>, pcm: PyReadonlyArray1<'py, f32>) -> PyResult<Bound<'py, PyBytes>> {
        let (pcm, mut bytes) = (pcm.to_vec().map_err(error)?, Vec::new());
        py.detach(|| locked(&self.0).push(&pcm, &mut bytes)).map_err(error)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The last bytes.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut bytes = Vec::new();
        py.detach(|| locked(&self.0).finish(&mut bytes)).map_err(error)?;
        Ok(PyBytes::new(py, &bytes))
    }
}

/// Bytes of a .utn stream to samples, as they come.
#[pyclass(frozen)]
struct StreamDecoder(Mutex<codec::StreamDecoder>);

#[pymethods]
impl StreamDecoder {
    /// A decoder at the start of a stream.
    #[new]
    fn new(model: &Model) -> Self {
        Self(Mutex::new(codec::StreamDecoder::new(&model.0)))
    }

    /// Takes bytes; the samples that they complete, at 24 kHz.
    fn push<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let mut pcm = Vec::new();
        py.detach(|| locked(&self.0).push(data, &mut pcm)).map_err(error)?;
        Ok(PyArray1::from_vec(py, pcm))
    }

    /// The last samples; an error if the stream's end has not come.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let mut pcm = Vec::new();
        py.detach(|| locked(&self.0).finish(&mut pcm)).map_err(error)?;
        Ok(PyArray1::from_vec(py, pcm))
    }
}

#[pymodule]
fn _undertone(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Model>()?;
    module.add_class::<Encoder>()?;
    module.add_class::<Decoder>()?;
    module.add_class::<StreamEncoder>()?;
    module.add_class::<StreamDecoder>()?;
    module.add("UndertoneError", module.py().get_type::<UndertoneError>())
}
