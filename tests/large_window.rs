//! A window far larger than the sequence costs what the sequence costs, in time and memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
    Reference, ReferenceQuirks,
};

/// Counts the bytes in use and their peak.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(used, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn costs_what_the_sequence_costs() {
    const N: usize = 10;
    const D: usize = 16;
    let data: Vec<f32> = (0..N * D).map(|i| (i as f32 * 0.7).sin()).collect();
    let x = || HostTensor::new(&data[..], [1, N, D]).unwrap();
    let start = Instant::now();
    let mut runs = 0;
    for window in [N as i64, 1_000_000] {
        for bits in 0..32 {
            let on = |bit: u32| bits >> bit & 1 == 1;
            let mut config = LocalAttentionConfig::new(window)
                .autopad(true)
                .causal(on(0))
                .shared_qk(bits % 3 == 0);
            if on(1) {
                config = config.dim(D as i64).use_xpos(bits % 5 == 0);
            }
            let mut inputs = HostInputs::new(x(), x(), x());
            if on(2) {
                let mask: Vec<bool> = (0..N).map(|u| u % 3 != 0).collect();
                inputs = inputs.with_mask(HostTensor::new(mask, [1, N]).unwrap());
            }
            if on(3) {
                inputs = inputs.with_attn_bias(HostTensor::new(vec![0.5; 1], [1, 1, 1]).unwrap());
            }
            let quirks = if on(4) { ReferenceQuirks::NONE } else { ReferenceQuirks::ALL };
            let attention = LocalAttention::new(config).unwrap().with_quirks(quirks);
            let shape = AttentionShape::from_inputs(&inputs).unwrap();
            let before = USED.load(Relaxed);
            PEAK.store(before, Relaxed);
            for _ in 0..20 {
                let problem = attention.problem(&shape).unwrap();
                let fast = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap();
                let plain =
                    Reference::<f32>::new().forward(&problem, &inputs, &Call::default()).unwrap();
                for (a, b) in fast.out.iter().zip(&plain.out) {
                    assert!((a - b).abs() < 1e-5, "window {window}, options {bits:#b}: {a} {b}");
                }
                runs += 1;
            }
            let peak = PEAK.load(Relaxed) - before;
            assert!(peak < 4 << 20, "window {window}, options {bits:#b}: {peak} bytes");
        }
    }
    // Visiting slots, three million a query, would be 38 billion: minutes. This is no measurement.
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 30.0, "{runs} runs took {seconds} s");
}

/// A query that sees nothing of a huge window: slots outside the sequence are counted.
#[test]
fn degenerate_rows_of_a_huge_window() {
    let window = 1_000_000;
    let v = [3.0_f32, 5.0];
    let t = || HostTensor::new(&v[..], [1, 2, 1]).unwrap();
    let mask = HostTensor::new(vec![false; 2], [1, 2]).unwrap();
    let inputs = HostInputs::new(t(), t(), t()).with_mask(mask);
    let shape = AttentionShape::from_inputs(&inputs).unwrap();
    let config = LocalAttentionConfig::new(window).autopad(true).causal(true);
    let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
    let out = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap().out;
    // J = 2,000,000 slots: a million outside count as -1, the padding as 0.
    let expected = (8.0 - 1e6) / 2e6;
    assert!(out.iter().all(|x| (f64::from(*x) - expected).abs() < 1e-7), "{out:?}");
}
