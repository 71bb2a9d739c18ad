//! What happened in a run: a hash over every event, the last events as text, and on request all of
//! them in a file.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::sim::random::{hash_bytes, mix};

/// Events kept for the report of a failure.
const LAST_EVENTS: usize = 50;

/// What the scheduler did.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A task was polled.
    Poll,
    /// A task was spawned.
    Spawn,
    /// A timer fired.
    Fire,
    /// A frame was sent.
    Frame,
    /// A disk operation took effect.
    Disk,
}

/// The record of a run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    last: VecDeque<String>,
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// Writes every event from here on to `path` as well.
    pub fn write_to(&mut self, path: &Path) -> io::Result<()> {
        self.file = Some(BufWriter::new(File::create(path)?));
        Ok(())
    }

    /// Adds a scheduler event.
    pub fn step(&mut self, now: u64, step: Step, a: u64, b: u64) {
        self.events += 1;
        self.hash = mix(self.hash ^ mix(now ^ mix(step as u64 ^ mix(a ^ mix(b)))));
        if let Some(file) = &mut self.file {
            // A trace that cannot be written must not change the run.
            let _ = writeln!(file, "{} {step:?} {a} {b}", Stamp(now));
        }
    }

    /// Adds an event worth reading.
    pub fn note(&mut self, now: u64, text: &str) {
        self.events += 1;
        self.hash = mix(self.hash ^ mix(now ^ hash_bytes(text.as_bytes())));
        let line = format!("{} {text}", Stamp(now));
        if let Some(file) = &mut self.file {
            let _ = writeln!(file, "{line}");
        }
        if self.last.len() == LAST_EVENTS {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The hash over all events, and how many there were.
    pub fn digest(&self) -> (u64, u64) {
        (self.hash, self.events)
    }

    /// The last events worth reading.
    pub fn last_events(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }

    /// Writes what is buffered.
    pub fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.flush();
        }
    }
}

/// Nanoseconds of virtual time as seconds.
pub struct Stamp(pub u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>4}.{:06}", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}
