//! What a plan, tensors or a device cannot do is a typed error, and the next call works.

use std::collections::BTreeSet;

use libtest_mimic::Failed;
use local_attention::cpu::Cpu;
use local_attention::gpu::wgpu;
use local_attention::gpu::{
    BindError, DeviceError, Dtype, ForwardTensors, Gpu, GpuError, GpuOptions, Layouts, PlanError,
    RequestOptions, Storage, TensorView, Workspace,
};
use local_attention::{
    AttentionShape, Call, Dropout, Engine, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig,
};

use super::buffers::upload;
use super::{fail, faults};

/// Variants of errors that something has caused.
#[derive(Default)]
pub struct Seen(BTreeSet<String>);

impl Seen {
    /// Notes `Type::Variant`.
    pub fn note<E: std::fmt::Debug>(&mut self, error: &E) {
        let debug = format!("{error:?}");
        let variant = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let ty = std::any::type_name::<E>().rsplit("::").next().unwrap_or_default();
        self.0.insert(format!("{ty}::{variant}"));
    }
}

/// Every variant of the engine's errors, as `errors.txt` lists them, is caused by something; a test of the
/// library holds that list to the variants there are.
pub fn every_error(gpu: &Gpu) -> Result<(), Failed> {
    let seen = &mut Seen::default();
    bind_errors(gpu, seen)?;
    hard_tensors(gpu, seen)?;
    plan_errors(gpu, seen)?;
    run_errors(gpu, seen)?;
    faults::small_limits(gpu, seen)?;
    faults::destroyed(gpu, seen)?;
    let limits_memory = cfg!(target_os = "linux") && gpu.caps().is_software();
    #[cfg(target_os = "linux")]
    if limits_memory {
        faults::no_memory(gpu, seen)?;
    }
    lost_device(gpu, seen)?;
    let llvmpipe = gpu.caps().info.name.contains("llvmpipe");
    let caused = |line: &&str| match line.split_once(' ') {
        // Its own reason to be missing.
        Some(("PlanError::LoopTurns", _)) => llvmpipe,
        Some(("DeviceError::OutOfMemory", _)) => limits_memory,
        Some(_) => false,
        None => true,
    };
    let missing: Vec<_> = include_str!("errors.txt")
        .lines()
        .filter(caused)
        .filter(|line| !seen.0.contains(line.split(' ').next().unwrap_or(line)))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!("nothing causes {missing:?}").into()),
    }
}

pub fn small_call(gpu: &Gpu) -> Result<(), GpuError> {
    let t = || HostTensor::new(vec![0.5_f32; 32], [8, 4]).unwrap();
    let inputs = HostInputs::new(t(), t(), t());
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    let got = gpu.forward_blocking(&problem, &inputs, &Call::default())?;
    assert!(got.out.iter().all(|x| (x - 0.5).abs() < 1e-6));
    Ok(())
}

