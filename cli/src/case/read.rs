//! Reading a case file: everything in it is checked before anything is computed.

use std::collections::BTreeMap;

use local_attention::LocalAttentionConfig;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Array, Dtype};

/// A file that is not a case.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaseError {
    /// Not a safetensors file, or a damaged one.
    #[error("not a readable safetensors file: {0}")]
    Format(String),
    /// A tensor that must be there.
    #[error("tensor {0} is missing: a case holds q, k and v")]
    MissingTensor(&'static str),
    /// Metadata that must be there.
    #[error(
        "metadata config is missing: it holds the constructor arguments as JSON (run takes --config too)"
    )]
    MissingConfig,
    /// JSON that does not say what it should.
    #[error("{what} is not valid: {reason}")]
    Json {
        /// `config` or `forward`, of the file or of the command line.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A tensor of a type that cannot be used for what it is.
    #[error("{tensor} has dtype {got}: it must be {allowed}")]
    Dtype {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        got: String,
        /// The types allowed, in words.
        allowed: &'static str,
    },
    /// A mask byte other than 0 and 1.
    #[error("{tensor} holds the byte {got} at {index}: each must be 0 or 1")]
    MaskByte {
        /// `mask` or `input_mask`.
        tensor: &'static str,
        /// The byte.
        got: u8,
        /// Where it stands.
        index: usize,
    },
}

/// The reference's forward arguments that are not tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// Overrides the constructor's window.
    #[serde(default)]
    pub window_size: Option<i64>,
}

/// A mask tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<bool>,
}

/// One call of the module.
#[derive(Debug, Clone)]
pub struct Case {
    /// Constructor arguments.
    pub config: LocalAttentionConfig,
    /// Forward arguments.
    pub forward: Forward,
    /// Queries.
    pub q: Array,
    /// Keys, of q's type.
    pub k: Array,
    /// Values, of q's type.
    pub v: Array,
    pub(super) mask: Option<Mask>,
    pub(super) attn_bias: Option<Array>,
    /// What the call should give, by name; `dout` too.
    pub expected: BTreeMap<String, Array>,
    /// Tensors whose names mean nothing here.
    pub unknown: Vec<String>,
}

/// Tensors that a case may hold beside its inputs and [`GRADIENTS`].
const EXPECTED: [&str; 3] = ["out", "lse", "dout"];

/// What a backward pass gives.
pub(crate) const GRADIENTS: [&str; 4] = ["dq", "dk", "dv", "dattn_bias"];

/// What `--config` and `--forward` put in place of a file's metadata.
#[derive(Debug, Clone, Default)]
pub struct Replace {
    pub config: Option<String>,
    pub forward: Option<String>,
}

