//! `check --loop`: publishes on a timer and keeps receiving while nodes come and go.

use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use unibus_client::{Ack, Client, ClientEvent, Error, Item, Publisher, Subscription, TokioPlatform};
use unibus_proto::subject::Subject;

use super::check::{Verdict, body, ensure_room, number_of, room_subject, subscribe};
use crate::args::{CheckArgs, Global};
use crate::exit::{Failure, Result};
use crate::ledger::{Counts, Ledger};
use crate::output::Output;
use crate::session::{During, Session, failover, interrupted};
use crate::time::{human, now_ms, rfc3339};

/// Publishing goes on within 3 s when a node dies (P11): a longer gap is worth a warning.
const WARN_GAP: Duration = Duration::from_secs(3);
/// A gap of this length is told when it ends.
const TOLD_GAP: Duration = Duration::from_secs(1);
/// How often a line tells that all is well.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// Waiting messages of the subscription, to this loop.
const INBOX: usize = 1_024;

type Answer = (u64, std::result::Result<Ack, Error>);

/// Runs until `--for` is over or Ctrl-C, then waits for what is on its way.
pub async fn run(args: &CheckArgs, global: &Global, out: Output) -> Result<Verdict> {
    let session = Session::prepare(global)?;
    let mut watch = Watch::start(session.client, global.timeout, out).await?;
    let mut stop = std::pin::pin!(interrupted());
    let ends = args.duration.map(|duration| Instant::now() + duration);
    let mut publish = tokio::time::interval(args.every);
    publish.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut told = tokio::time::interval_at(tokio::time::Instant::now() + TOLD_EVERY, TOLD_EVERY);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = until(ends) => break,
            event = watch.events.recv() => watch.note(event)?,
            item = watch.inbox.recv() => watch.received(item)?,
            Some(answer) = watch.answers.next() => watch.answered(answer)?,
            _ = told.tick() => watch.tell_progress()?,
            _ = publish.tick() => watch.publish().await?,
        }
    }
    watch.drain(global.timeout).await?;
    watch.conclude(args)
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

struct Watch {
    client: Client,
    subject: Subject,
    publisher: Option<Publisher>,
    run: String,
    next: u64,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    inbox: mpsc::Receiver<std::result::Result<u64, Error>>,
    events: mpsc::Receiver<ClientEvent>,
    ledger: Ledger,
    failovers: u64,
    started: Instant,
    last_ack: Duration,
    out: Output,
}

