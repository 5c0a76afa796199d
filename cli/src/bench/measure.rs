//! Timing: warm-up, then runs until the median is worth quoting; peers in turn with ours.

use std::time::{Duration, Instant};

use super::machine::{peak_rss_bytes, reset_peak, waits};
use super::peer::{Peer, PeerProcess, Ready};
use super::runner::Runner;
use super::shape::BenchShape;
use super::times::Times;
use crate::error::BadInput;

/// Runs, or pairs of runs, at least.
const LEAST: usize = 7;
/// Runs at most: those of the smallest calls take some seconds.
const MOST: usize = 100_000;

/// What `--seconds` does.
pub fn seconds_help() -> String {
    format!(
        "Seconds to spend on a shape, in {LEAST} runs at least and {MOST} at most, whatever it says"
    )
}

/// Ours, and each peer's or why it could not run.
pub struct Measured {
    pub ours: Times,
    /// The variant of our engine.
    pub variant: String,
    /// Threads that ours computed on: small calls are not worth waking others.
    pub threads: usize,
    pub peers: Vec<(Peer, Result<PeerTimes, String>)>,
}

/// What a peer ran, and how long.
pub struct PeerTimes {
    pub times: Times,
    pub version: String,
    pub threads: usize,
    /// Whether it rotates.
    pub rotary: bool,
}

pub fn measure(
    runner: &Runner,
    shape: &BenchShape,
    peers: &mut [PeerProcess],
    seconds: f64,
) -> Result<Measured, BadInput> {
    let mut tensors = runner.prepare(shape)?;
    let mut ready: Vec<_> = peers.iter_mut().map(|p| p.prepare(shape)).collect();
    reset_peak();
    // Warm-up: kernels that are compiled, pages and tables with the first run, the clock with others.
    runner.upload(&mut tensors, shape.pass)?;
    runner.run(&mut tensors)?;
    let start = Instant::now();
    let (before, mut warm) = (waits(), 0);
    while start.elapsed() < Duration::from_millis(100) {
        runner.run(&mut tensors)?;
        warm += 1;
    }
    let threads = threads(runner.threads(), warm, before.zip(waits()));
    let (mut ours, mut gpu_seconds) = (Vec::new(), Vec::new());
    let mut theirs: Vec<Vec<f64>> = peers.iter().map(|_| Vec::new()).collect();
    let start = Instant::now();
    while ours.len() < LEAST || (start.elapsed().as_secs_f64() < seconds && ours.len() < MOST) {
        // Ours is the first of one turn and the last of the next.
        let last = ours.len() % 2 == 1;
        if last {
            run_peers(peers, &mut ready, &mut theirs);
        }
        if !peers.is_empty() {
            // A turn is a run that is not timed and one that is: the engine before has left its
            // data in the caches and its threads spinning.
            runner.run(&mut tensors)?;
        }
        let ran = runner.run(&mut tensors)?;
        ours.push(ran.seconds);
        gpu_seconds.extend(ran.gpu_seconds);
        if !last {
            run_peers(peers, &mut ready, &mut theirs);
        }
    }
    let peers = peers.iter().zip(ready).zip(theirs).map(|((peer, ready), seconds)| {
        let peak_rss_bytes = peer.peak_rss_bytes();
        let times = ready.map(|ready| PeerTimes {
            times: Times { seconds, gpu_seconds: Vec::new(), peak_rss_bytes },
            version: peer.version.clone(),
            threads: peer.threads,
            rotary: ready.rotary,
        });
        (peer.peer, times)
    });
    Ok(Measured {
        peers: peers.collect(),
        ours: Times { seconds: ours, gpu_seconds, peak_rss_bytes: peak_rss_bytes() },
        variant: runner.variant(&tensors),
        threads,
    })
}

/// A run of each peer that can.
fn run_peers(
    peers: &mut [PeerProcess],
    ready: &mut [Result<Ready, String>],
    times: &mut [Vec<f64>],
) {
    for ((peer, ready), times) in peers.iter_mut().zip(ready).zip(times) {
        if ready.is_ok() {
            match peer.run() {
                Ok(seconds) => times.push(seconds),
                Err(why) => *ready = Err(why),
            }
        }
    }
}

/// Threads that computed some runs: a caller that hands its work to a pool waits once a run; one that
/// never waited did it all.
fn threads(most: usize, runs: u64, waits: Option<(u64, u64)>) -> usize {
    match waits {
        Some((before, after)) if runs > 0 && 2 * after.saturating_sub(before) < runs => 1,
        _ => most,
    }
}

#[cfg(test)]
mod tests {
    use super::threads;

    #[test]
    fn who_never_waits_computes_alone() {
        assert_eq!(threads(2, 1000, Some((5, 8))), 1);
        assert_eq!(threads(2, 1000, Some((5, 1004))), 2);
        assert_eq!(threads(2, 1, Some((5, 6))), 2);
        // Nothing to tell it by.
        assert_eq!(threads(2, 0, Some((5, 5))), 2);
        assert_eq!(threads(2, 1000, None), 2);
    }
}
