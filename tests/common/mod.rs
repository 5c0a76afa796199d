//! Random cases, and what they cover.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod coverage;
pub mod gradients;
#[cfg(target_os = "wasi")]
mod wasi;

use half::f16;
use local_attention::{
    AttentionShape, Call, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig, Problem,
    ReferenceQuirks,
};

/// An example, which `cargo test` has built beside the tests.
pub fn example(name: &str) -> std::process::Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples");
    let program = folder.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        program.exists(),
        "{} is not built: cargo build --examples --profile test",
        program.display()
    );
    let mut command = std::process::Command::new(program);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// A list of numbers that a case is decoded from. Where it ends it goes on with zeros, and 0 always
/// means the simplest choice, so that shrinking the list shrinks the case.
pub struct Choices<'a> {
    list: std::slice::Iter<'a, u32>,
}

impl<'a> Choices<'a> {
    pub fn new(list: &'a [u32]) -> Self {
        Self { list: list.iter() }
    }

    pub fn below(&mut self, n: usize) -> usize {
        let x = self.list.next().copied().unwrap_or(0);
        ((u64::from(x) * n as u64) >> 32) as usize
    }

    /// True in about `percent` of cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) >= 100 - percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// How many numbers a case is decoded from, at most.
pub const CHOICES: usize = 64;

/// Cheap reproducible noise.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: usize) -> Self {
        Self(seed as u64)
    }

    /// Uniform bits (SplitMix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// About normal: the sum of twelve uniform numbers, centred.
    pub fn normal(&mut self) -> f32 {
        let bits = [self.bits(), self.bits(), self.bits()];
        let parts =
            bits.iter().flat_map(|b| [b & 0xFFFF, b >> 16 & 0xFFFF, b >> 32 & 0xFFFF, b >> 48]);
        (parts.map(|p| p as f64 / 65536.0).sum::<f64>() - 6.0) as f32
    }

    pub fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// `lse` of a row that sees nothing.
pub const DEGENERATE: f32 = -f32::MAX;

/// The numbers of a random case.
pub fn list(seed: u64) -> Vec<u32> {
    let mut noise = Noise::new(seed as usize);
    (0..CHOICES).map(|_| noise.bits() as u32).collect()
}

/// One call with all its numbers.
#[derive(Debug, Clone)]
pub struct Case {
    pub config: LocalAttentionConfig,
    pub quirks: ReferenceQuirks,
    pub shape: AttentionShape,
    pub call: Call,
    /// Features before positions in memory: strides instead of a transpose.
    pub strided: bool,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub mask: Vec<bool>,
    pub bias: Vec<f32>,
}

impl Case {
    /// Decodes a case; every list of numbers gives one that is accepted.
    pub fn decode(list: &[u32]) -> Self {
        Self::decode_sized(list, &[2, 4, 8, 6, 16, 20, 32, 48], &[1, 2, 3, 5, 8, 16, 33])
    }

