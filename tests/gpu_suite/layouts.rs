//! Tensors anywhere in a caller's buffers: any order of dimensions, offsets, padding, reversed or repeated rows, masks of
//! bytes and of words, parts of the queries, f32 and f16, whole and cut by limits: the result of the same tensors in host
//! memory.

use half::f16;
use libtest_mimic::Failed;
use local_attention::HostTensor;
use local_attention::gpu::{
    BindError, Dtype, ForwardTensors, Gpu, GpuError, Layouts, PlanError, Storage, TensorView,
    Workspace, wgpu,
};

use super::buffers::{read_bytes, upload, upload_bytes};
use super::{Cases, bits, fail, list, one_tile, padded, submit};
use crate::common::{Case, Noise};

/// Cases of each kind, whole and cut.
const LEAST: usize = 40;

pub fn anywhere(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = &one_tile(gpu)?;
    let (mut whole, mut cut, mut words, mut repeated, mut checked) = (0, 0, 0, 0, 0);
    let mut halves = 0;
    let mut cases = Cases::default();
    for seed in 0.. {
        let both = whole >= LEAST && cut >= LEAST;
        let few = [words, repeated, halves].iter().all(|&n| n >= LEAST / 4);
        if both && few && cases.enough() {
            break;
        }
        assert!(
            seed < 900,
            "{whole} whole, {cut} cut, {words} of words, {repeated} repeated, {halves} of f16, {cases:?}"
        );
        let mut case = Case::decode(&list(70_000 + seed));
        cases.vary(&mut case);
        let half = seed % 5 < 2;
        let storage = if half { Storage::F16 } else { Storage::F32 };
        if !cases.take(gpu, &case, &padded(storage))? {
            continue;
        }
        // What a mask hides is not read: here it could be.
        case.k.iter_mut().chain(&mut case.v).filter(|x| !x.is_finite()).for_each(|x| *x = 0.5);
        let mut noise = Noise::new(seed as usize);
        let repeats = repeat_keys(&mut case, &mut noise);
        let (problem, inputs) = (case.problem(), case.inputs());
        let expected = match half {
            false => {
                let all = gpu.forward_blocking(&problem, &inputs, &case.call);
                all.map(|all| (all.out, all.shape, all.lse))
            }
            true => {
                let all = gpu.forward_blocking(&problem, &case.half(), &case.call);
                all.map(|all| (all.out.iter().map(|x| x.to_f32()).collect(), all.shape, all.lse))
            }
        };
        let (expected, out_shape, expected_lse) = match expected {
            Err(GpuError::Plan(PlanError::LoopTurns { .. })) => continue,
            expected => expected.map_err(fail)?,
        };
        let mut options = gpu.options().clone();
        let limited = seed % 2 == 1;
        options.max_binding_bytes = limited.then_some(16 << 10);
        options.max_workgroups = limited.then_some(1);
        let small = gpu.with_options(options);
        let s = &case.shape;
        let strided = |t: &HostTensor<'_, f32>, repeats: bool, noise: &mut Noise| {
            let data = t.iter().collect::<Vec<_>>();
            Placed::of(gpu, &data, (t.shape(), Dtype::from(storage)), repeats, noise)
        };
        let q = strided(&inputs.q, false, &mut noise);
        let (k, v) =
            (strided(&inputs.k, repeats, &mut noise), strided(&inputs.v, repeats, &mut noise));
        let room = |noise: &mut Noise| match half {
            false => Placed::new(gpu, &vec![7.0; expected.len()], &out_shape, false, noise),
            // Two numbers are written as a word where adapters have no f16.
            true => Placed::of_words(gpu, &out_shape),
        };
        let out = room(&mut noise);
        let mut tensors = ForwardTensors::new(q.view(), k.view(), v.view(), out.view());
        let lse_shape = [&s.leading[..], &[s.query.len()]].concat();
        let lse =
            Placed::new(gpu, &vec![7.0; lse_shape.iter().product()], &lse_shape, false, &mut noise);
        if s.lse {
            tensors = tensors.with_lse(lse.view());
        }
        let bias = inputs.attn_bias.as_ref().map(|b| strided(b, false, &mut noise));
        if let Some(b) = &bias {
            tensors = tensors.with_attn_bias(b.view());
        }
        let mask = s.mask.map(|m| (place_mask(gpu, &case.mask, &mut noise), [m.rows, m.len]));
        if let Some(((buffer, dtype, offset), shape)) = &mask {
            let view = TensorView::contiguous(buffer, *dtype, *shape);
            tensors = tensors.with_mask(view.with_offset_bytes(*offset));
        }
        let plan = small.plan_blocking(&problem, &Layouts::any(storage)).map_err(fail)?;
        let mut workspace = Workspace::new_blocking(gpu, 4096).map_err(fail)?;
        let bound = match plan.bind_forward_blocking(&tensors, &workspace) {
            Err(BindError::Plan(
                PlanError::LayoutExceedsBinding { .. } | PlanError::LoopTurns { .. },
            )) => continue,
            bound => bound.map_err(fail)?,
        };
        match limited && bound.chunks() > 1 {
            true => cut += 1,
            false => whole += 1,
        }
        words += usize::from(tensors.mask.as_ref().is_some_and(|m| m.dtype == Dtype::U32));
        repeated += usize::from(repeats);
        halves += usize::from(half);
        submit(gpu, |pass| bound.encode(pass, &mut workspace, &case.call).unwrap());
        let got = out.read(gpu);
        // Bounds that follow from where tensors lie: for some the same kernels with checks.
        if checked < 4 {
            checked += 1;
            let mut options = small.options().clone();
            options.checked_shaders = true;
            let with_checks = gpu.with_options(options);
            let plan = with_checks.plan_blocking(&problem, &Layouts::any(storage));
            let plan = plan.map_err(fail)?;
            let other = room(&mut noise);
            let mut again = tensors.clone();
            again.out = other.view();
            let bound = plan.bind_forward_blocking(&again, &workspace).map_err(fail)?;
            submit(gpu, |pass| bound.encode(pass, &mut workspace, &case.call).unwrap());
            assert_eq!(bits(&other.read(gpu)), bits(&got), "seed {seed}: other bits with checks");
        }
        if bits(&got) != bits(&expected) {
            return Err(format!("seed {seed}: other bits\n{case:?}").into());
        }
        if let Some(expected) = &expected_lse {
            assert_eq!(bits(&lse.read(gpu)), bits(expected), "seed {seed}: lse");
        }
    }
    Ok(())
}

