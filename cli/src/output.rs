//! Files that appear whole or not at all.

use std::io::Write;
use std::path::Path;

use crate::case::{Array, Dtype};
use crate::error::BadInput;

/// Writes a file beside its place and moves it there at the end.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BadInput> {
    let given = path;
    let fail = |e: std::io::Error| BadInput::file(given, format!("cannot be written: {e}"));
    // A link is followed; a device or a pipe is written to, never replaced.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let path = target.as_path();
    match path.metadata() {
        Ok(m) if m.is_dir() => {
            return Err(BadInput::file(path, "cannot be written: it is a folder"));
        }
        Ok(m) if !m.is_file() => return std::fs::write(path, bytes).map_err(fail),
        _ => {}
    }
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".local-attention-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What a plain new file gets, less the umask.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

/// A safetensors file of these tensors.
pub fn write_tensors(path: &Path, tensors: &[(&str, &Array)]) -> Result<(), BadInput> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, t)| t.bytes()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, tensor), bytes)| {
            let dtype = match tensor.dtype() {
                Dtype::F16 => safetensors::Dtype::F16,
                Dtype::F32 => safetensors::Dtype::F32,
                Dtype::F64 => safetensors::Dtype::F64,
            };
            safetensors::tensor::TensorView::new(dtype, tensor.shape.clone(), bytes)
                .map(|view| (*name, view))
        })
        .collect::<Result<Vec<_>, _>>()
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|e| BadInput::file(path, format!("cannot be written: {e}")))?;
    write_whole(path, &views)
}
