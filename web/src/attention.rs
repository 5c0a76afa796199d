//! An attention, and what is kept of the shapes it was called with.

use std::cell::RefCell;
use std::rc::Rc;

use js_sys::{Array, Float32Array, Int32Array, Promise, Uint32Array};
use local_attention::gpu::Storage;
use local_attention::{AttentionShape, LocalAttention, Problem, RunError};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

use crate::arrays::bytes_of;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Failure;
use crate::request::Request;
use crate::tensor::{Tensor, zeros};
use crate::{cpu, gpu};

/// Shapes whose plans are kept.
const KEPT: usize = 8;

/// An attention on an engine.
#[wasm_bindgen]
#[derive(Clone)]
pub struct Attention(Rc<Inner>);

struct Inner {
    engine: Engine,
    attention: LocalAttention,
    shapes: RefCell<Vec<Rc<Ready>>>,
}

/// What has been made ready for calls of one shape.
struct Ready {
    shape: AttentionShape,
    storage: Storage,
    problem: Problem,
    plans: gpu::Plans,
}

impl Inner {
    /// The problem of a call: that of an earlier one, or a new one.
    fn ready(&self, request: &Request) -> Result<Rc<Ready>, Failure> {
        let (shape, storage) = (request.shape()?, request.storage());
        let mut shapes = self.shapes.borrow_mut();
        if let Some(i) = shapes.iter().position(|r| r.shape == shape && r.storage == storage) {
            shapes[..=i].rotate_right(1);
        } else {
            let problem = self.attention.problem(&shape)?;
            let plans = gpu::Plans::default();
            shapes.truncate(KEPT - 1);
            shapes.insert(0, Rc::new(Ready { shape, storage, problem, plans }));
        }
        request.check(&shapes[0].problem)?;
        Ok(shapes[0].clone())
    }

    async fn forward(&self, request: &Request) -> Result<Array, Failure> {
        let ready = self.ready(request)?;
        let (out, lse) = match &self.engine.device {
            Some(device) => gpu::forward(device, (&ready.problem, &ready.plans), request).await?,
            None => cpu::forward(&ready.problem, request)?,
        };
        Ok([Some(out), lse].into_iter().flatten().map(JsValue::from).collect())
    }

    async fn backward(&self, request: &Request) -> Result<Array, Failure> {
        let ready = self.ready(request)?;
        let gradients = match &self.engine.device {
            Some(device) => gpu::backward(device, (&ready.problem, &ready.plans), request).await?,
            None => cpu::backward(&ready.problem, request)?,
        };
        Ok(gradients.into_iter().map(JsValue::from).collect())
    }

    async fn weights(
        &self,
        mut request: Request,
        queries: std::ops::Range<usize>,
    ) -> Result<Array, Failure> {
        let ready = self.ready(&request)?;
        let engine = &self.engine;
        let v = request.v.0.shape.clone();
        for tensor in [Some(&mut request.q), Some(&mut request.k)]
            .into_iter()
            .chain([request.mask.as_mut(), request.attn_bias.as_mut()])
            .flatten()
        {
            *tensor = engine.on_host(tensor).await?;
        }
        // Weights depend on no value.
        request.v =
            Tensor::of_numbers(request.v.0.dtype, v.clone(), zeros("v", v.iter().product())?);
        let all = cpu::weights(&ready.problem, &request, queries)?;
        let mut keys = zeros("keys of slots", all.keys.len())?;
        keys.iter_mut().zip(&all.keys).for_each(|(to, key)| *to = key.map_or(-1, |k| k as i32));
        Ok(Array::of3(
            &Float32Array::new(&bytes_of(&all.weights)?.buffer()),
            &Uint32Array::new(&bytes_of(&all.shape.map(|n| n as u32))?.buffer()),
            &Int32Array::new(&bytes_of(&keys)?.buffer()),
        ))
    }
}

#[wasm_bindgen]
impl Attention {
    #[wasm_bindgen(constructor)]
    pub fn new(engine: &Engine, config: Config) -> Result<Self, JsValue> {
        let Config { config, quirks } = config;
        let attention = LocalAttention::new(config).map_err(Failure::from)?.with_quirks(quirks);
        Ok(Self(Rc::new(Inner { engine: engine.clone(), attention, shapes: RefCell::default() })))
    }

    /// Another handle on the same attention.
    pub fn clone_handle(&self) -> Attention {
        self.clone()
    }

    /// Whether queries and keys are rotated.
    pub fn rotary(&self) -> bool {
        self.0.attention.rotary()
    }

    /// `out`, and `lse` where it is wanted.
    pub fn forward(&self, request: &Request) -> Promise {
        let (inner, request) = (self.0.clone(), request.clone());
        future_to_promise(async move { Ok(inner.forward(&request).await?.into()) })
    }

    /// `dq`, `dk`, `dv`, and `dattn_bias` where it is wanted.
    pub fn backward(&self, request: &Request) -> Promise {
        let (inner, request) = (self.0.clone(), request.clone());
        future_to_promise(async move { Ok(inner.backward(&request).await?.into()) })
    }

    /// The weights of some queries, their shape, and the key of each slot, -1 for none.
    pub fn weights(&self, request: &Request, first: usize, end: usize) -> Promise {
        let (inner, request) = (self.0.clone(), request.clone());
        future_to_promise(async move { Ok(inner.weights(request, first..end).await?.into()) })
    }

    /// First key and one past the last for each of some queries, the window, slots, and the padded length.
    pub fn visible(
        &self,
        n: usize,
        keys: usize,
        window: Option<f64>,
        first: usize,
        end: usize,
    ) -> Result<Array, JsValue> {
        Ok(self.0.visible((n, keys), window, first..end)?)
    }
}

impl Inner {
    fn visible(
        &self,
        (n, keys): (usize, usize),
        window: Option<f64>,
        queries: std::ops::Range<usize>,
    ) -> Result<Array, Failure> {
        // Who sees whom does not depend on heads or rotation.
        let config = self.attention.config().clone().use_rotary_pos_emb(false);
        let attention = LocalAttention::new(config)?.with_quirks(self.attention.quirks());
        let mut shape = AttentionShape::new([1], n, 1).with_key_len(keys);
        shape.window = window.map(|w| w as i64);
        let problem = attention.problem(&shape)?;
        if queries.start > queries.end || queries.end > n {
            let std::ops::Range { start, end } = queries;
            return Err(RunError::Queries { start, end, first: 0, last: n }.into());
        }
        let geometry = problem.geometry();
        let mut starts: Vec<u32> = zeros("ranges", queries.len())?;
        let mut ends: Vec<u32> = zeros("ranges", queries.len())?;
        for ((query, start), end) in queries.zip(&mut starts).zip(&mut ends) {
            let range = geometry.visible_range(query);
            (*start, *end) = (range.start as u32, range.end as u32);
        }
        let number = |x: usize| JsValue::from(x as f64);
        Ok(Array::of5(
            &Uint32Array::new(&bytes_of(&starts)?.buffer()),
            &Uint32Array::new(&bytes_of(&ends)?.buffer()),
            &number(geometry.window()),
            &number(geometry.slots()),
            &number(geometry.padded_len()),
        ))
    }
}