/// Gives all rows the keys and values of the first, sometimes: they are then stored once.
pub fn repeat_keys(case: &mut Case, noise: &mut Noise) -> bool {
    let s = &case.shape;
    let rows: usize = s.kv_leading.iter().product();
    if rows < 2 || noise.bits().is_multiple_of(2) {
        return false;
    }
    for (data, width) in [(&mut case.k, s.head_dim), (&mut case.v, s.value_dim)] {
        let one = data[..s.key_len * width].to_vec();
        data.chunks_mut(one.len()).for_each(|row| row.copy_from_slice(&one));
    }
    true
}

/// A tensor somewhere in a buffer.
pub struct Placed {
    pub buffer: wgpu::Buffer,
    shape: Vec<usize>,
    strides: Vec<i64>,
    offset: i64,
    dtype: Dtype,
}

impl Placed {
    pub fn new(gpu: &Gpu, data: &[f32], shape: &[usize], repeats: bool, noise: &mut Noise) -> Self {
        Self::of(gpu, data, (shape, Dtype::F32), repeats, noise)
    }

    /// Rows of whole words, one after the other.
    fn of_words(gpu: &Gpu, shape: &[usize]) -> Self {
        let mut strides = vec![1; shape.len()];
        let mut step = 1;
        for dim in (0..shape.len()).rev() {
            strides[dim] = step;
            step *= shape[dim] as i64;
            step += step % 2;
        }
        let buffer = upload_bytes(gpu, &vec![0; 2 * step as usize + 4]);
        Self { buffer, shape: shape.to_vec(), strides, offset: 0, dtype: Dtype::F16 }
    }