fn bind_errors(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    let problem = attention.problem(&AttentionShape::new([2], 8, 4).with_mask(1, 8)).unwrap();
    let plan =
        gpu.plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem)).map_err(fail)?;
    let mut workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let data = [0.5_f32; 64];
    let (q, k, v, out, mask) = (
        upload(gpu, &data),
        upload(gpu, &data),
        upload(gpu, &data),
        upload(gpu, &data),
        upload(gpu, &[1.0; 8]),
    );
    let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [2, 8, 4]);
    let good = || {
        ForwardTensors::new(view(&q), view(&k), view(&v), view(&out))
            .with_mask(TensorView::contiguous(&mask, Dtype::U32, [1, 8]))
    };
    let unusable = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 256,
        usage: wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    type Change<'a> = Box<dyn Fn(&mut ForwardTensors<'a>) + 'a>;
    let rows: Vec<(&str, Change<'_>)> = vec![
        ("q has shape [2, 8, 3]", Box::new(|t| t.q.shape = vec![2, 8, 3])),
        ("k has shape [8, 4]", Box::new(|t| t.k = TensorView::contiguous(&k, Dtype::F32, [8, 4]))),
        ("out has strides [1]: one for each", Box::new(|t| t.out.strides_elems = vec![1])),
        ("mask is missing", Box::new(|t| t.mask = None)),
        ("attn_bias is given", Box::new(|t| t.attn_bias = Some(view(&v)))),
        ("lse is given", Box::new(|t| t.lse = Some(view(&v)))),
        ("v is f16", Box::new(|t| t.v.dtype = Dtype::F16)),
        ("mask is f32", Box::new(|t| t.mask.as_mut().unwrap().dtype = Dtype::F32)),
        ("q has offset_bytes 2", Box::new(|t| t.q.offset_bytes = 2)),
        ("q has offset_bytes 18446744073709551615", Box::new(|t| t.q.offset_bytes = u64::MAX)),
        (
            "q has a first element at 1",
            Box::new(|t| {
                t.q = TensorView::contiguous(&q, Dtype::F32, [2, 8, 4])
                    .with_strides_elems([0, 4, 1])
                    .with_offset_bytes(4);
            }),
        ),
        ("k has a stride of 5", Box::new(|t| t.k.strides_elems = vec![0, 5, 1])),
        ("k has a last stride of 0", Box::new(|t| t.k.strides_elems = vec![32, 4, 0])),
        ("v has a first element at -28", Box::new(|t| t.v.strides_elems = vec![0, -4, 1])),
        ("v ends 512 bytes", Box::new(|t| t.v.offset_bytes = 256)),
        ("k lies in a buffer with usages", Box::new(|t| t.k = view(&unusable))),
        ("out overlaps q", Box::new(|t| t.out = view(&q))),
        (
            "out overlaps mask",
            Box::new(|t| t.mask = Some(TensorView::contiguous(&out, Dtype::U8, [1, 8]))),
        ),
    ];
    for (says, change) in &rows {
        let mut tensors = good();
        change(&mut tensors);
        match plan.bind_forward_blocking(&tensors, &workspace) {
            Err(e) if e.to_string().starts_with(says) => seen.note(&e),
            Err(e) => return Err(format!("'{e}' does not begin with '{says}'").into()),
            Ok(_) => return Err(format!("accepted, where '{says}' was expected").into()),
        }
    }
    // A workspace of another `Gpu`.
    let name = gpu.caps().info.name.clone();
    let stranger = Gpu::request_blocking(&RequestOptions::adapter(name)).map_err(fail)?;
    let foreign = Workspace::new_blocking(&stranger, 1).map_err(fail)?;
    let error = plan.bind_forward_blocking(&good(), &foreign).err();
    assert_eq!(error, Some(BindError::WorkspaceGpu));
    seen.note(&BindError::WorkspaceGpu);
    // A workspace of another binding.
    let bound = plan.bind_forward_blocking(&good(), &workspace).map_err(fail)?;
    let mut other = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let mut encoder =
        gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let error = bound.encode(&mut pass, &mut other, &Call::default()).unwrap_err();
        assert_eq!(error, BindError::Workspace);
        seen.note(&error);
        bound.encode(&mut pass, &mut workspace, &Call::default()).map_err(fail)?;
        // One slot, and a second call with dropout.
        let mut used = Workspace::new_blocking(gpu, 1).map_err(fail)?;
        let dropping = LocalAttention::new(LocalAttentionConfig::new(4).dropout(0.5)).unwrap();
        let problem = dropping.problem(&AttentionShape::new([2], 8, 4)).unwrap();
        let plan = gpu.plan_blocking(&problem, &Layouts::any(Storage::F32)).map_err(fail)?;
        let tensors = ForwardTensors::new(view(&q), view(&k), view(&v), view(&out));
        let bound = plan.bind_forward_blocking(&tensors, &used).map_err(fail)?;
        let call = Call::with_dropout(Dropout { seed: 1, offset: 0 });
        bound.encode(&mut pass, &mut used, &call).map_err(fail)?;
        let error = bound.encode(&mut pass, &mut used, &call).unwrap_err();
        assert_eq!(error, BindError::NoSlot { slots: 1, used: 1, needed: 1 });
        seen.note(&error);
    }
    gpu.queue().submit([encoder.finish()]);
    // What a binding can hold is less than a row.
    let mut options = GpuOptions::default();
    options.max_binding_bytes = Some(32);
    let small = gpu.with_options(options);
    let plan = small.plan_blocking(&problem, &Layouts::any(Storage::F32)).map_err(fail)?;
    match plan.bind_forward_blocking(&good(), &workspace) {
        Err(e @ BindError::Plan(PlanError::LayoutExceedsBinding { .. })) => seen.note(&e),
        other => return Err(format!("{other:?}").into()),
    }
    small_call(gpu).map_err(fail)
}

