//! `pub`.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use unibus_client::{Ack, Message, Publisher, Receipt};
use unibus_proto::code::ErrorCode;
use unibus_proto::limits::{BODY_BYTES_MAX, PRODUCER_WINDOW};

use crate::args::{Global, PubArgs};
use crate::exit::{Failure, Result};
use crate::lines::{LineError, Lines};
use crate::output::{Output, bytes, count, thousands};
use crate::pace::Pace;
use crate::session::{During, Session, interrupted};
use crate::time::human;

/// Bytes read from standard input at a time.
const READ_BYTES: usize = 256 << 10;
/// No bar for what is done sooner.
const BAR_AFTER: Duration = Duration::from_millis(500);

/// Runs `pub`.
pub async fn run(args: &PubArgs, global: &Global, out: Output) -> Result<()> {
    if args.lines && std::io::stdin().is_terminal() {
        out.hint("reading lines from the terminal; Ctrl-D ends");
    }
    let client = Session::open(global, out)?.client;
    let step = format!("publish to {}", args.subject);
    let builder = client.publisher(&args.subject);
    let builder = if let Some(name) = &args.producer { builder.named(name) } else { builder };
    let publisher = builder.open().await.during(&step)?;
    let mut flow = Flow::start(publisher, args, out);
    let ended = match &args.body {
        Some(body) => flow.publish_one(body).await,
        None => flow.publish_lines().await,
    };
    flow.finish(ended).await.end(args, out).map_err(|failure| failure.during(step))
}

/// Messages on their way, and the task that takes their answers in order.
struct Flow {
    publisher: Publisher,
    headers: Vec<(String, String)>,
    pace: Option<Pace>,
    receipts: Option<mpsc::Sender<(u64, Receipt)>>,
    tally: Arc<Mutex<Tally>>,
    collector: JoinHandle<Option<Failure>>,
    /// What the collector ended with, once it has.
    collected: Option<Option<Failure>>,
    started: Instant,
}

/// Why no more is read from standard input.
enum Ended {
    /// All was read.
    Input,
    /// Ctrl-C.
    Interrupted,
    /// The publisher failed: the collector knows why.
    Refused,
    /// The input is bad.
    Bad(Failure),
}

impl Flow {
    fn start(publisher: Publisher, args: &PubArgs, out: Output) -> Self {
        // As many as the publisher lets on their way: the bound of this program's memory is the SDK's.
        let (sender, receiver) = mpsc::channel(PRODUCER_WINDOW as usize);
        let bar = (args.lines && out.err_tty && !out.json).then(Bar::new);
        let tally = Arc::new(Mutex::new(Tally { named: args.producer.is_some(), ..Tally::default() }));
        Self {
            publisher,
            headers: args.header.clone(),
            pace: args.rate.map(Pace::new),
            receipts: Some(sender),
            collector: tokio::spawn(collect(receiver, tally.clone(), bar)),
            tally,
            collected: None,
            started: Instant::now(),
        }
    }

    async fn publish_one(&mut self, body: &str) -> Ended {
        let body = if body == "-" {
            let mut input = Vec::new();
            // One byte more than fits tells that it does not.
            let mut stdin = tokio::io::stdin().take(BODY_BYTES_MAX as u64 + 1);
            tokio::select! {
                read = stdin.read_to_end(&mut input) => if let Err(error) = read {
                    return Ended::Bad(error.into());
                },
                () = interrupted() => return Ended::Interrupted,
            }
            input
        } else {
            body.as_bytes().to_vec()
        };
        if body.len() > BODY_BYTES_MAX {
            let found =
                if body.len() == BODY_BYTES_MAX + 1 { "more than ".into() } else { format!("{} of ", body.len()) };
            let message = format!("the message has {found}{BODY_BYTES_MAX} bytes that are allowed");
            return Ended::Bad(
                Failure::of_code(ErrorCode::Invalid, message).remedy("split it: --lines sends each line"),
            );
        }
        tokio::select! {
            refused = self.send(body) => refused.unwrap_or(Ended::Input),
            () = interrupted() => Ended::Interrupted,
        }
    }

