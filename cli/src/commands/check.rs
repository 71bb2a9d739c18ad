//! `check`: the whole client path, once with the latency of each step, or again and again while nodes
//! come and go (`check_loop`).

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unibus_client::{Client, Item, Publisher, Start, SubscribeOptions, Subscription, TokioPlatform};
use unibus_proto::code::ErrorCode;
use unibus_proto::subject::{Subject, SubjectFilter};

use super::stored_plaintext;
use crate::args::{CheckArgs, Global};
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::session::{During, Session, interrupted};
use crate::time::human;

/// A message of a check on a healthy cluster takes milliseconds.
pub const WARN_ONCE: Duration = Duration::from_secs(1);

/// The exit codes of `check`, as Nagios wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All is well.
    Ok = 0,
    /// It works, slowly.
    Warning = 1,
    /// It does not work.
    Critical = 2,
    /// The check itself could not be made.
    Unknown = 3,
}

impl Verdict {
    /// The verdict on a duration.
    pub fn of(found: Duration, warn: Duration, critical: Duration) -> Self {
        match found {
            found if found > critical => Self::Critical,
            found if found > warn => Self::Warning,
            _ => Self::Ok,
        }
    }

    /// A check that failed: the cluster's fault is critical, this machine's is unknown.
    fn of_failure(failure: &Failure) -> Self {
        let here = ["LOCAL", "USAGE", "INTERRUPTED"].contains(&failure.code.as_str());
        if here { Self::Unknown } else { Self::Critical }
    }

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// For programs.
    pub fn json(self) -> Value {
        self.word().to_lowercase().into()
    }
}

/// Runs `check`; the number is the exit code.
pub async fn run(args: &CheckArgs, global: &Global, out: Output) -> u8 {
    let checked = if args.repeat {
        super::check_loop::run(args, global, out).await
    } else {
        tokio::select! {
            checked = once(args, global, out) => checked,
            () = interrupted() => Err(Failure::interrupted()),
        }
    };
    match checked {
        Ok(verdict) => verdict as u8,
        Err(failure) if failure.silent => failure.exit.number(),
        Err(failure) => {
            let verdict = Verdict::of_failure(&failure);
            // A probe reads the first line of standard output; whether it is gone does not change the verdict.
            let _ = out.either(
                "check",
                || json!({ "status": verdict.json(), "message": failure.message }),
                || format!("{}: {}", verdict.word(), failure.message),
            );
            out.failure(&failure);
            verdict as u8
        }
    }
}

/// The steps of a check and how long each took.
#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    async fn time<T>(&mut self, name: &'static str, step: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let value = step.await.map_err(|failure| failure.during(format!("check, step {name}")))?;
        self.done.push((name, started.elapsed()));
        Ok(value)
    }
}

async fn once(args: &CheckArgs, global: &Global, out: Output) -> Result<Verdict> {
    let mut steps = Steps::default();
    let walk = Box::pin(walk(args, global, out, &mut steps));
    let walked = tokio::time::timeout(global.timeout, walk).await;
    let Ok(latencies) = walked else {
        let done = steps.done.last().map_or("none", |(name, _)| name);
        let message = format!("check: not done within {}; the last step done is: {done}", human(global.timeout));
        return Err(Failure::of_code(ErrorCode::OutcomeUnknown, message).remedy("unibusctl status"));
    };
    let latencies = latencies?;
    let slowest = latencies.iter().max().copied().unwrap_or_default();
    let verdict = Verdict::of(slowest, args.warn.unwrap_or(WARN_ONCE), args.critical);
    report(&steps, &latencies, slowest, verdict, out)?;
    Ok(verdict)
}

async fn walk(args: &CheckArgs, global: &Global, out: Output, steps: &mut Steps) -> Result<Vec<Duration>> {
    let client = Session::open(global, out)?.client;
    steps.time("connect and sign in", async { client.who_am_i().await.during("sign in") }).await?;
    let subject = room_subject(&client);
    steps.time("room", ensure_room(&client, &subject)).await?;
    let publisher = steps.time("publisher", async { client.publisher(&subject).open().await.during("open") }).await?;
    let mut subscription = steps.time("subscribe", subscribe(&client, &subject)).await?;
    let mut latencies = Vec::new();
    let (mut stored, mut received) = (Duration::ZERO, Duration::ZERO);
    let run = publisher.producer_id().to_string();
    for number in 0..u64::from(args.count) {
        let started = Instant::now();
        publisher.send(body(&run, number)).await.during(format!("check, message {number}"))?;
        let acked = started.elapsed();
        expect(&mut subscription, &run, number).await?;
        let back = started.elapsed();
        (stored, received) = (stored.max(acked), received.max(back));
        latencies.push(back);
    }
    steps.done.push(("slowest acknowledgement (fsynced on a majority)", stored));
    steps.done.push(("slowest message, there and back", received));
    close(publisher).await?;
    Ok(latencies)
}

