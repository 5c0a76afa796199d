//! Windows of many keys: right, or refused by adapters that would end their loops.

use libtest_mimic::Failed;
use local_attention::cpu::Cpu;
use local_attention::gpu::{Gpu, GpuError, GpuOptions, Layouts, PlanError, Storage, Tile};
use local_attention::{
    AttentionShape, Call, Dropout, Engine, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig,
};

use super::share::Share;
use super::{fail, is_whole};

/// No adapter is asked for more.
const MOST: usize = 1 << 13;

/// Of each kernel, a query whose window is the largest that the engine takes, up to [`MOST`] keys.
pub fn long_window(gpu: &Gpu) -> Result<(), Failed> {
    let mut refused = 0;
    let all = [
        (64, Tile::Small),
        (64, Tile::Large),
        (30, Tile::Tall),
        (128, Tile::Tall),
        (256, Tile::Short),
        (256, Tile::Tall),
    ];
    // In a share of the suite every other one.
    let step = if is_whole(Share::from_env()?) { 1 } else { 2 };
    for (d, tile) in all.into_iter().step_by(step) {
        let mut options = GpuOptions::default();
        options.tile = Some(tile);
        let gpu = gpu.with_options(options);
        for kind in KINDS {
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
            // Roundings of as many weights; keys that are missing cost a hundredth and more.
            let allowed = if kind == Kind::Border { 1e-4 } else { 1e-5 };
            if error > allowed {
                let keys = taken * 32;
                return Err(
                    format!("d {d}, {tile:?}, {kind:?}, {keys} keys: off by {error:e}").into()
                );
            }
            let least = if kind == Kind::Border { 450 } else { 900 };
            assert!(taken * 32 >= least, "d {d}, {tile:?}, {kind:?}: only {taken} tiles");
        }
    }
    let ends_loops = gpu.caps().info.name.contains("llvmpipe");
    assert_eq!(refused > 0, ends_loops, "{refused} kernels were refused {MOST} keys");
    Ok(())
}

/// A tile of few threads gives way where they would loop too long, whatever range of queries is asked for.
pub fn more_threads(gpu: &Gpu) -> Result<(), Failed> {
    let (n, d) = (10_240, 8);
    let ends_loops = gpu.caps().info.name.contains("llvmpipe");
    let config = LocalAttentionConfig::new(n as i64).look_backward(0).look_forward(0);
    let attention = LocalAttention::new(config).map_err(fail)?;
    let keys: Vec<f32> = (0..n * d).map(|i| (i / d) as f32 / n as f32).collect();
    let kv = || HostTensor::new(&keys[..], [1, n, d]).unwrap();
    for queries in [0..2, n - 2..n] {
        let q = vec![0.01_f32; queries.len() * d];
        let q = HostTensor::new(&q[..], [1, queries.len(), d]).unwrap();
        let inputs = HostInputs::new(q, kv(), kv());
        let mut shape = AttentionShape::new([1], n, d);
        shape.query = queries;
        let problem = attention.problem(&shape).unwrap();
        let layouts = Layouts::contiguous(Storage::F32, &problem);
        let tiles = [
            gpu.key(&problem, &layouts).map_err(fail)?.tile,
            gpu.plan_blocking(&problem, &layouts).map_err(fail)?.key().tile,
        ];
        let expected = match (gpu.caps().is_software(), ends_loops) {
            (true, true) => [Tile::Tall, Tile::Large],
            (true, false) => [Tile::Tall; 2],
            (false, _) => [Tile::Large; 2],
        };
        assert_eq!(tiles, expected);
        let got = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?.out;
        let want = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap().out;
        // Roundings of as many weights, as above.
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?}, {want:?}");
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Rotary,
    /// Dropout on keys that are seen, with a bias.
    Dropped,
    /// A mask hides all keys.
    Hidden,
    /// Hidden, with a bias and dropout.
    HiddenDropped,
    /// Hidden, with dropout, and as many slots before the sequence.
    Outside,
    /// Attention weights, of a bias.
    Weights,
    /// A block of queries of two windows, which see twice as many keys together.
    Border,
}

const KINDS: [Kind; 7] = [
    Kind::Rotary,
    Kind::Dropped,
    Kind::Hidden,
    Kind::HiddenDropped,
    Kind::Outside,
    Kind::Weights,
    Kind::Border,
];

struct Case {
    attention: LocalAttention,
    kind: Kind,
    d: usize,
    keys: Vec<f32>,
}

impl Case {
    fn new(keys: usize, d: usize, kind: Kind) -> Result<Self, Failed> {
        // Whole tiles of queries end at no border of windows then.
        let window = if kind == Kind::Border { keys - 16 } else { keys };
        let keys = if kind == Kind::Border { 2 * window } else { keys };
        let mut config = LocalAttentionConfig::new(window as i64).look_forward(0).dropout(0.25);
        config = config.look_backward(u32::from(kind == Kind::Outside).into());
        if kind == Kind::Rotary {
            config = config.dim(d as i64);
        }
        let attention = LocalAttention::new(config).map_err(fail)?;
        // Late keys count as much as early ones.
        let keys = (0..keys * d).map(|i| (i / d) as f32 / keys as f32).collect();
        Ok(Self { attention, kind, d, keys })
    }

    /// The largest difference to the CPU engine.
    fn run(&self, gpu: &Gpu) -> Result<f32, GpuError> {
        let (d, n) = (self.d, self.keys.len() / self.d);
        let queries = if self.kind == Kind::Border { n / 2 - 1..n / 2 + 1 } else { 0..1 };
        let q = vec![0.01_f32; queries.len() * d];
        let kv = || HostTensor::new(&self.keys[..], [1, n, d]).unwrap();
        let mut inputs =
            HostInputs::new(HostTensor::new(&q[..], [1, queries.len(), d]).unwrap(), kv(), kv());
        let mut shape = AttentionShape::new([1], n, d);
        shape.query = queries;
        if matches!(self.kind, Kind::Hidden | Kind::HiddenDropped | Kind::Outside) {
            inputs = inputs.with_mask(HostTensor::new(vec![false; n], [1, n]).unwrap());
            shape = shape.with_mask(1, n);
        }
        if matches!(self.kind, Kind::Dropped | Kind::HiddenDropped | Kind::Weights) {
            let bias = (0..n).map(|u| (u % 7) as f32 / 7.0).collect::<Vec<_>>();
            inputs = inputs.with_attn_bias(HostTensor::new(bias, [1, 1, n]).unwrap());
            shape = shape.with_bias(1, 1, n);
        }
        let problem = self.attention.problem(&shape).unwrap();
        let drops = matches!(self.kind, Kind::Dropped | Kind::HiddenDropped | Kind::Outside);
        let call = match drops {
            true => Call::with_dropout(Dropout { seed: 7, offset: 0 }),
            false => Call::default(),
        };
        let (got, want) = match self.kind {
            Kind::Weights => (
                gpu.weights_blocking(&problem, &inputs, 0..1)?.weights,
                Cpu::new().weights(&problem, &inputs, 0..1).unwrap().weights,
            ),
            _ => (
                gpu.forward_blocking(&problem, &inputs, &call)?.out,
                Cpu::new().forward(&problem, &inputs, &call).unwrap().out,
            ),
        };
        let errors = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
        Ok(errors.fold(0.0, |a, e| if e.is_nan() { f32::INFINITY } else { a.max(e) }))
    }
}