    async fn publish_lines(&mut self) -> Ended {
        let stdin = BufReader::with_capacity(READ_BYTES, tokio::io::stdin());
        let mut lines = Lines::new(stdin, BODY_BYTES_MAX);
        let mut stop = std::pin::pin!(interrupted());
        loop {
            let line = tokio::select! {
                biased;
                () = &mut stop => return Ended::Interrupted,
                collected = &mut self.collector, if self.collected.is_none() => {
                    self.collected = Some(flatten(collected));
                    return Ended::Refused;
                }
                line = lines.next() => line,
            };
            let line = match line {
                Ok(Some(line)) => line,
                Ok(None) => return Ended::Input,
                Err(error) => return Ended::Bad(bad_line(error)),
            };
            tokio::select! {
                biased;
                () = &mut stop => return Ended::Interrupted,
                refused = self.send(line) => if let Some(ended) = refused { return ended },
            }
        }
    }

    /// Puts a message on its way. `Some` when there is no more to send.
    async fn send(&mut self, body: Vec<u8>) -> Option<Ended> {
        if let Some(pace) = &mut self.pace {
            pace.next().await;
        }
        let size = body.len() as u64;
        let mut message = Message::new(body);
        for (name, value) in &self.headers {
            message = message.header(name, value);
        }
        match self.publisher.enqueue(message).await {
            Ok(receipt) => {
                let receipts = self.receipts.as_ref()?;
                receipts.send((size, receipt)).await.is_err().then_some(Ended::Refused)
            }
            Err(error) => Some(Ended::Bad(error.into())),
        }
    }

    /// Waits for the answers to all that was sent, or for Ctrl-C.
    async fn finish(mut self, ended: Ended) -> Report {
        drop(self.receipts.take());
        let (failure, ended) = match self.collected.take() {
            Some(failure) => (failure, ended),
            None => tokio::select! {
                joined = &mut self.collector => (flatten(joined), ended),
                () = interrupted() => (None, Ended::Interrupted),
            },
        };
        let producer = self.publisher.producer_id().to_string();
        Report { tally: lock(&self.tally).clone(), failure, ended, producer, took: self.started.elapsed() }
    }
}

fn flatten(joined: std::result::Result<Option<Failure>, JoinError>) -> Option<Failure> {
    joined.unwrap_or_else(|error| Some(Failure::of_code(ErrorCode::Internal, format!("collecting answers: {error}"))))
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().expect("nobody panics while holding it")
}

fn bad_line(error: LineError) -> Failure {
    match error {
        LineError::Io(error) => error.into(),
        LineError::TooLong { line, bytes: size } => Failure::of_code(
            ErrorCode::Invalid,
            format!("line {line} has {size} bytes ({}), a message has at most {BODY_BYTES_MAX}", bytes(size)),
        )
        .remedy("split or drop the line, then run the same with --producer NAME: what is stored is not stored twice"),
    }
}

async fn collect(
    mut receipts: mpsc::Receiver<(u64, Receipt)>,
    tally: Arc<Mutex<Tally>>,
    mut bar: Option<Bar>,
) -> Option<Failure> {
    while let Some((size, receipt)) = receipts.recv().await {
        match receipt.await {
            Ok(ack) => lock(&tally).add(&ack, size),
            Err(error) => return Some(error.into()),
        }
        if let Some(bar) = &mut bar {
            bar.show(&lock(&tally));
        }
    }
    None
}

/// What was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The producer has a name: what is known already may be the work of an earlier run. Without a name it
    /// is this run's own, whose first answer was lost.
    named: bool,
    first: Option<u64>,
    last: u64,
    stored: u64,
    known: u64,
    bytes: u64,
    voters: u32,
}