    /// The same with one of these sizes of heads: with rotary embeddings, and without.
    pub fn decode_sized(list: &[u32], rotary_dims: &[usize], plain_dims: &[usize]) -> Self {
        let c = &mut Choices::new(list);
        let mut noise = Noise::new(c.below(1 << 20));
        let leading = c.pick(&[&[1][..], &[], &[2], &[2, 3], &[1, 2], &[4]]).to_vec();
        // A window that dwarfs the sequence needs autopad.
        let huge = c.chance(4);
        // Windows that are cut into several blocks of queries; few queries, for the oracle's sake.
        let long = !huge && c.chance(4);
        let window = if huge {
            5_000
        } else if long {
            c.pick(&[300, 257, 512, 600])
        } else {
            c.pick(&[4, 1, 2, 3, 5, 7, 8, 12, 16, 17, 24, 33, 40, 64, 96])
        };
        let leading = if long { vec![1] } else { leading };
        let batch: usize = leading.iter().product();
        // Queries past the last key that see themselves alone, and padding is hidden.
        let starved = !huge && c.chance(5);
        let causal = c.chance(45);
        let look_backward = if starved { 0 } else { c.pick(&[1, 0, 1, 2, 3]) };
        let look_forward = if starved {
            Some(0)
        } else if causal {
            c.pick(&[None, Some(0)])
        } else {
            c.pick(&[None, Some(0), Some(1), Some(2), Some(3)])
        };
        let mut config = LocalAttentionConfig::new(window as i64)
            .causal(causal)
            .look_backward(look_backward)
            .exact_windowsize(starved || c.chance(45))
            .shared_qk(c.chance(35))
            .autopad(huge || starved || c.chance(55));
        config.look_forward = look_forward;

        let rotary = c.chance(60);
        let head_dim = if rotary { c.pick(rotary_dims) } else { c.pick(plain_dims) };
        if rotary {
            config = match c.below(10) {
                9 => config.rel_pos_emb_config(vec![head_dim as i64, 3]).dim(999),
                _ => config.dim(head_dim as i64),
            };
        } else if c.chance(20) {
            config = config.dim(head_dim as i64).use_rotary_pos_emb(false);
        }
        if c.chance(50) {
            config = config.use_xpos(true);
            // A base far below the window makes logits that f32 cannot hold.
            let base =
                c.pick(&[window as f64, 2.0 * window as f64, 512.0, window as f64 / 2.0 + 0.5]);
            if window == 1 || c.chance(60) {
                config = config.xpos_scale_base(base);
            }
        }
        if c.chance(40) {
            config = config.scale(c.pick(&[0.25, 1.0, -0.5, 0.0]));
        }
        let dropout = c.chance(30);
        if dropout {
            config = config.dropout(c.pick(&[0.25, 0.1, 0.5]));
        }

        // Length, so that the oracle stays affordable.
        let most = (400 / batch.isqrt().max(1)).max(window);
        let windows = match (huge, long) {
            (true, _) => 1,
            (_, true) => 1 + c.below(4),
            _ => 1 + c.below((most / window).clamp(1, 8)),
        };
        let mut seq_len = if huge { 1 + c.below(40) } else { windows * window };
        if config.autopad && !huge {
            seq_len -= c.below(window);
        }
        let padded = seq_len.next_multiple_of(window);
        let mut shape = AttentionShape::new(leading.clone(), seq_len, head_dim);
        if config.autopad && (starved || c.chance(50)) {
            // Any length that pads to the same.
            let reach = if huge { 60 } else { window };
            shape =
                shape.with_key_len(if huge { 1 + c.below(reach) } else { padded - c.below(reach) });
        }
        let mut effective = window;
        if config.use_xpos && c.chance(55) {
            let divisors: Vec<_> =
                (1..=padded).filter(|w| padded % w == 0 && padded / w <= 32).collect();
            effective = c.pick(&divisors);
            shape = shape.with_window(effective as i64);
        }
        let forward = look_forward.unwrap_or(if causal { 0 } else { 1 });
        let slots = (look_backward + 1 + forward) as usize * effective;
        if c.chance(35) {
            shape = shape.with_value_dim(c.pick(&[1, 3, 8, 16, 24, 40]));
        }
        if batch != 1 && c.chance(40) {
            shape = shape.with_kv_leading(vec![1; leading.len()]);
        }
        if long || c.chance(35) {
            let start = c.below(seq_len);
            let most = if long { 40 } else { seq_len };
            shape = shape.with_query(start..start + 1 + c.below((seq_len - start).min(most)));
        }
        if c.chance(60) {
            shape = shape.with_lse();
        }

        let divisors: Vec<_> = (1..=batch).filter(|r| batch.is_multiple_of(*r)).collect();
        let mut mask = Vec::new();
        if c.chance(50) {
            let len = match c.below(4) {
                1 if config.autopad => padded,
                2 if config.autopad => padded - c.below(effective.min(padded)),
                _ if config.autopad || seq_len == padded => seq_len,
                _ => padded,
            };
            let len = if config.autopad && len.next_multiple_of(effective) != padded {
                padded
            } else {
                len
            };
            let rows = c.pick(&divisors);
            let hidden = c.pick(&[3, 1, 8, 16]);
            for _ in 0..rows {
                let all = c.below(6);
                mask.extend((0..len).map(|_| match all {
                    4 => false,
                    5 => true,
                    _ => noise.bits() % 16 >= hidden,
                }));
            }
            shape = shape.with_mask(rows, len);
        }
        let mut bias = Vec::new();
        if c.chance(50) {
            let rows = c.pick(&divisors);
            let (queries, width) = (c.pick(&[effective, 1]), c.pick(&[slots, 1]));
            if rows * queries * width <= 400_000 {
                let kind = c.below(5);
                bias = (0..rows * queries * width)
                    .map(|_| match (kind, noise.bits() % 8) {
                        (2, 0) => f32::NEG_INFINITY,
                        (3, 0..=5) => -1e35,
                        (4, _) => f32::NEG_INFINITY,
                        _ => noise.normal(),
                    })
                    .collect();
                shape = shape.with_bias(rows, queries, width);
            }
        }
        let mut quirks = ReferenceQuirks::ALL;
        quirks.tail_aligned_rotary = !c.chance(30);
        quirks.visible_autopad_keys = !(starved || c.chance(30));
        quirks.uniform_masked_rows = !c.chance(30);

        let kv_batch = if shape.kv_leading == shape.leading { batch } else { 1 };
        let q = noise.normals(batch * shape.query.len() * head_dim);
        let mut k = noise.normals(kv_batch * shape.key_len * head_dim);
        let mut v = noise.normals(kv_batch * shape.key_len * shape.value_dim);
        // What no query sees may be anything; a degenerate row would average over it.
        if c.chance(30)
            && !quirks.uniform_masked_rows
            && let Some(m) = shape.mask
            && m.rows == 1
        {
            for row in 0..kv_batch {
                for u in (0..shape.key_len).filter(|&u| u >= m.len || !mask[u]) {
                    let at = row * shape.key_len + u;
                    k[at * head_dim..][..head_dim].fill(f32::NAN);
                    v[at * shape.value_dim..][..shape.value_dim].fill(f32::INFINITY);
                }
            }
        }
        // A bias where nobody looks may be anything too.
        if padded == effective
            && let Some(b) = shape.bias.filter(|b| b.slots > 1 && b.slots == slots)
        {
            let open = |slot: usize| {
                let position = slot.checked_sub(look_backward as usize * effective);
                let lets = |u| {
                    shape.mask.is_none_or(|m| (0..m.rows).any(|r| u < m.len && mask[r * m.len + u]))
                };
                position.is_some_and(|u| u < padded && lets(u))
            };
            for (i, x) in bias.iter_mut().enumerate().filter(|(i, _)| !open(i % b.slots)) {
                *x = if i % 2 == 0 { f32::NAN } else { f32::INFINITY };
            }
        }
        Self {
            config,
            quirks,
            call: if dropout { Call::with_seed(noise.bits()) } else { Call::default() },
            strided: c.chance(25),
            shape,
            q,
            k,
            v,
            mask,
            bias,
        }
    }