/// Results in each other's way, in their own or in an input's buffer; dimensions that do not merge;
/// logits that leave f32.
fn hard_tensors(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    let workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let [wide, k, v, out] = [128, 64, 64, 64].map(|n| upload(gpu, &vec![0.5; n]));
    let [short, enough] = [8, 16].map(|n| upload(gpu, &vec![0.0; n]));
    let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [2, 8, 4]);
    type Change<'a> = Box<dyn Fn(&mut ForwardTensors<'a>) + 'a>;
    let with_lse = attention.problem(&AttentionShape::new([2], 8, 4).with_lse()).unwrap();
    let lse_plan = gpu.plan_blocking(&with_lse, &Layouts::any(Storage::F32)).map_err(fail)?;
    let lse_at = |buffer, offset| {
        TensorView::contiguous(buffer, Dtype::F32, [2, 8]).with_offset_bytes(offset)
    };
    let good_lse = || {
        ForwardTensors::new(view(&wide), view(&k), view(&v), view(&out))
            .with_lse(lse_at(&enough, 0))
    };
    let lse_rows: Vec<(&str, Change<'_>)> = vec![
        ("lse ends 64 bytes", Box::new(|t| t.lse = Some(lse_at(&short, 0)))),
        ("lse overlaps q", Box::new(|t| t.lse = Some(lse_at(&wide, 0)))),
        ("lse shares a buffer with q", Box::new(|t| t.lse = Some(lse_at(&wide, 256)))),
        ("out overlaps lse", Box::new(|t| t.lse = Some(lse_at(&out, 192)))),
        ("out has a stride of 0", Box::new(|t| t.out.strides_elems = vec![0, 4, 1])),
        ("out has a stride of 3", Box::new(|t| t.out.strides_elems = vec![32, 3, 1])),
    ];
    for (says, change) in &lse_rows {
        let mut tensors = good_lse();
        change(&mut tensors);
        match lse_plan.bind_forward_blocking(&tensors, &workspace) {
            Err(e) if e.to_string().starts_with(says) => seen.note(&e),
            other => return Err(format!("{other:?}, where '{says}' was expected").into()),
        }
    }
    let five = attention.problem(&AttentionShape::new([2; 5], 4, 1)).unwrap();
    let plan5 = gpu.plan_blocking(&five, &Layouts::any(Storage::F32)).map_err(fail)?;
    let own = [(); 2].map(|()| upload(gpu, &[0.5; 512]));
    let apart = |b| {
        TensorView::contiguous(b, Dtype::F32, [2, 2, 2, 2, 2, 4, 1])
            .with_strides_elems([4, 8, 16, 32, 64, 1, 1])
    };
    let [x, y] = own.each_ref().map(apart);
    let error = plan5
        .bind_forward_blocking(&ForwardTensors::new(x.clone(), x.clone(), x, y), &workspace)
        .unwrap_err();
    assert_eq!(error, BindError::Rank { tensor: "all", got: 5, max: 4 });
    seen.note(&error);
    // A row whose logits leave f32 sees nothing with a weight; what it then reads is its window.
    let config = LocalAttentionConfig::new(128).causal(true).dim(2).use_xpos(true);
    let overflow = LocalAttention::new(config).unwrap();
    let mut far = vec![0.0_f32; 1024 * 2];
    far[0] = -1e20;
    let q = HostTensor::new(vec![1e20_f32, 0.0], [1, 1, 2]).unwrap();
    let kv = |data: &[f32]| HostTensor::new(data.to_vec(), [1, 1024, 2]).unwrap();
    let inputs = HostInputs::new(q, kv(&far), kv(&vec![1.0; 2048]));
    let shape = AttentionShape::new([1], 1024, 2).with_query(0..1);
    let got = gpu
        .forward_blocking(&overflow.problem(&shape).unwrap(), &inputs, &Call::default())
        .map_err(fail)?;
    let cpu = Cpu::new()
        .forward(&overflow.problem(&shape).unwrap(), &inputs, &Call::default())
        .map_err(fail)?;
    let same = got.out.iter().zip(&cpu.out).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(same, "{:?} and {:?}", got.out, cpu.out);
    small_call(gpu).map_err(fail)
}