impl Watch {
    async fn start(client: Client, patience: Duration, out: Output) -> Result<Self> {
        let events = client.events();
        let subject = room_subject(&client);
        ensure_room(&client, &subject).await?;
        let publisher = client.publisher(&subject).patience(patience).open().await.during("open the publisher")?;
        let run = publisher.producer_id().to_string();
        let subscription = subscribe(&client, &subject).await?;
        let (sender, inbox) = mpsc::channel(INBOX);
        tokio::spawn(receive(subscription, run.clone(), sender));
        Ok(Self {
            client,
            subject,
            publisher: Some(publisher),
            run,
            next: 0,
            answers: FuturesUnordered::new(),
            inbox,
            events,
            ledger: Ledger::default(),
            failovers: 0,
            started: Instant::now(),
            last_ack: Duration::ZERO,
            out,
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A line on standard error, or an object on standard output under `--json`.
    fn tell(&self, event: &str, text: impl FnOnce() -> String, value: impl FnOnce() -> Value) -> Result<()> {
        if !self.out.json {
            self.out.talk(format!("{:>8}  {}", human(self.now()), text()));
            return Ok(());
        }
        let mut value = value();
        value["event"] = event.into();
        value["time"] = rfc3339(now_ms()).into();
        self.out.object("check_event", value)
    }

    async fn publish(&mut self) -> Result<()> {
        self.ledger.tick(self.now());
        let number = self.next;
        self.next += 1;
        self.ledger.sent(number, self.now());
        match self.enqueue(number).await {
            Ok(answer) => {
                self.answers.push(answer);
                Ok(())
            }
            Err(error) => self.answered((number, Err(error))),
        }
    }

    async fn enqueue(&mut self, number: u64) -> std::result::Result<BoxFuture<'static, Answer>, Error> {
        let publisher = match self.publisher.take() {
            Some(publisher) => publisher,
            None => self.client.publisher(&self.subject).open().await?,
        };
        let receipt = publisher.enqueue(body(&self.run, number)).await?;
        self.publisher = Some(publisher);
        Ok(receipt.map(move |answer| (number, answer)).boxed())
    }

    fn answered(&mut self, (number, answer): Answer) -> Result<()> {
        let now = self.now();
        match answer {
            Ok(_) => {
                let gap = now.saturating_sub(self.last_ack);
                self.last_ack = now;
                self.ledger.acked(number, now);
                if gap > TOLD_GAP && number > 0 {
                    self.tell(
                        "gap",
                        || format!("acknowledged again after {}", human(gap)),
                        || json!({ "gap_ms": gap.as_millis() as u64 }),
                    )?;
                }
                Ok(())
            }
            Err(error) => {
                // The publisher failed with it; the next message opens another.
                self.publisher = None;
                self.ledger.failed(number);
                self.tell(
                    "failed",
                    || format!("message {number} failed: {} [{}]", error.message, error.code),
                    || json!({ "number": number, "code": error.code.as_str(), "message": error.message }),
                )
            }
        }
    }

    fn received(&mut self, item: Option<std::result::Result<u64, Error>>) -> Result<()> {
        match item {
            Some(Ok(number)) => {
                let now = self.now();
                self.ledger.received(number, now);
                Ok(())
            }
            Some(Err(error)) => Err(error).during("check, receive"),
            None => Err(Failure::local("check: the subscription's task ended")),
        }
    }

    fn note(&mut self, event: Option<ClientEvent>) -> Result<()> {
        let Some(ClientEvent::FailedOver { from, to, why }) = event else { return Ok(()) };
        self.failovers += 1;
        self.tell(
            "failover",
            || failover(&self.client, &from, &to, &why),
            || json!({ "from": from, "to": to, "code": why.code.as_str(), "message": why.message }),
        )
    }

    fn tell_progress(&mut self) -> Result<()> {
        let Counts { sent, acked, received, duplicates, .. } = self.ledger.counts();
        self.tell(
            "progress",
            || format!("published {sent}, acknowledged {acked}, received {received}, twice {duplicates}"),
            || json!({ "published": sent, "acknowledged": acked, "received": received, "duplicates": duplicates }),
        )
    }

    /// Waits until everything that was sent is answered and everything acknowledged is received.
    async fn drain(&mut self, patience: Duration) -> Result<()> {
        let ends = Instant::now() + patience;
        while !(self.answers.is_empty() && self.ledger.missing().is_empty()) {
            tokio::select! {
                biased;
                () = until(Some(ends)) => return Ok(()),
                event = self.events.recv() => self.note(event)?,
                item = self.inbox.recv() => self.received(item)?,
                Some(answer) = self.answers.next() => self.answered(answer)?,
            }
        }
        Ok(())
    }

    fn conclude(mut self, args: &CheckArgs) -> Result<Verdict> {
        let now = self.now();
        self.ledger.tick(now);
        let (counts, lost) = (self.ledger.counts(), self.ledger.missing().len() as u64);
        let verdict = judge(&counts, lost, args.warn.unwrap_or(WARN_GAP), args.critical);
        let text = || summary(&counts, lost, self.failovers, now, verdict);
        self.out.either("check_loop", || describe(&counts, lost, self.failovers, now, verdict), text)?;
        Ok(verdict)
    }
}

/// Lost, doubled, disordered or failed messages are critical; so is a long silence.
fn judge(counts: &Counts, lost: u64, warn: Duration, critical: Duration) -> Verdict {
    let broken = lost + counts.duplicates + counts.out_of_order + counts.failed > 0 || counts.acked == 0;
    if broken { Verdict::Critical } else { Verdict::of(counts.longest_gap, warn, critical) }
}

fn summary(counts: &Counts, lost: u64, failovers: u64, took: Duration, verdict: Verdict) -> String {
    format!(
        "{}: lost {lost}, duplicates {}, out of order {}, failed {}\n\
         published {}, acknowledged {}, received {} in {}\n\
         failovers {failovers}, longest time without an acknowledgement {}, slowest message {}",
        verdict.word(),
        counts.duplicates,
        counts.out_of_order,
        counts.failed,
        counts.sent,
        counts.acked,
        counts.received,
        human(took),
        human(counts.longest_gap),
        human(counts.slowest),
    )
}

fn describe(counts: &Counts, lost: u64, failovers: u64, took: Duration, verdict: Verdict) -> Value {
    json!({
        "status": verdict.json(),
        "lost": lost,
        "duplicates": counts.duplicates,
        "out_of_order": counts.out_of_order,
        "failed": counts.failed,
        "published": counts.sent,
        "acknowledged": counts.acked,
        "received": counts.received,
        "failovers": failovers,
        "duration_ms": took.as_millis() as u64,
        "longest_gap_ms": counts.longest_gap.as_millis() as u64,
        "slowest_us": counts.slowest.as_micros() as u64,
    })
}

/// Reads on its own, so that silence on the stream is noticed while the loop does other things.
async fn receive(
    mut subscription: Subscription<TokioPlatform>,
    run: String,
    inbox: mpsc::Sender<std::result::Result<u64, Error>>,
) {
    while let Some(item) = subscription.next().await {
        let told = match item {
            Ok(Item::Message(message)) => match number_of(&message.body, &run) {
                Some(number) => inbox.send(Ok(number)).await,
                None => continue,
            },
            Ok(_) => continue,
            Err(error) => inbox.send(Err(error)).await,
        };
        if told.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> Counts {
        Counts { sent: 10, acked: 10, received: 10, longest_gap: Duration::from_millis(800), ..Counts::default() }
    }

    fn verdict(counts: Counts, lost: u64) -> Verdict {
        judge(&counts, lost, WARN_GAP, Duration::from_secs(5))
    }

    #[test]
    fn a_failover_in_time_is_ok_and_any_loss_is_critical() {
        assert_eq!(verdict(counts(), 0), Verdict::Ok);
        assert_eq!(verdict(counts(), 1), Verdict::Critical);
        assert_eq!(verdict(Counts { duplicates: 1, ..counts() }, 0), Verdict::Critical);
        assert_eq!(verdict(Counts { out_of_order: 1, ..counts() }, 0), Verdict::Critical);
        assert_eq!(verdict(Counts { failed: 1, ..counts() }, 0), Verdict::Critical);
        assert_eq!(verdict(Counts { longest_gap: Duration::from_secs(4), ..counts() }, 0), Verdict::Warning);
        assert_eq!(verdict(Counts { longest_gap: Duration::from_secs(6), ..counts() }, 0), Verdict::Critical);
        assert_eq!(verdict(Counts::default(), 0), Verdict::Critical, "nothing was acknowledged at all");
    }

    #[test]
    fn summary_and_shape_say_the_same() {
        let text = summary(&counts(), 0, 2, Duration::from_secs(45), Verdict::Ok);
        assert!(text.starts_with("OK: lost 0, duplicates 0"), "{text}");
        assert!(text.contains("longest time without an acknowledgement 800.0ms"), "{text}");
        let value = describe(&counts(), 0, 2, Duration::from_secs(45), Verdict::Ok);
        assert_eq!((value["status"].as_str(), value["longest_gap_ms"].as_u64()), (Some("ok"), Some(800)));
        assert_eq!(value["failovers"], 2);
    }
}