    /// A case of so many products (2^22 or more, where fewer than 2^21 are not worth waking a thread) and blocks of
    /// queries that the CPU engine computes it on all of its threads.
    pub fn large(seed: u64) -> Self {
        let list = list(seed);
        let c = &mut Choices::new(&list);
        let mut noise = Noise::new(c.below(1 << 20));
        let window = c.pick(&[64, 100, 256, 300]);
        let seq_len = 1200_usize.next_multiple_of(window);
        let (batch, d) = (c.pick(&[1, 2, 3]), c.pick(&[32, 64, 80]));
        let causal = c.chance(50);
        let mut config = LocalAttentionConfig::new(window as i64)
            .causal(causal)
            .exact_windowsize(c.chance(30))
            .shared_qk(c.chance(30));
        if c.chance(70) {
            config = config.dim(d as i64).use_xpos(c.chance(40));
        }
        let dropout = c.chance(30);
        if dropout {
            config = config.dropout(0.25);
        }
        let slots = if causal { 2 } else { 3 } * window;
        assert!(batch * seq_len * slots * 2 * d >= 1 << 22, "too small for threads");
        let mut shape = AttentionShape::new([batch], seq_len, d).with_lse();
        let kv_batch = if c.chance(40) { 1 } else { batch };
        shape = shape.with_kv_leading([kv_batch]);
        let mut mask = Vec::new();
        if c.chance(40) {
            mask.extend((0..seq_len).map(|_| !noise.bits().is_multiple_of(8)));
            shape = shape.with_mask(1, seq_len);
        }
        let mut bias = Vec::new();
        if c.chance(40) {
            bias = noise.normals(slots);
            shape = shape.with_bias(1, 1, slots);
        }
        Self {
            config,
            quirks: ReferenceQuirks::ALL,
            call: if dropout { Call::with_seed(noise.bits()) } else { Call::default() },
            strided: c.chance(25),
            q: noise.normals(batch * seq_len * d),
            k: noise.normals(kv_batch * seq_len * d),
            v: noise.normals(kv_batch * seq_len * d),
            shape,
            mask,
            bias,
        }
    }

