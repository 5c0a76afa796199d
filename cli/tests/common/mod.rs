//! Running the program, and case files to run it on.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::process::{Command, Stdio};

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// The golden data of the repository.
pub const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens");

/// What a run ended with.
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program without any adapter.
pub fn run(args: &[&str]) -> Ran {
    // The Vulkan loader finds no driver there.
    run_with(args, &[("VK_DRIVER_FILES", "/nonexistent")])
}

/// Runs the program with whatever adapter there is.
pub fn run_with(args: &[&str], env: &[(&str, &str)]) -> Ran {
    let out = Command::new(env!("CARGO_BIN_EXE_local-attention"))
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran {
        // -1: killed by a signal, which no test expects.
        status: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8(out.stdout).unwrap(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

/// A tensor of a case file.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A tensor of f32.
pub fn tensor(name: &str, shape: &[usize], data: &[f32]) -> Tensor {
    raw(name, Dtype::F32, shape, data.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// A tensor of any type.
pub fn raw(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

impl Tensor {
    fn floats(&self) -> impl Iterator<Item = f32> {
        self.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))
    }

    pub fn to_f16(&self) -> Self {
        let bytes = self.floats().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
        raw(&self.name, Dtype::F16, &self.shape, bytes)
    }

    pub fn to_f64(&self) -> Self {
        let bytes = self.floats().flat_map(|x| f64::from(x).to_le_bytes()).collect();
        raw(&self.name, Dtype::F64, &self.shape, bytes)
    }
}

/// Metadata with this configuration.
pub fn metadata(config: &str) -> HashMap<String, String> {
    HashMap::from([("config".to_owned(), config.to_owned())])
}

/// A folder that goes away with the test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn write(
        &self,
        name: &str,
        tensors: &[Tensor],
        metadata: &HashMap<String, String>,
    ) -> String {
        let views = tensors
            .iter()
            .map(|t| (&t.name[..], TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        let bytes = safetensors::serialize(views, Some(metadata.clone())).unwrap();
        self.bytes(name, &bytes)
    }

    pub fn text(&self, name: &str, text: &str) -> String {
        self.bytes(name, text.as_bytes())
    }

    pub fn bytes(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Shape and numbers of a tensor in a file, as f32.
pub fn read(path: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    let data = view.data();
    let numbers = match view.dtype() {
        Dtype::F16 => {
            data.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
        }
        Dtype::F64 => {
            data.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect()
        }
        _ => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    };
    (view.shape().to_vec(), numbers)
}

/// Type of a tensor in a file.
pub fn dtype(path: &str, name: &str) -> Dtype {
    let bytes = std::fs::read(path).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().dtype()
}