async fn close(publisher: Publisher) -> Result<()> {
    publisher.close().await.during("close the publisher")
}

/// The room of the checks of this device. It stays, as rooms cannot be deleted.
pub fn room_subject(client: &Client) -> Subject {
    let subject = format!("check.{}", client.identity().device_id());
    subject.parse().expect("a word, a dot and hexadecimal digits are a subject")
}

/// Makes the room at the first run.
pub async fn ensure_room(client: &Client, subject: &Subject) -> Result<()> {
    match client.room(subject).await {
        Ok(_) => return Ok(()),
        Err(error) if error.code == ErrorCode::RoomNotFound => {}
        Err(error) => return Err(error.into()),
    }
    match client.create_room(subject, stored_plaintext()).await {
        Ok(_) => Ok(()),
        // Another check of this device was faster.
        Err(error) if error.code == ErrorCode::AlreadyExists => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Subscribes from now on, and waits until it holds.
pub async fn subscribe(client: &Client, subject: &Subject) -> Result<Subscription<TokioPlatform>> {
    let filter: SubjectFilter = subject.as_str().parse().expect("a subject is a filter");
    let mut subscription = client.subscribe(&filter, Start::Latest, SubscribeOptions::default()).await?;
    loop {
        match subscription.next().await {
            Some(Ok(Item::CaughtUp)) => return Ok(subscription),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Failure::of_code(ErrorCode::Internal, "the subscription ended before it was live")),
        }
    }
}

/// The body of message `number` of a run.
pub fn body(run: &str, number: u64) -> String {
    format!("unibus check {run} {number}\n")
}

/// The number of a message of this run.
pub fn number_of(body: &[u8], run: &str) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?.strip_prefix("unibus check ")?;
    text.strip_prefix(run)?.strip_prefix(' ')?.strip_suffix('\n')?.parse().ok()
}

async fn expect(subscription: &mut Subscription<TokioPlatform>, run: &str, number: u64) -> Result<()> {
    loop {
        match subscription.next().await {
            Some(Ok(Item::Message(message))) => match number_of(&message.body, run) {
                Some(found) if found == number => return Ok(()),
                Some(found) => {
                    let message = format!("check: received message {found}, expected {number}");
                    return Err(Failure::of_code(ErrorCode::Internal, message));
                }
                // Another check of this device at the same time.
                None => {}
            },
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error).during("check, receive"),
            None => return Err(Failure::of_code(ErrorCode::Internal, "check: the subscription ended")),
        }
    }
}

fn report(steps: &Steps, latencies: &[Duration], slowest: Duration, verdict: Verdict, out: Output) -> Result<()> {
    let count = latencies.len();
    if out.json {
        let list: Vec<_> = steps
            .done
            .iter()
            .map(|(name, took)| json!({ "step": name, "duration_us": took.as_micros() as u64 }))
            .collect();
        let slowest_us = slowest.as_micros() as u64;
        return out.object(
            "check",
            json!({ "status": verdict.json(), "messages": count, "slowest_us": slowest_us, "steps": list }),
        );
    }
    out.line(&format!("{}: {count} of {count} messages came back, slowest {}", verdict.word(), human(slowest)))?;
    let rows: Vec<_> = steps.done.iter().map(|(name, took)| vec![(*name).to_owned(), human(*took)]).collect();
    out.table(&["step", "took"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let (warn, critical) = (Duration::from_millis(10), Duration::from_millis(100));
        let of = |ms| Verdict::of(Duration::from_millis(ms), warn, critical);
        assert_eq!([of(10), of(11), of(100), of(101)].map(|verdict| verdict as u8), [0, 1, 1, 2]);
        let refused = Failure::of_code(ErrorCode::Unreachable, "x");
        assert_eq!(Verdict::of_failure(&refused), Verdict::Critical);
        assert_eq!(Verdict::of_failure(&Failure::local("no profile")), Verdict::Unknown);
    }

    #[test]
    fn bodies_are_told_apart_by_run() {
        assert_eq!(number_of(body("aa", 7).as_bytes(), "aa"), Some(7));
        assert_eq!(number_of(body("aa", 7).as_bytes(), "bb"), None);
        assert_eq!(number_of(b"unibus check aa 7", "aa"), None, "cut short");
        assert_eq!(number_of(b"\xff", "aa"), None);
    }
}