impl Case {
    /// Reads a case from the bytes of a file.
    ///
    /// # Errors
    /// Bytes that are no safetensors file, and files that are no case.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CaseError> {
        Self::read(bytes, &Replace::default())
    }

    /// Reads a case, with metadata of the caller's in place of the file's.
    pub(crate) fn read(bytes: &[u8], replace: &Replace) -> Result<Self, CaseError> {
        let format = |e: safetensors::SafeTensorError| CaseError::Format(e.to_string());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(format)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = |given: &Option<String>, name| given.as_ref().or(metadata.get(name)).cloned();
        let config = text(&replace.config, "config").ok_or(CaseError::MissingConfig)?;
        let forward = text(&replace.forward, "forward").unwrap_or_else(|| "{}".to_owned());

        let q = required(&tensors, "q")?;
        let k = required(&tensors, "k")?;
        let v = required(&tensors, "v")?;
        for (name, tensor) in [("k", &k), ("v", &v)] {
            if tensor.dtype() != q.dtype() {
                return Err(wrong_dtype(name, tensor.dtype().name(), "that of q"));
            }
        }
        let attn_bias = optional(&tensors, "attn_bias")?;
        // As in the reference, where a wider bias than q leaves v behind.
        if let Some(bias) = &attn_bias
            && bias.dtype() != q.dtype()
            && (bias.dtype(), q.dtype()) != (Dtype::F32, Dtype::F64)
        {
            let allowed = "that of q (or F32 where q is F64)";
            return Err(wrong_dtype("attn_bias", bias.dtype().name(), allowed));
        }
        // The alias has no effect where mask is there: it may be anything.
        let mask = match read_mask(&tensors, "mask")? {
            Some(mask) => Some(mask),
            None => read_mask(&tensors, "input_mask")?,
        };
        let mut expected = BTreeMap::new();
        for name in EXPECTED.into_iter().chain(GRADIENTS) {
            if let Some(tensor) = optional(&tensors, name)? {
                expected.insert(name.to_owned(), tensor);
            }
        }
        let inputs = ["q", "k", "v", "attn_bias", "mask", "input_mask"];
        let mut unknown: Vec<String> = tensors.names().iter().map(|n| (*n).to_owned()).collect();
        unknown.retain(|n| !inputs.contains(&n.as_str()) && !expected.contains_key(n));
        unknown.sort();
        Ok(Self {
            config: parse(if replace.config.is_some() { "--config" } else { "config" }, &config)?,
            forward: parse(
                if replace.forward.is_some() { "--forward" } else { "forward" },
                &forward,
            )?,
            q,
            k,
            v,
            mask,
            attn_bias,
            expected,
            unknown,
        })
    }

    /// The shape of the mask, if there is one.
    pub fn mask_shape(&self) -> Option<&[usize]> {
        self.mask.as_ref().map(|m| &m.shape[..])
    }

    /// The shape of the bias, if there is one.
    pub fn bias_shape(&self) -> Option<&[usize]> {
        self.attn_bias.as_ref().map(|b| &b.shape[..])
    }

    /// The type of q, k and v, which results have too.
    pub fn dtype(&self) -> Dtype {
        self.q.dtype()
    }
}

fn parse<T: for<'de> Deserialize<'de>>(what: &'static str, json: &str) -> Result<T, CaseError> {
    let fail = |reason: String| CaseError::Json { what, reason };
    if !json.trim_start().starts_with('{') {
        return Err(fail("it must be a JSON object (json.dumps of a dict)".to_owned()));
    }
    let mut from = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut from).map_err(|e| {
        // The field at fault, where there is one: "." is the object itself.
        match e.path().to_string().as_str() {
            "." | "?" => fail(e.inner().to_string()),
            path => fail(format!("{path}: {}", e.inner())),
        }
    })?;
    from.end().map_err(|e| fail(e.to_string()))?;
    Ok(value)
}

fn wrong_dtype(tensor: &str, got: impl ToString, allowed: &'static str) -> CaseError {
    CaseError::Dtype { tensor: tensor.to_owned(), got: got.to_string(), allowed }
}

fn optional(tensors: &SafeTensors<'_>, name: &str) -> Result<Option<Array>, CaseError> {
    let Ok(view) = tensors.tensor(name) else {
        return Ok(None);
    };
    match Array::read(&view) {
        Some(array) => Ok(Some(array)),
        None => Err(wrong_dtype(name, view.dtype(), "F32, F16 or F64")),
    }
}

fn required(tensors: &SafeTensors<'_>, name: &'static str) -> Result<Array, CaseError> {
    optional(tensors, name)?.ok_or(CaseError::MissingTensor(name))
}

fn read_mask(tensors: &SafeTensors<'_>, name: &'static str) -> Result<Option<Mask>, CaseError> {
    use safetensors::Dtype as D;
    let Ok(view) = tensors.tensor(name) else {
        return Ok(None);
    };
    if !matches!(view.dtype(), D::BOOL | D::U8) {
        return Err(wrong_dtype(name, view.dtype(), "BOOL or U8"));
    }
    if let Some(index) = view.data().iter().position(|&b| b > 1) {
        return Err(CaseError::MaskByte { tensor: name, got: view.data()[index], index });
    }
    Ok(Some(Mask {
        shape: view.shape().to_vec(),
        data: view.data().iter().map(|&b| b == 1).collect(),
    }))
}
