//! What ends a command early: always bad input, said in one line, exit status 2.

use std::path::Path;

use local_attention::gpu::GpuError;
use local_attention::{ConfigError, RunError, ShapeError};
use thiserror::Error;

/// Bad input, in one line.
#[derive(Debug, Error)]
pub enum BadInput {
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}")]
    Case { path: String, source: crate::case::CaseError },
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Shape(#[from] ShapeError),
    #[error("{0}")]
    Run(#[from] RunError),
    #[error("{0}")]
    Gpu(#[from] GpuError),
}

impl BadInput {
    /// A file that could not be read or written.
    pub fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.display().to_string(), reason: reason.to_string() }
    }
}
