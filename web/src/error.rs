//! The library's errors for JavaScript: a code, which is the error's name in Rust, and its message.

use std::fmt::{Debug, Display};

use local_attention::gpu::{BindError, DeviceError, GpuError, PlanError};
use local_attention::{ConfigError, RunError, ShapeError};
use wasm_bindgen::JsValue;

/// What a caller is told.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    code: String,
    message: String,
}

impl Failure {
    fn new(kind: &str, error: &(impl Debug + Display)) -> Self {
        let debug = format!("{error:?}");
        let variant = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        Self { code: format!("{kind}.{variant}"), message: error.to_string() }
    }

    /// A tensor that the call cannot take.
    pub(crate) fn backend(tensor: &str, why: &str) -> Self {
        Self { code: "ArgumentError.Backend".to_owned(), message: format!("{tensor} {why}") }
    }

    /// Numbers of another type than the call's.
    pub(crate) fn dtype(tensor: &str, got: &str, needed: &str) -> Self {
        let message = format!("{tensor} is {got}: it must be {needed}");
        Self { code: "ArgumentError.Type".to_owned(), message }
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> Self {
        let error = js_sys::Error::new(&failure.message);
        // An object that was just made takes a property.
        let _ = js_sys::Reflect::set(&error, &"code".into(), &failure.code.into());
        error.into()
    }
}

macro_rules! failures {
    ($($error:ident),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(stringify!($error), &error)
            }
        }
    )*};
}

failures!(ConfigError, RunError, ShapeError, DeviceError);

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Run(error) => error.into(),
            PlanError::Device(error) => error.into(),
            error => Self::new("PlanError", &error),
        }
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Plan(error) => error.into(),
            BindError::Device(error) => error.into(),
            error => Self::new("BindError", &error),
        }
    }
}

impl From<GpuError> for Failure {
    fn from(error: GpuError) -> Self {
        match error {
            GpuError::Run(error) => error.into(),
            GpuError::Plan(error) => error.into(),
            GpuError::Bind(error) => error.into(),
            GpuError::Device(error) => error.into(),
            error => Self::new("GpuError", &error),
        }
    }
}