    fn of(
        gpu: &Gpu,
        data: &[f32],
        (shape, dtype): (&[usize], Dtype),
        repeats: bool,
        noise: &mut Noise,
    ) -> Self {
        let mut below = |n: usize| (noise.bits() % n as u64) as usize;
        // Dimensions from the fastest on, in any order.
        let mut order: Vec<usize> = (0..shape.len()).rev().collect();
        if below(3) == 0 {
            for i in (1..order.len()).rev() {
                order.swap(i, below(i + 1));
            }
        }
        let mut strides = vec![0; shape.len()];
        let mut step = 1;
        for dim in order {
            if repeats && dim + 2 < shape.len() {
                continue;
            }
            strides[dim] = step;
            step *= shape[dim] as i64;
            step += below(3) as i64;
        }
        let mut offset = below(70) as i64;
        if below(4) == 0 {
            let dim = below(shape.len());
            offset += (shape[dim] as i64 - 1) * strides[dim];
            strides[dim] = -strides[dim];
        }
        let mut placed =
            Self { buffer: upload(gpu, &[]), shape: shape.to_vec(), strides, offset, dtype };
        let last = (0..data.len()).map(|i| placed.at(i)).max().unwrap_or(0);
        let mut all = vec![f32::NAN; last + 3];
        data.iter().enumerate().for_each(|(i, x)| all[placed.at(i)] = *x);
        placed.buffer = match dtype {
            Dtype::F16 => {
                let bytes = all.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes());
                let mut bytes: Vec<u8> = bytes.collect();
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                upload_bytes(gpu, &bytes)
            }
            _ => upload(gpu, &all),
        };
        placed
    }

    /// Where an element, counted row by row, lies.
    fn at(&self, mut i: usize) -> usize {
        let mut at = self.offset;
        for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
            at += (i % n) as i64 * stride;
            i /= n;
        }
        at as usize
    }

    fn element_bytes(&self) -> u64 {
        if self.dtype == Dtype::F16 { 2 } else { 4 }
    }

    pub fn view(&self) -> TensorView<'_> {
        TensorView::contiguous(&self.buffer, self.dtype, &self.shape[..])
            .with_strides_elems(self.strides.clone())
            .with_offset_bytes(self.element_bytes() * self.offset as u64)
    }

    pub fn read(&self, gpu: &Gpu) -> Vec<f32> {
        let bytes = read_bytes(gpu, &self.buffer);
        let all: Vec<f32> = match self.dtype {
            Dtype::F16 => {
                let halves = bytes.as_chunks::<2>().0.iter();
                halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        };
        let len = self.shape.iter().product();
        (0..len).map(|i| all[self.at(i)]).collect()
    }
}

/// A mask of bytes at any offset, or of words, anything but 0 for true: the type and the offset in bytes.
pub fn place_mask(gpu: &Gpu, mask: &[bool], noise: &mut Noise) -> (wgpu::Buffer, Dtype, u64) {
    let offset = (noise.bits() % 9) as usize;
    if noise.bits().is_multiple_of(2) {
        let mut bytes: Vec<u8> =
            vec![9; offset].into_iter().chain(mask.iter().map(|m| u8::from(*m))).collect();
        bytes.resize(bytes.len().next_multiple_of(4), 9);
        return (upload_bytes(gpu, &bytes), Dtype::U8, offset as u64);
    }
    let word = |m: &bool| if *m { 1 + (noise.bits() as u32 >> 1) } else { 0 };
    let words: Vec<u32> = vec![9; offset].into_iter().chain(mask.iter().map(word)).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    (upload_bytes(gpu, &bytes), Dtype::U32, 4 * offset as u64)
}
