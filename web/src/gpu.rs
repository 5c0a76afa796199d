//! Calls on the GPU engine: plans and bindings are kept for the next call.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use local_attention::gpu::{
    BackwardPlan, BackwardTensors, Bound, ForwardTensors, Layouts, Plan, TensorView, Workspace,
    wgpu,
};
use local_attention::{Call, Problem, RunError};

use crate::device::Device;
use crate::error::Failure;
use crate::request::Request;
use crate::tensor::{Dtype, Stored, Tensor};

/// Bindings that are kept for a plan.
const KEPT: usize = 8;

/// What has been made ready for calls of one shape.
#[derive(Default)]
pub(crate) struct Plans {
    forward: RefCell<Option<Rc<Forward>>>,
    backward: RefCell<Option<Rc<Backward>>>,
}

/// A plan, and the tensors it was bound to of late.
struct Forward {
    plan: Plan,
    kept: RefCell<Vec<Rc<Kept>>>,
}

struct Backward(BackwardPlan);

impl Drop for Forward {
    fn drop(&mut self) {
        self.plan.destroy();
    }
}

impl Drop for Backward {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

/// A plan bound to tensors.
struct Kept {
    bound: Bound,
    workspace: RefCell<Workspace>,
    tensors: Vec<Weak<Stored>>,
    /// Whether the device has taken it once.
    proven: Cell<bool>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.bound.destroy();
        self.workspace.borrow().destroy();
    }
}

impl Kept {
    fn new(bound: Bound, workspace: Workspace, tensors: &[&Tensor]) -> Self {
        let tensors = tensors.iter().map(|t| Rc::downgrade(&t.0)).collect();
        Self { bound, workspace: RefCell::new(workspace), tensors, proven: Cell::new(false) }
    }

    fn is_of(&self, tensors: &[&Tensor]) -> bool {
        self.tensors.len() == tensors.len()
            && self.tensors.iter().zip(tensors).all(|(a, b)| a.as_ptr() == Rc::as_ptr(&b.0))
    }

    /// Records and submits a call, part by part: drivers reset devices that take too long for one.
    async fn submit(&self, device: &Device, call: &Call) -> Result<(), Failure> {
        let submit = || -> Result<(), Failure> {
            let mut workspace = self.workspace.borrow_mut();
            for part in 0..self.bound.chunks() {
                let descriptor = wgpu::CommandEncoderDescriptor { label: Some("local-attention") };
                let mut encoder = device.gpu.device().create_command_encoder(&descriptor);
                self.bound.encode_chunk(
                    part,
                    &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()),
                    &mut workspace,
                    call,
                )?;
                device.gpu.queue().submit([encoder.finish()]);
                workspace.recall();
            }
            Ok(())
        };
        if self.proven.get() {
            // The device took the same commands before: no need to wait for its word.
            device.alive("computing")?;
            return submit();
        }
        device.checked("computing", submit).await??;
        self.proven.set(true);
        Ok(())
    }
}

/// A forward pass: `out`, and `lse` where it is wanted.
pub(crate) async fn forward(
    device: &Device,
    (problem, plans): (&Problem, &Plans),
    request: &Request,
) -> Result<(Tensor, Option<Tensor>), Failure> {
    device.alive("computing")?;
    let out = match &request.out {
        Some(out) => out.clone(),
        None => device.allocate(request.q.0.dtype, problem.out_shape()).await?,
    };
    let lse = match request.with_lse {
        true => Some(device.allocate(Dtype::F32, problem.lse_shape()).await?),
        false => None,
    };
    let empty = |t: &Tensor| t.0.shape.contains(&0);
    if empty(&out) && lse.as_ref().is_none_or(empty) {
        return Ok((out, lse));
    }
    let known = plans.forward.borrow().clone();
    let forward = match known {
        Some(forward) => forward,
        None => {
            let plan =
                device.gpu.plan(problem, &Layouts::contiguous(request.storage(), problem)).await?;
            let forward = Rc::new(Forward { plan, kept: RefCell::default() });
            *plans.forward.borrow_mut() = Some(forward.clone());
            forward
        }
    };
    let optional = [&request.mask, &request.attn_bias, &lse];
    let tensors: Vec<&Tensor> = [&request.q, &request.k, &request.v, &out]
        .into_iter()
        .chain(optional.into_iter().flatten())
        .collect();
    let found = {
        let mut kept = forward.kept.borrow_mut();
        // Of tensors that are gone nothing is needed any more.
        kept.retain(|k| k.tensors.iter().all(|t| t.strong_count() > 0));
        let found = kept.iter().position(|k| k.is_of(&tensors));
        found.map(|i| {
            kept[..=i].rotate_right(1);
            kept[0].clone()
        })
    };
    let kept = match found {
        Some(kept) => kept,
        None => {
            let views = views(request, &out, lse.as_ref())?;
            let workspace = Workspace::new(&device.gpu, 1).await?;
            let bound = match forward.plan.bind_forward(&views, &workspace).await {
                Ok(bound) => bound,
                Err(e) => {
                    workspace.destroy();
                    return Err(e.into());
                }
            };
            let new = Rc::new(Kept::new(bound, workspace, &tensors));
            let mut kept = forward.kept.borrow_mut();
            kept.truncate(KEPT - 1);
            kept.insert(0, new.clone());
            new
        }
    };
    kept.submit(device, &request.call).await?;
    Ok((out, lse))
}