impl Tally {
    /// One more answer.
    pub fn add(&mut self, ack: &Ack, size: u64) {
        // The creation of a room is sequence 0, so 0 says that the place of an old duplicate is not kept.
        if ack.sequence.0 > 0 {
            self.first = Some(self.first.map_or(ack.sequence.0, |first| first.min(ack.sequence.0)));
            self.last = self.last.max(ack.sequence.0);
        }
        if ack.duplicate && self.named {
            self.known += 1
        } else {
            self.stored += 1
        }
        self.bytes += size;
        self.voters = ack.voters.max(self.voters);
    }

    /// How many are stored, by this run or an earlier one.
    fn total(&self) -> u64 {
        self.stored + self.known
    }

    /// The result line.
    fn words(&self) -> String {
        if self.total() == 0 {
            return "stored: nothing".into();
        }
        let place = match self.first {
            Some(first) if first == self.last => format!("sequence {first}"),
            Some(first) => format!("sequence {first}..{}", self.last),
            None => "at places that are not kept any more".into(),
        };
        let split = match self.known {
            0 => String::new(),
            known => format!(" ({} stored now, {} known already)", thousands(self.stored), thousands(known)),
        };
        format!("stored: {place}{split}, fsynced on a majority of {}", self.voters)
    }
}

/// How it went.
struct Report {
    tally: Tally,
    failure: Option<Failure>,
    ended: Ended,
    producer: String,
    took: Duration,
}

impl Report {
    fn end(self, args: &PubArgs, out: Output) -> Result<()> {
        let failure = match &self.ended {
            // A publisher that ended refuses the next message: the collector knows why it ended.
            Ended::Bad(failure) => self.failure.clone().or(Some(failure.clone())),
            Ended::Input | Ended::Interrupted | Ended::Refused => self.failure.clone(),
        };
        if failure.is_none() || self.tally.total() > 0 {
            self.say(args, out)?;
        }
        match failure {
            Some(failure) if self.tally.total() > 0 => Err(self.partly(failure)),
            Some(failure) => Err(failure),
            None if matches!(self.ended, Ended::Interrupted) => Err(Failure::interrupted()),
            None => Ok(()),
        }
    }

    fn say(&self, args: &PubArgs, out: Output) -> Result<()> {
        let tally = &self.tally;
        if out.json {
            return out.object(
                "publish",
                json!({
                    "subject": args.subject.as_str(),
                    "first_sequence": tally.first,
                    "last_sequence": tally.first.map(|_| tally.last),
                    "stored": tally.stored,
                    "known": tally.known,
                    "bytes": tally.bytes,
                    "voters": tally.voters,
                    "producer": self.producer,
                    "duration_ms": self.took.as_millis() as u64,
                }),
            );
        }
        out.talk(tally.words());
        if args.lines && tally.total() > 0 {
            let seconds = self.took.as_secs_f64().max(0.001);
            out.talk(format!(
                "{}, {} in {} ({}/s)",
                count(tally.total(), "message"),
                bytes(tally.bytes),
                human(self.took),
                thousands((tally.total() as f64 / seconds) as u64),
            ));
        }
        Ok(())
    }

    fn partly(&self, failure: Failure) -> Failure {
        let stored = self.tally.total();
        let mut failure = failure.partly();
        failure.message = format!("{}; stored before it: {}", failure.message, count(stored, "message"));
        failure
    }
}

/// The bar on a terminal: bytes of a file, else a count.
struct Bar {
    started: Instant,
    total: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new() -> Self {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
        let metadata = stdin.and_then(|file| file.metadata()).ok();
        let total = metadata.filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
        Self { started: Instant::now(), total, bar: None }
    }

    fn show(&mut self, tally: &Tally) {
        if self.bar.is_none() && self.started.elapsed() < BAR_AFTER {
            return;
        }
        let total = self.total;
        let bar = self.bar.get_or_insert_with(|| draw(total));
        bar.set_position(if total.is_some() { tally.bytes } else { tally.total() });
        bar.set_message(format!("fsynced up to sequence {}", tally.last));
    }
}

fn draw(total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {msg}",
        None => "{spinner} {human_pos} messages {per_sec} {msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