    /// Without what only kernels of all options have code for, where the call has no window of its own: such cases are
    /// rare.
    pub fn strip(&mut self) {
        if self.shape.window.is_some() {
            return;
        }
        self.config = self.config.clone().shared_qk(false).use_xpos(false);
        (self.shape.mask, self.shape.bias) = (None, None);
        (self.mask, self.bias) = (Vec::new(), Vec::new());
        // What the mask hid from all.
        let all = self.k.iter_mut().chain(&mut self.v);
        all.filter(|x| !x.is_finite()).for_each(|x| *x = 0.5);
    }

    pub fn attention(&self) -> LocalAttention {
        LocalAttention::new(self.config.clone()).unwrap().with_quirks(self.quirks)
    }

    pub fn problem(&self) -> Problem {
        self.attention().problem(&self.shape).unwrap()
    }

    /// The tensors, read in the case's memory order.
    pub fn inputs(&self) -> HostInputs<'static, f32> {
        let s = &self.shape;
        let t = |data: &[f32], leading: &[usize], n: usize, d: usize| {
            let shape = [leading, &[n, d]].concat();
            if !self.strided {
                return HostTensor::new(data.to_vec(), shape).unwrap();
            }
            let mut transposed = vec![0.0; data.len()];
            for (i, x) in data.iter().enumerate() {
                let (row, at) = (i / (n * d), i % (n * d));
                transposed[row * n * d + at % d * n + at / d] = *x;
            }
            let mut strides = vec![0; shape.len()];
            let mut stride = (n * d) as isize;
            for i in (0..leading.len()).rev() {
                strides[i] = stride;
                stride *= leading[i] as isize;
            }
            strides[leading.len()..].copy_from_slice(&[1, n as isize]);
            HostTensor::strided(transposed, 0, shape, strides).unwrap()
        };
        let mut inputs = HostInputs::new(
            t(&self.q, &s.leading, s.query.len(), s.head_dim),
            t(&self.k, &s.kv_leading, s.key_len, s.head_dim),
            t(&self.v, &s.kv_leading, s.key_len, s.value_dim),
        );
        if let Some(m) = s.mask {
            inputs = inputs.with_mask(HostTensor::new(self.mask.clone(), [m.rows, m.len]).unwrap());
        }
        if let Some(b) = s.bias {
            let shape = [b.rows, b.queries, b.slots];
            inputs = inputs.with_attn_bias(HostTensor::new(self.bias.clone(), shape).unwrap());
        }
        inputs
    }

    /// The same tensors as f64 and as f16, exactly and rounded.
    pub fn wide(&self) -> HostInputs<'static, f64> {
        self.inputs().map(f64::from)
    }

    pub fn half(&self) -> HostInputs<'static, f16> {
        self.inputs().map(f16::from_f32)
    }
}
