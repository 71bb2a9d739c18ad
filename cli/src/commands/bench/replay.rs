//! `bench replay`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use unibus_client::{Client, Item, Start, SubscribeOptions};
use unibus_proto::subject::SubjectFilter;
use unibus_proto::v1::NodeEndpoint;

use super::load::Plan;
use super::read::{clients, names};
use super::report::{Report, volume};
use super::{Rooms, drive, ended, nodes};
use crate::args::{BenchReplayArgs, Global};
use crate::exit::{Failure, Result};
use crate::output::{Output, bytes, thousands};
use crate::session::{During, Session, interrupted};
use crate::time::human;

/// How the room is filled.
const PUBLISHERS: u32 = 8;
const IN_FLIGHT: u32 = 256;
/// Messages between two looks at the counter that is shown.
const SHOWN_EACH: u64 = 1_024;

/// What one subscriber, or all, read.
#[derive(Default)]
struct Read {
    messages: u64,
    bytes: u64,
    took: Duration,
}

/// Runs `bench replay`.
pub async fn run(args: &BenchReplayArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    let rooms = Rooms::prepare(&client, &args.common, 1).await?;
    if args.common.room.is_none() {
        fill(&client, args, &rooms, out).await?;
    }
    let nodes = places(nodes(&client).await?, global.node.first());
    let seen = Arc::new(AtomicU64::new(0));
    let shown = seen.clone();
    let _bar = super::show_count("read", move || ("reading", shown.load(Ordering::Relaxed)), out);
    let mut tasks = JoinSet::new();
    for (client, _) in clients(global, &nodes, args.subscribers)? {
        tasks.spawn(Box::pin(replay(client, rooms.filter.clone(), seen.clone())));
    }
    let mut total = Read::default();
    let all = async {
        while let Some(done) = tasks.join_next().await {
            let read = done.map_err(|error| Failure::local(format!("bench: {error}")))??;
            total.messages += read.messages;
            total.bytes += read.bytes;
            total.took = total.took.max(read.took);
        }
        Ok::<_, Failure>(())
    };
    tokio::select! {
        all = all => all?,
        () = interrupted() => return Err(Failure::interrupted()),
    }
    let failure = judge(args.common.room.is_none().then_some(args.count), args.subscribers, total.messages);
    let report = describe(args, &rooms, &names(&nodes, args.subscribers), &total).set("failed", failure.is_some());
    let printed = report.print(&args.common.earlier, out);
    ended(failure, total.messages > 0, false)?;
    printed
}

async fn fill(client: &Client, args: &BenchReplayArgs, rooms: &Rooms, out: Output) -> Result<()> {
    let publishers = rooms.publishers(client, PUBLISHERS).await?;
    let plan = Plan::new(args.size, IN_FLIGHT, Duration::ZERO, Duration::ZERO).count(args.count);
    let (measured, was_interrupted) = drive(publishers, None, &Arc::new(plan), out).await?;
    out.hint(format!("filled {}: {} messages", rooms.describe(), thousands(measured.latency.len())));
    ended(measured.failure, false, was_interrupted)
}

/// Where is read: at the node that was asked for, which may have other addresses than the cluster tells, else
/// at all.
fn places(all: Vec<NodeEndpoint>, asked_for: Option<&String>) -> Vec<NodeEndpoint> {
    let Some(asked_for) = asked_for else { return all };
    let known = all.into_iter().find(|node| node.name == *asked_for || node.client_address == *asked_for);
    let alias = || NodeEndpoint { node_id: 0, name: asked_for.clone(), client_address: asked_for.clone() };
    vec![known.unwrap_or_else(alias)]
}

/// Each subscriber must have read all that the room was filled with.
fn judge(filled: Option<u64>, subscribers: u32, read: u64) -> Option<Failure> {
    let expected = filled? * u64::from(subscribers);
    let message = format!("{subscribers} subscribers read {read} messages, expected {expected}");
    (read != expected).then(|| Failure::local(message))
}

async fn replay(client: Client, filter: SubjectFilter, seen: Arc<AtomicU64>) -> Result<Read> {
    // Connecting and signing in is not what is measured.
    client.who_am_i().await.during("bench, sign in")?;
    let options = SubscribeOptions { until_end: true, ..SubscribeOptions::default() };
    let begun = Instant::now();
    let mut subscription = client.subscribe(&filter, Start::Earliest, options).await.during("bench, subscriber")?;
    let mut read = Read::default();
    while let Some(first) = subscription.next().await {
        let mut next = Some(first);
        while let Some(item) = next {
            if let Item::Message(message) = item.during("bench, subscriber")? {
                read.messages += 1;
                read.bytes += message.body.len() as u64;
                if read.messages.is_multiple_of(SHOWN_EACH) {
                    seen.fetch_add(SHOWN_EACH, Ordering::Relaxed);
                }
            }
            next = subscription.received();
        }
    }
    read.took = begun.elapsed();
    Ok(read)
}

fn describe(args: &BenchReplayArgs, rooms: &Rooms, places: &str, read: &Read) -> Report {
    let per_second = read.messages as f64 / read.took.as_secs_f64().max(1e-6);
    let size = (read.bytes / read.messages.max(1)) as usize;
    let headline = format!(
        "{} msg/s, {}: {} subscribers at {places} read {} messages of {} in {}",
        thousands(per_second as u64),
        volume(per_second, size),
        args.subscribers,
        thousands(read.messages),
        bytes(size as u64),
        human(read.took),
    );
    Report::new("bench_replay", headline)
        .set("room", rooms.filter.as_str())
        .set("rooms", rooms.subjects.len())
        .set("size_bytes", size)
        .set("subscribers", args.subscribers)
        .set("places", places)
        .set("messages", read.messages)
        .set("duration_ms", read.took.as_millis() as u64)
        .set("messages_per_second", per_second as u64)
        .set("bytes_per_second", (per_second * size as f64) as u64)
        .note(format!("{}; read it again: unibusctl bench replay --room {}", rooms.describe(), rooms.filter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_that_was_asked_for_is_read_under_any_of_its_names() {
        let node = |id: u64| NodeEndpoint {
            node_id: id,
            name: format!("n{id}"),
            client_address: format!("127.0.0.1:740{id}"),
        };
        let all = || vec![node(1), node(2)];
        assert_eq!(places(all(), None), all());
        for asked_for in ["n2", "127.0.0.1:7402"] {
            assert_eq!(places(all(), Some(&asked_for.into())), [node(2)]);
        }
        let alias = places(all(), Some(&"localhost:7402".into()));
        assert_eq!(alias.iter().map(|node| &*node.client_address).collect::<Vec<_>>(), ["localhost:7402"]);
    }

    #[test]
    fn a_subscriber_that_missed_something_is_a_failure() {
        assert_eq!(judge(Some(20), 3, 60), None);
        assert!(judge(Some(20), 3, 59).unwrap().message.contains("read 59 messages, expected 60"));
        assert!(judge(Some(20), 3, 0).is_some());
        assert_eq!(judge(None, 3, 7), None, "a room that was there has as many as it has");
    }
}
