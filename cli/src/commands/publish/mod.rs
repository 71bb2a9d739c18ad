//! `pub`: standard input or one body, to a room.

mod bar;
mod report;

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::io::{AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use unibus_client::{Message, Publisher, Receipt};
use unibus_proto::code::ErrorCode;
use unibus_proto::limits::{BODY_BYTES_MAX, PRODUCER_WINDOW};

use crate::args::{Global, PubArgs};
use crate::exit::{Failure, Result};
use crate::lines::{LineError, Lines};
use crate::output::{Output, bytes};
use crate::pace::Pace;
use crate::session::{During, Session, interrupted};
use bar::Bar;
use report::{Report, Tally};

/// Bytes read from standard input at a time.
const READ_BYTES: usize = 256 << 10;

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
    receipts: Option<mpsc::Sender<Sent>>,
    tally: Arc<Mutex<Tally>>,
    collector: JoinHandle<Option<Failure>>,
    /// What the collector ended with, once it has.
    collected: Option<Option<Failure>>,
    started: Instant,
}

/// A message on its way.
struct Sent {
    bytes: u64,
    at: Instant,
    receipt: Receipt,
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
        let (bytes, at) = (body.len() as u64, Instant::now());
        let mut message = Message::new(body);
        for (name, value) in &self.headers {
            message = message.header(name, value);
        }
        match self.publisher.enqueue(message).await {
            Ok(receipt) => {
                let receipts = self.receipts.as_ref()?;
                receipts.send(Sent { bytes, at, receipt }).await.is_err().then_some(Ended::Refused)
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
    mut receipts: mpsc::Receiver<Sent>,
    tally: Arc<Mutex<Tally>>,
    mut bar: Option<Bar>,
) -> Option<Failure> {
    let mut heard = None;
    while let Some(Sent { bytes, at, receipt }) = receipts.recv().await {
        let answer = receipt.await;
        let now = Instant::now();
        // Time without an acknowledgement counts while a message waits for one: a slow input is no outage.
        lock(&tally).note_gap(now - heard.replace(now).map_or(at, |heard: Instant| heard.max(at)));
        match answer {
            Ok(ack) => lock(&tally).add(&ack, bytes),
            Err(error) => return Some(error.into()),
        }
        if let Some(bar) = &mut bar {
            bar.show(&lock(&tally));
        }
    }
    None
}

#[cfg(test)]
mod tests;
