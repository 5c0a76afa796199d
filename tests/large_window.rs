//! A window far larger than the sequence costs what the sequence costs, in time and memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

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

const N: usize = 10;
const D: usize = 64;

/// Calls `each(window, options, work)` for a small window and two vast ones, with every combination
/// of options on the first; `work` is one forward pass of both engines.
fn each_window(mut each: impl FnMut(usize, usize, &mut dyn FnMut())) {
    let data: Vec<f32> = (0..N * D).map(|i| (i as f32 * 0.7).sin()).collect();
    let x = || HostTensor::new(&data[..], [1, N, D]).unwrap();
    for options in 0..1 << 9 {
        for window in [N, 1_000_000, 500_000_000] {
            let on = |bit: u32| options >> bit & 1 == 1;
            let mut config = LocalAttentionConfig::new(window as i64)
                .autopad(true)
                .causal(on(0))
                .shared_qk(on(1))
                .exact_windowsize(on(2));
            if on(3) {
                config = config.dim(D as i64).use_xpos(on(4));
            }
            let mut inputs = HostInputs::new(x(), x(), x());
            if on(5) {
                let mask: Vec<bool> = (0..N).map(|u| u % 3 != 0).collect();
                inputs = inputs.with_mask(HostTensor::new(mask, [1, N]).unwrap());
            }
            if on(6) {
                // One number for every query of a window, or for every slot of it.
                let forward = usize::from(!on(0));
                let shape = if on(8) { [1, 1, (2 + forward) * window] } else { [1, window, 1] };
                let constant = HostTensor::strided(&[0.5_f32][..], 0, shape, [0, 0, 0]);
                inputs = inputs.with_attn_bias(constant.unwrap());
            }
            let quirks = if on(7) { ReferenceQuirks::NONE } else { ReferenceQuirks::ALL };
            let attention = LocalAttention::new(config).unwrap().with_quirks(quirks);
            let shape = AttentionShape::from_inputs(&inputs).unwrap();
            each(window, options, &mut || {
                let problem = attention.problem(&shape).unwrap();
                let fast = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap();
                let plain =
                    Reference::<f32>::new().forward(&problem, &inputs, &Call::default()).unwrap();
                for (a, b) in fast.out.iter().zip(&plain.out) {
                    assert!((a - b).abs() < 1e-5, "window {window}, options {options:#b}: {a} {b}");
                }
            });
        }
    }
}

/// One test: it counts the bytes of the whole process.
#[test]
fn a_huge_window() {
    costs_what_the_sequence_costs();
    degenerate_rows();
}

fn costs_what_the_sequence_costs() {
    let mut peaks = [0; 3];
    let mut times = [Duration::ZERO; 3];
    let mut runs = 0;
    each_window(|window, options, work| {
        work(); // Threads and their scratch stay.
        let before = USED.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = Instant::now();
        work();
        times[runs % 3] += start.elapsed();
        let peak = PEAK.load(Relaxed).saturating_sub(before);
        peaks[runs % 3] = peak;
        runs += 1;
        if runs % 3 == 0 {
            // Rotary tables reach as far as the sequence, not as the window.
            assert!(
                peaks[1].max(peaks[2]) <= peaks[0] + (64 << 10),
                "options {options:#b}: {peaks:?} bytes for three windows up to {window}"
            );
        }
    });
    // Visiting slots would be a hundred thousand times as much: this is no measurement.
    assert!(times[1].max(times[2]) < 20 * times[0], "{times:?} for three windows");
}

/// A query that sees nothing of a huge window: slots outside the sequence are counted.
fn degenerate_rows() {
    let window = 1_000_000;
    let v = [3.0_f32, 5.0];
    let t = || HostTensor::new(&v[..], [1, 2, 1]).unwrap();
    let mask = HostTensor::new(vec![false; 2], [1, 2]).unwrap();
    let inputs = HostInputs::new(t(), t(), t()).with_mask(mask);
    let shape = AttentionShape::from_inputs(&inputs).unwrap();
    let config = LocalAttentionConfig::new(window).autopad(true).causal(true);
    let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
    let call = Call::default();
    let fast = Cpu::new().forward(&problem, &inputs, &call).unwrap().out;
    let plain = Reference::<f32>::new().forward(&problem, &inputs, &call).unwrap().out;
    // J = 2,000,000 slots: a million outside count as -1, the padding as 0.
    let expected = (8.0 - 1e6) / 2e6;
    for out in [fast, plain] {
        assert!(out.iter().all(|x| (f64::from(*x) - expected).abs() < 1e-6), "{out:?}");
    }
}
