//! Windows of many keys: right, or refused by adapters that would end their loops.

use libtest_mimic::Failed;
use local_attention::cpu::Cpu;
use local_attention::gpu::{Gpu, GpuError, GpuOptions, PlanError, Tile};
use local_attention::{
    AttentionShape, Call, Dropout, Engine, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig,
};

use super::fail;

/// No adapter is asked for more.
const MOST: usize = 1 << 13;

/// Of each kernel, a query whose window is the largest that the engine takes, up to [`MOST`] keys.
pub fn long_window(gpu: &Gpu) -> Result<(), Failed> {
    let mut refused = 0;
    for (d, tile) in [(64, Tile::Small), (64, Tile::Large), (30, Tile::Large), (256, Tile::Small)] {
        let mut options = GpuOptions::default();
        options.tile = Some(tile);
        let gpu = gpu.with_options(options);
        for kind in [Kind::Rotary, Kind::Hidden, Kind::Dropped] {
            // Multiples of a tile: all, or by halves.
            let (mut taken, mut open, mut middle) = (0, MOST / 32 + 1, MOST / 32);
            let mut last = None;
            while open - taken > 1 {
                match Case::new(middle * 32, d, kind)?.run(&gpu) {
                    Ok(error) => (taken, last) = (middle, Some(error)),
                    Err(GpuError::Plan(PlanError::LoopTurns { .. })) => open = middle,
                    Err(e) => return Err(fail(e)),
                }
                middle = taken.midpoint(open);
            }
            refused += usize::from(taken * 32 < MOST);
            let error = last.ok_or("every window is refused")?;
            if error > 1e-5 {
                let keys = taken * 32;
                return Err(
                    format!("d {d}, {tile:?}, {kind:?}, {keys} keys: off by {error:e}").into()
                );
            }
            assert!(taken * 32 >= 1024, "d {d}, {tile:?}, {kind:?}: only {taken} tiles");
        }
    }
    let ends_loops = gpu.caps().info.name.contains("llvmpipe");
    assert_eq!(refused > 0, ends_loops, "{refused} kernels were refused {MOST} keys");
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Rotary,
    /// A mask hides all keys.
    Hidden,
    /// Hidden, with dropout.
    Dropped,
}

struct Case {
    attention: LocalAttention,
    d: usize,
    keys: Vec<f32>,
    mask: Option<Vec<bool>>,
    call: Call,
}

impl Case {
    fn new(keys: usize, d: usize, kind: Kind) -> Result<Self, Failed> {
        let mut config = LocalAttentionConfig::new(keys as i64).look_backward(0).look_forward(0);
        if kind == Kind::Rotary {
            config = config.dim(d as i64);
        }
        let dropout = Dropout { seed: 7, offset: 0 };
        let call = match kind {
            Kind::Dropped => Call::with_dropout(dropout),
            _ => Call::default(),
        };
        Ok(Self {
            attention: LocalAttention::new(config.dropout(0.25)).map_err(fail)?,
            d,
            // Late keys count as much as early ones.
            keys: (0..keys * d).map(|i| (i / d) as f32 / keys as f32).collect(),
            mask: (kind != Kind::Rotary).then(|| vec![false; keys]),
            call,
        })
    }

    /// The largest difference to the CPU engine.
    fn run(&self, gpu: &Gpu) -> Result<f32, GpuError> {
        let (d, n) = (self.d, self.keys.len() / self.d);
        let q = vec![0.01_f32; d];
        let kv = || HostTensor::new(&self.keys[..], [1, n, d]).unwrap();
        let mut inputs = HostInputs::new(HostTensor::new(&q[..], [1, 1, d]).unwrap(), kv(), kv());
        let mut shape = AttentionShape::new([1], n, d);
        shape.query = 0..1;
        if let Some(mask) = &self.mask {
            inputs = inputs.with_mask(HostTensor::new(&mask[..], [1, n]).unwrap());
            shape = shape.with_mask(1, n);
        }
        let problem = self.attention.problem(&shape).unwrap();
        let got = gpu.forward_blocking(&problem, &inputs, &self.call)?.out;
        let want = Cpu::new().forward(&problem, &inputs, &self.call).unwrap().out;
        Ok(got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
    }
}
