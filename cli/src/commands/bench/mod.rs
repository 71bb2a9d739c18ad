//! `bench`: load from this one process, measured.

mod compare;
mod e2e;
mod fanout;
mod load;
mod measure;
mod publish;
mod read;
mod replay;
mod report;
mod rooms;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use unibus_client::{Client, Publisher};
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::NodeEndpoint;

use super::stored_plaintext;
use crate::args::{BenchCommand, BenchCommon, Global};
use crate::exit::{Failure, Result};
use crate::output::{Output, thousands};
use crate::session::{During, interrupted};
use crate::time::now_ms;
use load::Plan;
use measure::Measured;

/// Runs a command of `bench`.
pub async fn run(command: &BenchCommand, global: &Global, out: Output) -> Result<()> {
    match command {
        BenchCommand::Publish(args) => publish::run(args, global, out).await,
        BenchCommand::Latency(args) => publish::latency(args, global, out).await,
        BenchCommand::E2e(args) => e2e::run(args, global, out).await,
        BenchCommand::Replay(args) => replay::run(args, global, out).await,
        BenchCommand::Fanout(args) => fanout::run(args, global, out).await,
        BenchCommand::Rooms(args) => rooms::run(args, global, out).await,
    }
}

/// The rooms of a run, and a filter that selects them all.
struct Rooms {
    subjects: Vec<Subject>,
    filter: SubjectFilter,
}

impl Rooms {
    /// The room that was asked for, or new ones.
    async fn prepare(client: &Client, common: &BenchCommon, count: u32) -> Result<Self> {
        let name = format!("bench.{:x}", now_ms());
        let filter = |text: &str| -> Result<SubjectFilter> {
            text.parse().map_err(|error| Failure::local(format!("bench, filter {text}: {error}")))
        };
        if let Some(room) = &common.room {
            return Ok(Self { filter: filter(room.as_str())?, subjects: vec![room.clone()] });
        }
        let names = match count {
            1 => vec![name.clone()],
            count => (1..=count).map(|n| format!("{name}.{n}")).collect(),
        };
        let mut subjects = Vec::new();
        for name in names {
            let subject: Subject = name.parse().expect("words and hexadecimal digits are a subject");
            client.create_room(&subject, stored_plaintext()).await.during(format!("bench, create room {subject}"))?;
            subjects.push(subject);
        }
        let filter = filter(&if count == 1 { name } else { format!("{name}.>") })?;
        Ok(Self { subjects, filter })
    }

    /// Publishers, dealt out to the rooms in turn.
    async fn publishers(&self, client: &Client, count: u32) -> Result<Vec<Publisher>> {
        if self.subjects.len() > count as usize {
            let found = self.subjects.len();
            return Err(Failure::usage(format!("--rooms: found {found}, expected at most --publishers ({count})")));
        }
        let mut publishers = Vec::new();
        for room in self.subjects.iter().cycle().take(count as usize) {
            publishers.push(client.publisher(room).open().await.during(format!("bench, publisher for {room}"))?);
        }
        Ok(publishers)
    }

    fn describe(&self) -> String {
        match &self.subjects[..] {
            [one] => format!("room {one}"),
            more => format!("rooms {} ({})", self.filter, more.len()),
        }
    }
}

/// The nodes of the cluster, by id.
async fn nodes(client: &Client) -> Result<Vec<NodeEndpoint>> {
    let nodes = client.topology().await.during("bench, nodes of the cluster")?.nodes;
    match nodes.is_empty() {
        true => Err(Failure::local("bench: the cluster names no node")),
        false => Ok(nodes),
    }
}

/// Runs publishers, shows how far they are, ends at Ctrl-C. True when it was interrupted.
async fn drive(
    publishers: Vec<Publisher>,
    rate: Option<NonZeroU32>,
    plan: &Arc<Plan>,
    out: Output,
) -> Result<(Measured, bool)> {
    let _bar = show(plan.clone(), out);
    let stop = tokio::spawn({
        let plan = plan.clone();
        async move {
            interrupted().await;
            plan.stop();
        }
    });
    let measured = load::run(publishers, rate, plan).await;
    let was_interrupted = stop.is_finished();
    stop.abort();
    Ok((measured?, was_interrupted))
}

/// How a run ends after its report.
fn ended(failure: Option<Failure>, measured_something: bool, was_interrupted: bool) -> Result<()> {
    match failure {
        Some(failure) if measured_something => Err(failure.partly().during("bench")),
        Some(failure) => Err(failure.during("bench")),
        None if was_interrupted => Err(Failure::interrupted()),
        None => Ok(()),
    }
}

/// A line on the terminal that goes away when it is dropped.
struct Shown(Option<JoinHandle<()>>);

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

fn show(plan: Arc<Plan>, out: Output) -> Shown {
    let phase = move || (if Instant::now() < plan.measure_from { "warming up" } else { "measuring" }, plan.acked());
    show_count("acknowledged", phase, out)
}

/// Shows a phase and a count that grows.
fn show_count(what: &'static str, now: impl Fn() -> (&'static str, u64) + Send + 'static, out: Output) -> Shown {
    if !out.err_tty || out.json {
        return Shown(None);
    }
    Shown(Some(tokio::spawn(async move {
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style);
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (phase, count) = now();
            bar.set_message(format!("{phase}: {}/s, {} {what}", thousands((count - before) * 2), thousands(count)));
            before = count;
        }
    })))
}
