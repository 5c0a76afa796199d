//! Matrix units: what adapters report, whether it is so, and which problems use them.

use half::f16;

use super::autotune::random_inputs;
use super::device::{AdapterCaps, Gpu, GpuOptions};
use super::error::GpuError;
use super::plan::Layouts;
use super::shader::{Matrix, PipelineKey, Storage, Tile};
use super::tuning::Variant;
use crate::{
    AttentionShape, Call, Engine, LocalAttention, LocalAttentionConfig, Problem, Reference,
};

/// The largest head_dim of kernels with matrices: more would not fit registers.
const MAX_HEAD_DIM: usize = 128;

/// Parts of the names of drivers, and of their descriptions, whose matrix units are not to be used, each with the reason.
/// None is known so far; what the test finds at start-up needs no entry.
const DENIED: [(&str, &str); 0] = [];

/// How far the test's results may be from those of the host, which rounds as matrix units do: some roundings to f16 of
/// numbers up to 4 may fall otherwise.
const TOLERANCE: f64 = 8e-3;

/// The matrices of an adapter that there are kernels for: square ones of f16 with sums in f32, of subgroups of one size.
pub(super) fn of_adapter(adapter: &wgpu::Adapter) -> Option<Matrix> {
    let info = adapter.get_info();
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    let denied =
        |(name, _): &(&str, &str)| info.driver.contains(name) || info.driver_info.contains(name);
    if !adapter.features().contains(needed) || DENIED.iter().any(denied) {
        return None;
    }
    let lanes = match info.backend {
        // Of every Apple GPU with matrix units, though wgpu cannot ask.
        wgpu::Backend::Metal => 32,
        _ if info.subgroup_min_size == info.subgroup_max_size => info.subgroup_min_size,
        _ => return None,
    };
    let (half, single) = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
    let all = adapter.cooperative_matrix_properties();
    let has = |side: u32| {
        all.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [side; 3] && (p.ab_type, p.cr_type) == (half, single)
        })
    };
    // The larger ones first.
    Matrix::ALL.into_iter().rev().find(|m| m.lanes == lanes && has(m.side))
}

/// A device with matrix units, of an adapter that has them; none where they are not wanted, or refused.
pub(super) async fn request(
    adapter: &wgpu::Adapter,
    caps: &AdapterCaps,
    options: &GpuOptions,
    descriptor: &wgpu::DeviceDescriptor<'_>,
) -> Option<(wgpu::Device, wgpu::Queue)> {
    if caps.matrix.is_none() || options.matrix == Some(false) {
        return None;
    }
    let feature = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: descriptor.required_features | feature,
        // SAFETY: of what is experimental, our own kernels alone use anything, and only matrices, as their
        // specification asks: sizes that the adapter reports, uniform control flow, aligned rows that lie in their tiles.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..descriptor.clone()
    };
    adapter.request_device(&descriptor).await.ok()
}

impl Gpu {
    /// The kernel with matrices for a problem, from the one without; none where they do not pay, or cannot be.
    pub(super) fn matrix_key(&self, problem: &Problem, key: &PipelineKey) -> Option<PipelineKey> {
        let matrix = Some(self.matrix()?);
        let options = self.options();
        // What software calls matrix units are loops.
        let pays = || match self.known(&self.tuning_of(key, problem)) {
            Some(variant) => variant == Variant::Matrix,
            None => !self.caps().is_software(),
        };
        let wanted = options.matrix.unwrap_or_else(|| options.tile.is_none() && pays());
        let xpos = problem.rotary.as_ref().is_some_and(|r| r.xpos_scale_base.is_some());
        let can = key.storage == Storage::F16 && problem.shape.head_dim <= MAX_HEAD_DIM && !xpos;
        let tile = Tile::Small;
        (wanted && can).then_some(PipelineKey { matrix, tile, broadcast: false, ..*key })
    }

    /// Finds out whether matrix units work: a small problem on them, against the host.
    pub(super) async fn test_matrix(&self) {
        let feature = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        if self.caps().matrix.is_none()
            || self.options().matrix == Some(false)
            || !self.device().features().contains(feature)
        {
            return;
        }
        // As if they did, for the test alone: nobody else has this engine yet.
        self.set_matrix_works(true);
        let works = self.matrix_agrees().await;
        self.set_matrix_works(works.unwrap_or(false));
    }

    /// Whether a kernel with matrices computes what the host does.
    async fn matrix_agrees(&self) -> Result<bool, GpuError> {
        let gpu = self.with_options(GpuOptions { matrix: Some(true), ..GpuOptions::default() });
        let Some(problem) = small_problem() else { return Ok(false) };
        let layouts = Layouts::contiguous(Storage::F16, &problem);
        if gpu.key(&problem, &layouts)?.matrix.is_none() {
            return Ok(false);
        }
        let inputs = random_inputs::<f16>(&problem)?;
        let call = Call::default();
        let got = gpu.forward(&problem, &inputs, &call).await?;
        let host = Reference::<f32>::new().with_f16_products(0);
        let truth = host.forward(&problem, &inputs.map(f16::to_f32), &call)?;
        Ok(agree(got.out.iter().map(|x| x.to_f32()), &truth.out))
    }
}

/// Several tiles of queries and keys, inside windows and on their edges, rotated.
fn small_problem() -> Option<Problem> {
    let config = LocalAttentionConfig::new(64).causal(true).dim(64);
    LocalAttention::new(config).ok()?.problem(&AttentionShape::new([2], 192, 64)).ok()
}

/// Whether results are those of the host; NaN is not.
fn agree(got: impl ExactSizeIterator<Item = f32>, truth: &[f32]) -> bool {
    got.len() == truth.len()
        && got.zip(truth).all(|(a, b)| (f64::from(a) - f64::from(*b)).abs() <= TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_number_is_enough() {
        let truth: Vec<f32> = (0..100_u8).map(|i| f32::from(i) / 50.0 - 1.0).collect();
        let rounded = || truth.iter().map(|&x| f16::from_f32(x).to_f32()).collect::<Vec<_>>();
        let judge = |got: Vec<f32>| agree(got.into_iter(), &truth);
        assert!(judge(rounded()));
        for wrong in [0.0, f32::NAN, f32::INFINITY, 1.0] {
            let mut got = rounded();
            got[37] = wrong;
            assert!(!judge(got), "{wrong}");
        }
        assert!(!judge(rounded()[1..].to_vec()));
        assert!(small_problem().is_some());
    }
}
