//! Peers in Python, each a process that is asked for one run at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::shape::{BenchShape, HIDDEN};
use crate::console::plain;
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
    words: LastWords,
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
            words: LastWords::of(errors),
            patience,
            peak: None,
            python: python.to_owned(),
        };
        // The first line says whether its packages are there.
        let version = process.answer().and_then(|answer| {
            let version = answer["torch"].as_str().map(plain);
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
        let seconds = answer["seconds"].as_f64().filter(|s| (1e-9..1e9).contains(s));
        seconds.ok_or_else(|| format!("it answered {answer}"))
    }

    pub fn peak_rss_bytes(&self) -> Option<u64> {
        self.peak
    }

    /// That it is there no more, and its last words.
    fn ended(&mut self) -> String {
        match self.words.read() {
            Some(words) => format!("it ended without an answer: {words}"),
            None => "it ended without an answer".to_owned(),
        }
    }

    /// Ends one that is out of step, whose later answer would be taken for that to another question, or has closed its
    /// output and may not have ended yet.
    fn end(&mut self) {
        // It has nothing to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ask(&mut self, what: &Value) -> Result<Value, String> {
        let asked = writeln!(self.to, "{what}").and_then(|()| self.to.flush());
        if let Err(e) = asked {
            self.end();
            return Err(format!("it has gone: {e}"));
        }
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, String> {
        let line = match self.answers.recv_timeout(self.patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => {
                let why = self.ended();
                self.end();
                return Err(why);
            }
            Err(RecvTimeoutError::Timeout) => {
                self.end();
                let seconds = self.patience.as_secs_f64();
                return Err(format!("no answer in {seconds} s (--peer-timeout)"));
            }
        };
        let Ok(answer) = serde_json::from_str::<Value>(&line) else {
            self.end();
            let start: String = line.chars().take(200).collect();
            return Err(format!("it said {start:?}"));
        };
        match answer["error"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => Ok(answer),
        }
    }
}

/// The longest line that is read whole.
const LONGEST_LINE: u64 = 1 << 16;

/// Calls `each` with lines that say something, read as they come: a full pipe would stop who writes it.
fn each_line(from: impl Read, mut each: impl FnMut(String) -> bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!((&mut from).take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(1..)) {
        let said = String::from_utf8_lossy(&line).trim().to_owned();
        line.clear();
        if !said.is_empty() && !each(said) {
            return;
        }
    }
}

/// The lines of an output, of which few are kept before they are taken.
fn lines_of(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = sync_channel(16);
    std::thread::spawn(move || each_line(from, |line| to.send(line).is_ok()));
    lines
}

/// The last thing that is said on an output.
struct LastWords {
    last: Arc<Mutex<Option<String>>>,
    /// Hangs up at the end.
    end: Receiver<()>,
}

impl LastWords {
    fn of(from: impl Read + Send + 'static) -> Self {
        let (at_end, end) = sync_channel(1);
        let last = Arc::new(Mutex::new(None));
        let to = last.clone();
        std::thread::spawn(move || {
            each_line(from, |line| {
                *to.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
                true
            });
            drop(at_end);
        });
        Self { last, end }
    }

    /// Not waited for until the pipe is closed: processes of its own may hold it open.
    fn read(&self) -> Option<String> {
        let _ = self.end.recv_timeout(Duration::from_millis(500));
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// One that ended at a shape, or was out of step after it, is started again for the next.
    #[test]
    fn one_that_failed_is_started_again() {
        for (at_first, why) in [
            ("exit", "it ended without an answer"),
            ("echo 'a warning'; echo '{}'", "it said \"a warning\""),
            ("sleep 30", "no answer in 2 s (--peer-timeout)"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (python, met) = (folder.path().join("python"), folder.path().join("met"));
            let met = met.display();
            let script = format!(
                r#"#!/bin/sh
                echo '{{"torch": "9"}}'
                while read line; do
                    [ -e {met} ] || {{ touch {met}; {at_first}; }}
                    case $line in
                        *prepare*) echo '{{"rotary": false}}';;
                        *) echo '{{"seconds": 1}}';;
                    esac
                done"#
            );
            std::fs::write(&python, script).unwrap();
            std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
            let patience = Duration::from_secs(2);
            let mut peer = PeerProcess::start(Peer::Flex, &python, 1, patience).unwrap();
            let shape = BenchShape::causal(1, 64, 16, 8);
            assert_eq!(peer.prepare(&shape).map(|_| ()), Err(why.to_owned()));
            assert!(!peer.prepare(&shape).unwrap().rotary);
            assert_eq!(peer.run(), Ok(1.0));
        }
    }
}