fn views<'t>(
    request: &'t Request,
    out: &'t Tensor,
    lse: Option<&'t Tensor>,
) -> Result<ForwardTensors<'t>, Failure> {
    let view = |t: Option<&'t Tensor>, name| t.map(|t| t.view(name)).transpose();
    let mut tensors = ForwardTensors::new(
        request.q.view("q")?,
        request.k.view("k")?,
        request.v.view("v")?,
        out.view("out")?,
    );
    tensors.mask = view(request.mask.as_ref(), "mask")?;
    tensors.attn_bias = view(request.attn_bias.as_ref(), "attn_bias")?;
    tensors.lse = view(lse, "lse")?;
    Ok(tensors)
}

/// A backward pass: `dq`, `dk`, `dv` and, where it is wanted, `dattn_bias`.
pub(crate) async fn backward(
    device: &Device,
    (problem, plans): (&Problem, &Plans),
    request: &Request,
) -> Result<Vec<Tensor>, Failure> {
    device.alive("computing")?;
    let missing = |tensor| RunError::MissingTensor { tensor };
    let out = request.out.as_ref().ok_or(missing("out"))?;
    let lse = request.lse.as_ref().ok_or(missing("lse"))?;
    let dout = request.dout.as_ref().ok_or(missing("dout"))?;
    let known = plans.backward.borrow().clone();
    let plan = match known {
        Some(plan) => plan,
        None => {
            let plan = device
                .gpu
                .plan_backward(problem, &Layouts::contiguous(request.storage(), problem))
                .await?;
            let plan = Rc::new(Backward(plan));
            *plans.backward.borrow_mut() = Some(plan.clone());
            plan
        }
    };
    let dtype = request.q.0.dtype;
    let mut gradients = Vec::new();
    for of in [&request.q, &request.k, &request.v] {
        gradients.push(device.allocate(dtype, of.0.shape.clone()).await?);
    }
    if let Some(bias) = request.attn_bias.as_ref().filter(|_| request.bias_gradient) {
        gradients.push(device.allocate(dtype, bias.0.shape.clone()).await?);
    }
    let names = ["dq", "dk", "dv", "dattn_bias"];
    let to: Vec<TensorView<'_>> =
        gradients.iter().zip(names).map(|(t, name)| t.view(name)).collect::<Result<_, _>>()?;
    let [dq, dk, dv, bias @ ..] = &to[..] else { return Ok(Vec::new()) };
    let forward = views(request, out, Some(lse))?;
    let mut tensors =
        BackwardTensors::new(forward, dout.view("dout")?, dq.clone(), dk.clone(), dv.clone());
    tensors.dattn_bias = bias.first().cloned();
    let workspace = Workspace::new(&device.gpu, 1).await?;
    let bound = match plan.0.bind(&tensors, &workspace).await {
        Ok(bound) => bound,
        Err(e) => {
            workspace.destroy();
            return Err(e.into());
        }
    };
    // Its scratch is as large as tensors: it is not kept.
    Kept::new(bound, workspace, &[]).submit(device, &request.call).await?;
    Ok(gradients)
}
