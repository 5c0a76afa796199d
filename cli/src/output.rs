//! Files that appear whole or not at all.

use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::case::{Array, Dtype};
use crate::error::BadInput;

/// The file that a path means: links followed, folders and links to nothing refused.
fn target(given: &Path) -> Result<PathBuf, BadInput> {
    let refuse = |why: &str| Err(BadInput::file(given, format!("cannot be written: {why}")));
    if is_special(given) {
        return Ok(given.to_owned());
    }
    match given.canonicalize() {
        Ok(path) if path.is_dir() => refuse("it is a folder"),
        Ok(path) => Ok(path),
        Err(_) if given.is_symlink() => refuse("it is a link to nothing"),
        Err(_) => Ok(given.to_owned()),
    }
}

/// A new file beside a path, with the mode of the one it will replace.
fn beside(path: &Path, given: &Path) -> Result<NamedTempFile, BadInput> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".local-attention-");
    let old = path.metadata();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What a plain new file gets, less the umask.
        let new = std::fs::Permissions::from_mode(0o666);
        builder.permissions(old.as_ref().map_or(new, |m| m.permissions()));
    }
    if old.as_ref().is_ok_and(|m| m.permissions().readonly()) {
        return Err(BadInput::file(given, "cannot be written: it is read-only"));
    }
    // Its own words would name the temporary file.
    let fail = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let folder = folder.display();
            BadInput::file(given, format!("cannot be written: there is no folder {folder}"))
        }
        kind => BadInput::file(given, format!("cannot be written: {kind}")),
    };
    let file = builder.tempfile_in(folder).map_err(fail)?;
    if let Ok(old) = old {
        // The umask applies to new files, not to one that is replaced.
        file.as_file().set_permissions(old.permissions()).map_err(fail)?;
    }
    Ok(file)
}

/// Whether a path exists and is no regular file: a device or a pipe.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Whether a path is where standard output goes, `-` among them.
pub fn is_standard_output(path: &Path) -> bool {
    if path.as_os_str() == "-" {
        return true;
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |p: &Path| p.metadata().map(|m| (m.dev(), m.ino())).ok();
        id(path).is_some_and(|it| id(Path::new("/dev/stdout")) == Some(it))
    }
    #[cfg(not(unix))]
    false
}

/// Whether two paths mean one file, whether or not it is there yet.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
            Some(folder.join(path.file_name()?))
        })
    };
    a == b || place(a).is_some_and(|it| place(b) == Some(it))
}

/// An error where [`write_whole`] could not even begin: asked before long work.
pub fn check_writable(given: &Path) -> Result<(), BadInput> {
    if is_standard_output(given) {
        return Ok(());
    }
    let path = target(given)?;
    if is_special(&path) { Ok(()) } else { beside(&path, given).map(|_| ()) }
}

/// Writes a file beside its place and moves it there at the end. A device or a pipe is written to,
/// never replaced, and neither is a file that standard output goes to.
pub fn write_whole(given: &Path, bytes: &[u8]) -> Result<(), BadInput> {
    let fail = |e: std::io::Error| BadInput::file(given, format!("cannot be written: {e}"));
    if is_standard_output(given) {
        let mut out = std::io::stdout().lock();
        return out.write_all(bytes).and_then(|()| out.flush()).map_err(fail);
    }
    let path = target(given)?;
    if is_special(&path) {
        return std::fs::write(path, bytes).map_err(fail);
    }
    let mut file = beside(&path, given)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(&path).map_err(|e| fail(e.error))?;
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
