//! What is measured: an engine with its threads, and the peers beside it.

use std::time::Duration;

use super::BenchArgs;
use super::floor::Floor;
use super::machine::Machine;
use super::measure::measure;
use super::peer::{Peer, PeerProcess};
use super::row::{self, Floors, Row};
use super::runner::Runner;
use super::shape::BenchShape;
use super::tile::TileChoice;
use crate::backend::Chosen;
use crate::error::BadInput;

/// An engine with its threads, and the peers that run beside it.
pub struct Setup {
    pub runner: Runner,
    peers: Vec<PeerProcess>,
    /// What the machine could do, before the first shape and after each.
    floors: Vec<Floor>,
    /// What one thread could do, where ours left the others alone.
    single: Option<Floor>,
    /// What the peers' threads could do, where ours computes elsewhere.
    beside: Option<Floor>,
}

impl Setup {
    /// One for each number of threads. `starts` is told of each peer, which may take long.
    pub fn all(
        args: &BenchArgs,
        chosen: &Chosen,
        starts: impl Fn(Peer),
    ) -> Result<Vec<Self>, BadInput> {
        check_cpu_options(args, chosen)?;
        let counts = match args.threads.len() {
            0 => vec![None],
            _ => args.threads.iter().copied().map(Some).collect(),
        };
        let tunes = args.tile == Some(TileChoice::Fastest);
        let setup = |threads| {
            let runner = Runner::new((chosen.clone(), tunes), threads, args.isa)?;
            let patience = Duration::from_secs_f64(args.peer_timeout);
            let start = |&peer: &Peer| {
                starts(peer);
                PeerProcess::start(peer, &args.python, runner.peer_threads(), patience)
            };
            let peers = args.peer.iter().map(start).collect::<Result<_, _>>()?;
            Ok(Self { runner, peers, floors: Vec::new(), single: None, beside: None })
        };
        counts.into_iter().map(setup).collect()
    }

    pub fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// What the machine can do, before anything else is measured.
    pub fn measure_floor(&mut self) -> Result<Floor, BadInput> {
        let elsewhere = self.runner.threads() != self.runner.peer_threads();
        if self.has_peers() && (elsewhere || matches!(self.runner.chosen, Chosen::Gpu(_))) {
            self.beside = Some(Floor::measure(self.runner.peer_threads())?);
        }
        let floor = self.runner.floor()?;
        self.floors.push(floor.clone());
        Ok(floor)
    }

    /// The rows of a shape, and why peers have none. Their floor is the better of before and after:
    /// what a shared machine can do changes.
    pub fn measure(
        &mut self,
        shape: &BenchShape,
        seconds: f64,
        machine: &Machine,
    ) -> Result<(Vec<Row>, Vec<String>), BadInput> {
        let measured = measure(&self.runner, shape, &mut self.peers, seconds)?;
        let mut after = self.runner.floor()?;
        if self.floors.last().is_some_and(|before| after.is_apart(before)) {
            // Something else ran at one of the two times.
            after = after.best(&self.runner.floor()?);
        }
        let best = self.floors.last().map_or_else(|| after.clone(), |before| before.best(&after));
        self.floors.push(after);
        let mut ours = best.clone();
        if measured.threads < self.runner.threads() {
            let now = Floor::measure(measured.threads)?;
            ours = self.single.as_ref().map_or_else(|| now.clone(), |before| before.best(&now));
            self.single = Some(ours.clone());
        }
        if let Some(before) = &mut self.beside {
            *before = before.best(&Floor::measure(self.runner.peer_threads())?);
        }
        let floors = Floors { ours, peers: self.beside.clone().unwrap_or(best) };
        row::rows(&self.runner, shape, &measured, &floors, machine)
    }

    /// What the machine could do at best in this run, on each number of threads that it was asked for.
    pub fn best(&self) -> impl Iterator<Item = Floor> {
        let best = self.floors.iter().cloned().reduce(|a, b| a.best(&b));
        best.into_iter().chain(self.single.clone()).chain(self.beside.clone())
    }
}

/// Threads are of the CPU engine and of peers, instruction sets of the former. Several numbers of threads differ, and have no
/// peers: those keep their threads and memory between their turns.
fn check_cpu_options(args: &BenchArgs, chosen: &Chosen) -> Result<(), BadInput> {
    let threads = &args.threads;
    let text = threads.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let refuse = |why: String| Err(BadInput::Usage(why));
    if !matches!(chosen, Chosen::Cpu) {
        let why = "add --backend cpu";
        if !threads.is_empty() && args.peer.is_empty() {
            return refuse(format!("--threads {text}: only the CPU engine has threads: {why}"));
        }
        if let Some(isa) = args.isa {
            let isa = isa.name();
            return refuse(format!("--isa {isa}: only the CPU engine has a choice of them: {why}"));
        }
    }
    if threads.iter().enumerate().any(|(i, n)| threads[..i].contains(n)) {
        return refuse(format!("--threads {text}: each number must be there once"));
    }
    for (i, peer) in args.peer.iter().enumerate() {
        if args.peer[..i].contains(peer) {
            return refuse(format!("--peer {}: each must be there once", peer.name()));
        }
    }
    if threads.len() > 1 && !args.peer.is_empty() {
        return refuse(format!("--threads {text}: with --peer one number is allowed"));
    }
    Ok(())
}
