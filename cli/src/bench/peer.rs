//! Peers in Python, each a process that is asked for one run at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::shape::{BenchShape, HIDDEN};
use crate::error::BadInput;

/// What ours is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// The PyTorch module itself.
    #[value(name = "torch-reference")]
    Reference,
    /// flex_attention, compiled, with the same mask and no rotary.
    #[value(name = "torch-flex")]
    Flex,
    /// Full scaled_dot_product_attention: what a window saves.
    #[value(name = "torch-sdpa")]
    Sdpa,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "torch-reference",
            Self::Flex => "torch-flex",
            Self::Sdpa => "torch-sdpa",
        }
    }
}

/// The script that serves all peers.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/peers/peer.py");

/// A running peer.
pub struct PeerProcess {
    pub peer: Peer,
    /// Of PyTorch.
    pub version: String,
    pub threads: usize,
    child: Child,
    to: ChildStdin,
    answers: Receiver<String>,
    /// What it says on standard error.
    words: Receiver<String>,
    /// How long an answer may take.
    patience: Duration,
    peak: Option<u64>,
    python: PathBuf,
}

/// What a peer says of a shape that it can run.
pub struct Ready {
    /// Whether it rotates.
    pub rotary: bool,
}

impl PeerProcess {
    pub fn start(
        peer: Peer,
        python: &Path,
        threads: usize,
        patience: Duration,
    ) -> Result<Self, BadInput> {
        let fail = |why: String| BadInput::Usage(format!("--peer {}: {why}", peer.name()));
        if !Path::new(SCRIPT).exists() {
            let why = "is gone, with the checkout that this program was built in";
            return Err(fail(format!("{SCRIPT} {why}")));
        }
        let mut child = Command::new(python)
            .args([SCRIPT, peer.name(), &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| fail(format!("{} could not be started: {e}", python.display())))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(to), Some(from), Some(errors)) = pipes else {
            return Err(fail("its pipes could not be opened".to_owned()));
        };
        let mut process = Self {
            peer,
            version: String::new(),
            threads,
            child,
            to,
            answers: lines_of(from),
            words: lines_of(errors),
            patience,
            peak: None,
            python: python.to_owned(),
        };
        // The first line says whether its packages are there.
        let version = process.answer().and_then(|answer| {
            let version = answer["torch"].as_str().map(str::to_owned);
            version.ok_or_else(|| format!("it answered {answer}"))
        });
        process.version = version.map_err(fail)?;
        Ok(process)
    }

    /// Makes tensors and compiles; an error says why this shape cannot be run. A peer that an earlier shape ended
    /// is started again.
    pub fn prepare(&mut self, shape: &BenchShape) -> Result<Ready, String> {
        if !matches!(self.child.try_wait(), Ok(None)) {
            let again = Self::start(self.peer, &self.python, self.threads, self.patience);
            *self = again.map_err(|e| e.to_string())?;
        }
        self.peak = None;
        let (hidden, period) = HIDDEN;
        let answer = self.ask(&json!({ "prepare": shape, "hidden": [hidden, period] }))?;
        let rotary = answer["rotary"].as_bool();
        rotary.map(|rotary| Ready { rotary }).ok_or_else(|| format!("it answered {answer}"))
    }

    /// One run, in seconds.
    pub fn run(&mut self) -> Result<f64, String> {
        let answer = self.ask(&json!({ "run": 1 }))?;
        self.peak = answer["peak_rss_bytes"].as_u64();
        let seconds = answer["seconds"].as_f64().filter(|seconds| *seconds > 0.0);
        seconds.ok_or_else(|| format!("it answered {answer}"))
    }

    pub fn peak_rss_bytes(&self) -> Option<u64> {
        self.peak
    }

    /// That it is there no more, and its last words.
    fn ended(&mut self) -> String {
        // Not until the pipe is closed: processes of its own may hold it open.
        let next = || self.words.recv_timeout(Duration::from_millis(500)).ok();
        match std::iter::from_fn(next).last() {
            Some(words) => format!("it ended without an answer: {words}"),
            None => "it ended without an answer".to_owned(),
        }
    }

    fn ask(&mut self, what: &Value) -> Result<Value, String> {
        writeln!(self.to, "{what}").map_err(|e| format!("it has gone: {e}"))?;
        self.to.flush().map_err(|e| format!("it has gone: {e}"))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, String> {
        let line = match self.answers.recv_timeout(self.patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            Err(RecvTimeoutError::Timeout) => {
                // A late answer would be taken for that to a later question.
                let _ = self.child.kill();
                let _ = self.child.wait();
                let seconds = self.patience.as_secs_f64();
                return Err(format!("no answer in {seconds} s (--peer-timeout)"));
            }
        };
        let answer: Value = serde_json::from_str(&line).map_err(|_| format!("it said {line:?}"))?;
        match answer["error"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => Ok(answer),
        }
    }
}

/// The longest line that is read whole.
const LONGEST_LINE: u64 = 1 << 16;

/// The lines that say something, read as they come: a full pipe would stop who writes it.
fn lines_of(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!((&mut from).take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(1..)) {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            if !said.is_empty() && to.send(said).is_err() {
                return;
            }
        }
    });
    lines
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // It has nothing to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
