//! A forward pass takes memory for its tiles alone: at n = 1,048,576 the peak above the tensors is
//! that of n = 256, to within 64 MiB; and so is a backward pass at n = 262,144. Each length runs in a process of its
//! own. Once a thread has its memory, calls that write into the caller's take none. A system that starts no threads is no failure.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, BackwardInputs, Call, Engine, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig,
};

const D: usize = 64;
const BACKWARD: &str = "LOCAL_ATTENTION_MEMORY_TEST_BACKWARD";
const LENGTH: &str = "LOCAL_ATTENTION_MEMORY_TEST_LENGTH";

struct Counting;

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

// SAFETY: the system's allocator, with a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls on one thread, of a problem that was computed once.
fn warm_calls_allocate_nothing() -> Result<(), Failed> {
    let (n, d) = (300, 32);
    let x =
        |phase: f32| -> Vec<f32> { (0..n * d).map(|i| (i as f32 * 0.3 + phase).sin()).collect() };
    let t = |phase| HostTensor::new(x(phase), [1, n, d]).unwrap();
    let inputs = HostInputs::new(t(0.0), t(1.0), t(2.0))
        .with_mask(HostTensor::new((0..n).map(|u| u % 5 != 0).collect::<Vec<_>>(), [1, n])?)
        .with_attn_bias(HostTensor::new(vec![0.5; 100], [1, 1, 100])?);
    let config = LocalAttentionConfig::new(50).causal(true).dim(d as i64).dropout(0.1);
    let shape = AttentionShape::from_inputs(&inputs)?.with_lse();
    let problem = LocalAttention::new(config)?.problem(&shape)?;
    let (mut out, mut lse) = (vec![0.0; n * d], vec![0.0; n]);
    let engine = Cpu::with_threads(1)?;
    let mut call = || {
        let before = ALLOCATIONS.get();
        engine.forward_into(&problem, &inputs, &Call::with_seed(1), &mut out, &mut lse)?;
        Ok::<_, Failed>(ALLOCATIONS.get() - before)
    };
    let (first, second) = (call()?, call()?);
    if first == 0 || second != 0 {
        return Err(format!("{first} allocations, then {second}").into());
    }
    Ok(())
}

/// Peak resident memory of this process, in bytes.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

/// Runs one forward pass, and a backward pass where asked to, and prints the peak above the tensors: q, k, v and out; dout,
/// lse and the gradients.
fn child(n: usize) {
    let data = |phase: f32| -> Vec<f32> {
        (0..n * D).map(|i| ((i % 9973) as f32 * 0.37 + phase).sin()).collect()
    };
    let t = |phase| HostTensor::new(data(phase), [1, n, D]).unwrap();
    let inputs = HostInputs::new(t(0.0), t(1.0), t(2.0));
    let config = LocalAttentionConfig::new(256).causal(true).dim(D as i64);
    let mut shape = AttentionShape::from_inputs(&inputs).unwrap();
    let backward = std::env::var(BACKWARD).is_ok();
    shape.lse = backward;
    let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
    let forward = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap();
    assert!(forward.out.iter().all(|x| x.is_finite()));
    let mut floats = 4 * n * D;
    if backward {
        let saved = BackwardInputs::new(&problem, &forward, t(3.0)).unwrap();
        let gradients = Cpu::new().backward(&problem, &inputs, &saved, &Call::default()).unwrap();
        assert!(gradients.dk.data.iter().all(|x| x.is_finite()));
        floats += 4 * n * D + n;
    }
    println!("{}", peak().unwrap() as i64 - (4 * floats) as i64);
}

fn above_tensors(n: usize, backward: bool) -> Result<i64, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    if backward {
        command.env(BACKWARD, "");
    }
    let out = command.env(LENGTH, n.to_string()).output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().parse()?)
}

/// Where no more threads can be started, the one that calls computes.
fn threads_that_cannot_start_are_not_needed() -> Result<(), Failed> {
    // Two stacks of 400 MiB fit the limit (in KiB), a third does not. What is left then is enough
    // for what a thread allocates as it starts: small stacks up to the limit would let one start
    // that has no room for that, and the standard library ends the process there.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 1000000 && exec \"$0\""]).arg(std::env::current_exe()?);
    command.env("RAYON_NUM_THREADS", "8").env("RUST_MIN_STACK", (400 << 20).to_string());
    let out = command.env(LENGTH, "4096").output()?;
    if out.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&out.stderr).into_owned().into())
}

fn main() {
    if let Ok(n) = std::env::var(LENGTH) {
        return child(n.parse().unwrap());
    }
    let trial = |name: &str, n: usize, backward: bool| {
        Trial::test(name, move || {
            let (short, long) = (above_tensors(256, backward)?, above_tensors(n, backward)?);
            println!("above the tensors: {short} bytes at n = 256, {long} at n = {n}");
            if long - short > 64 << 20 {
                return Err(format!("{} bytes more than at n = 256", long - short).into());
            }
            Ok(())
        })
        // Only Linux tells a process its own peak.
        .with_ignored_flag(peak().is_none())
    };
    let trials = vec![
        Trial::test("warm_calls_allocate_nothing", warm_calls_allocate_nothing),
        Trial::test(
            "threads_that_cannot_start_are_not_needed",
            threads_that_cannot_start_are_not_needed,
        )
        .with_ignored_flag(peak().is_none()),
        trial("a_million_positions_take_memory_for_tiles_alone", 1 << 20, false),
        trial("so_do_gradients_of_a_quarter_of_a_million", 1 << 18, true),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