fn plan_errors(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    let problem = attention.problem(&AttentionShape::new([1], 8, 257)).unwrap();
    let error = gpu.plan_blocking(&problem, &Layouts::any(Storage::F32)).unwrap_err();
    assert_eq!(error, PlanError::HeadDim { got: 257, max: 256 });
    seen.note(&error);
    let error = Gpu::request_blocking(&RequestOptions::adapter("no such adapter")).unwrap_err();
    assert!(matches!(error, DeviceError::NoAdapter { .. }), "{error}");
    seen.note(&error);
    // An index past the last, though names have digits in them.
    let error = Gpu::request_blocking(&RequestOptions::adapter("99")).unwrap_err();
    assert!(matches!(error, DeviceError::NoAdapter { .. }), "{error}");
    // A window of more keys than llvmpipe's loops have turns.
    let attention64 = LocalAttention::new(LocalAttentionConfig::new(1 << 20)).unwrap();
    let long = attention64.problem(&AttentionShape::new([1], 1 << 20, 64)).unwrap();
    match gpu.plan_blocking(&long, &Layouts::any(Storage::F32)) {
        Err(e @ PlanError::LoopTurns { .. }) => seen.note(&e),
        other => _ = other.map_err(fail)?,
    }
    // A row of one tensor that is larger than any binding.
    let mut options = GpuOptions::default();
    options.max_binding_bytes = Some(64);
    let t = || HostTensor::new(vec![0.5_f32; 256], [4, 64]).unwrap();
    let inputs = HostInputs::new(t(), t(), t());
    let wide = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    match gpu.with_options(options).forward_blocking(&wide, &inputs, &Call::default()) {
        Err(GpuError::Plan(e @ PlanError::LayoutExceedsBinding { .. })) => {
            seen.note(&e);
            seen.note(&GpuError::Plan(e));
        }
        other => return Err(format!("{other:?}").into()),
    }
    // A batch of 0 has a result, of nothing.
    let empty = || HostTensor::new(Vec::<f32>::new(), [0, 8, 4]).unwrap();
    let inputs = HostInputs::new(empty(), empty(), empty());
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    let got = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?;
    assert_eq!((got.shape, got.out.len()), (vec![0, 8, 4], 0));
    small_call(gpu).map_err(fail)
}

/// Tensors of host memory that are not what the problem describes: what the other engines say too.
fn run_errors(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    let t =
        |shape: &[usize]| HostTensor::new(vec![0.5_f32; shape.iter().product()], shape).unwrap();
    let mask = HostTensor::new(vec![true; 8], [1, 8]).unwrap();
    let good = || HostInputs::new(t(&[2, 8, 4]), t(&[2, 8, 4]), t(&[2, 8, 4]));
    let shape = AttentionShape::new([2], 8, 4);
    let masked = shape.clone().with_mask(1, 8);
    for (says, shape, inputs) in [
        ("q has shape", &shape, HostInputs::new(t(&[2, 7, 4]), t(&[2, 8, 4]), t(&[2, 8, 4]))),
        ("k has shape", &shape, HostInputs::new(t(&[2, 8, 4]), t(&[1, 8, 4]), t(&[2, 8, 4]))),
        ("mask is missing", &masked, good()),
        ("mask was given", &shape, good().with_mask(mask)),
        ("attn_bias was given", &shape, good().with_attn_bias(t(&[1, 4, 1]))),
    ] {
        let problem = attention.problem(shape).unwrap();
        let error = gpu.forward_blocking(&problem, &inputs, &Call::default()).unwrap_err();
        let same = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap_err();
        assert!(error.to_string().starts_with(says), "{error}");
        assert_eq!(error.to_string(), same.to_string());
        let weights = gpu.weights_blocking(&problem, &inputs, 0..1).unwrap_err();
        assert_eq!(weights.to_string(), same.to_string());
        seen.note(&error);
    }
    let problem = attention.problem(&shape).unwrap();
    let error = gpu.weights_blocking(&problem, &good(), 3..9).unwrap_err();
    assert!(error.to_string().starts_with("queries is 3..9"), "{error}");
    small_call(gpu).map_err(fail)
}

/// A device of its own is destroyed; another one works.
fn lost_device(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    let name = gpu.caps().info.name.clone();
    let doomed = Gpu::request_blocking(&RequestOptions::adapter(name)).map_err(fail)?;
    small_call(&doomed).map_err(fail)?;
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    let problem = attention.problem(&AttentionShape::new([], 8, 4)).unwrap();
    doomed.device().destroy();
    let plan = doomed.plan_blocking(&problem, &Layouts::any(Storage::F32));
    assert!(matches!(plan, Err(PlanError::Device(DeviceError::Lost { .. }))), "{plan:?}");
    let workspace = Workspace::new_blocking(&doomed, 1);
    assert!(matches!(workspace, Err(DeviceError::Lost { .. })), "{workspace:?}");
    seen.note(&plan.unwrap_err());
    seen.note(&workspace.unwrap_err());
    match small_call(&doomed) {
        Err(GpuError::Device(e) | GpuError::Plan(PlanError::Device(e)))
            if matches!(e, DeviceError::Lost { .. }) =>
        {
            seen.note(&GpuError::Device(e));
        }
        other => return Err(format!("{other:?}").into()),
    }
    small_call(gpu).map_err(fail)
}
