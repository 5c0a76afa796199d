//! Where attention is computed.

use js_sys::{Promise, Uint8Array};
use local_attention::gpu::PipelineKey;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

use crate::cpu;
use crate::device::Device;
use crate::error::Failure;
use crate::tensor::{Dtype, Place, Tensor};

/// A device, or the thread that this module runs in.
#[wasm_bindgen]
#[derive(Clone)]
pub struct Engine {
    pub(crate) device: Option<Device>,
}

#[wasm_bindgen]
impl Engine {
    /// On the GPU.
    pub async fn webgpu() -> Result<Engine, JsValue> {
        Ok(Self { device: Some(Device::request().await?) })
    }

    /// On this thread.
    pub fn wasm() -> Engine {
        Self { device: None }
    }

    /// The adapter's name, or the instruction set's.
    pub fn name(&self) -> Result<String, JsValue> {
        Ok(match &self.device {
            Some(device) => device.gpu.caps().info.name.clone(),
            None => cpu::engine()?.isa().to_string(),
        })
    }

    /// Whether the device is gone.
    pub fn lost(&self) -> bool {
        self.device.as_ref().is_some_and(Device::is_lost)
    }

    /// A tensor from an array's bytes, whose number is right.
    pub fn upload(&self, bytes: Uint8Array, dtype: Dtype, shape: Vec<usize>) -> Promise {
        // Copied now: a future is first run later.
        match &self.device {
            Some(device) => {
                let uploaded = device.upload(&bytes, dtype, shape);
                future_to_promise(async move { Ok(uploaded.await?.into()) })
            }
            None => {
                let uploaded = Tensor::upload(&bytes, dtype, shape);
                future_to_promise(async move { Ok(uploaded?.into()) })
            }
        }
    }

    /// The bytes of a tensor, once it is computed.
    pub fn read(&self, tensor: &Tensor) -> Promise {
        let (engine, tensor) = (self.clone(), tensor.clone());
        future_to_promise(async move { Ok(engine.bytes(&tensor).await?.into()) })
    }
}

impl Engine {
    async fn bytes(&self, tensor: &Tensor) -> Result<Uint8Array, Failure> {
        match &self.device {
            Some(device) => device.read(tensor).await,
            None => tensor.bytes(),
        }
    }

    /// The same tensor in this module's memory.
    pub(crate) async fn on_host(&self, tensor: &Tensor) -> Result<Tensor, Failure> {
        match &tensor.0.place {
            Place::Buffer(_) => {
                let bytes = self.bytes(tensor).await?;
                Tensor::upload(&bytes, tensor.0.dtype, tensor.0.shape.clone())
            }
            _ => Ok(tensor.clone()),
        }
    }
}

/// Every kernel that there is: its key and its text, in turn. For tests, which give them to a browser's compiler.
#[wasm_bindgen]
pub fn kernels() -> Vec<String> {
    PipelineKey::all().iter().flat_map(|key| [key.to_string(), key.wgsl()]).collect()
}

#[wasm_bindgen]
impl Tensor {
    pub fn shape(&self) -> Vec<usize> {
        self.0.shape.clone()
    }

    /// Another handle on the same tensor.
    pub fn clone_handle(&self) -> Tensor {
        self.clone()
    }

    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }
}
