//! `bench e2e`.

use std::sync::Arc;
use std::time::Instant;

use unibus_client::{Client, Received};
use unibus_proto::subject::Subject;
use unibus_proto::v1::NodeEndpoint;

use super::load::Plan;
use super::measure::Measured;
use super::read::{Note, Readers};
use super::report::{Report, volume};
use super::{Rooms, drive, ended, nodes};
use crate::args::{BenchE2eArgs, Global};
use crate::exit::{Failure, Result};
use crate::output::{Output, bytes, thousands};
use crate::session::{During, Session};
use crate::time::human;

/// Measures from the stamps of the messages.
struct Clock {
    plan: Arc<Plan>,
    measured: Measured,
}

impl Clone for Clock {
    fn clone(&self) -> Self {
        Self { plan: self.plan.clone(), measured: Measured::new().expect("its bounds were good before") }
    }
}

impl Note for Clock {
    fn note(&mut self, message: &Received, now: Instant) {
        if let Some(due) = self.plan.due(&message.body) {
            self.measured.record(due, now, self.plan.measure_from);
        }
    }
}

/// Runs `bench e2e`.
pub async fn run(args: &BenchE2eArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    let rooms = Rooms::prepare(&client, &args.run.common, 1).await?;
    let (leader, others) = places(&client, &rooms.subjects[0]).await?;
    let readers = Readers::open(global, &rooms.filter, &others, args.subscribers).await?;
    let publishers = rooms.publishers(&client, args.publishers).await?;
    let plan = Plan::new(args.size, 1, args.run.time.warmup, args.run.time.duration).stamped();
    let plan = Arc::new(plan);
    let places = format!("published through {}, read at {}", leader.name, readers.places);
    let reading = readers.start(&Clock { plan: plan.clone(), measured: Measured::new()? });
    let (stored, was_interrupted) = drive(publishers, Some(args.rate), &plan, out).await?;
    let (clocks, missing) = reading.finish(plan.acked()).await?;
    let mut total = Measured::new()?;
    clocks.into_iter().for_each(|clock| total.add(clock.measured));
    total.failure = stored.failure;
    if missing > 0 {
        total.fail(Failure::local(format!("{missing} subscribers did not receive every acknowledged message in time")));
    }
    let printed = describe(args, &rooms, &places, &total).print(&args.run.common.earlier, out);
    ended(total.failure, !total.latency.is_empty(), was_interrupted)?;
    printed
}

/// The node that leads the room's shard, and the others.
async fn places(client: &Client, room: &Subject) -> Result<(NodeEndpoint, Vec<NodeEndpoint>)> {
    let found = client.room(room).await.during(format!("bench, room {room}"))?;
    let (leader, others): (Vec<_>, Vec<_>) =
        nodes(client).await?.into_iter().partition(|node| node.node_id == found.leader);
    match (leader.into_iter().next(), others.is_empty()) {
        (Some(leader), false) => Ok((leader, others)),
        (Some(leader), true) => Ok((leader.clone(), vec![leader])),
        (None, _) => Err(Failure::local(format!("bench: nobody knows who leads room {room}; run it again"))),
    }
}

fn describe(args: &BenchE2eArgs, rooms: &Rooms, places: &str, measured: &Measured) -> Report {
    let per_second = measured.per_second();
    let headline = format!(
        "{} deliveries/s, {}: {} messages of {} in {}, {places}",
        thousands(per_second as u64),
        volume(per_second, args.size),
        thousands(measured.latency.len()),
        bytes(args.size as u64),
        human(measured.took()),
    );
    Report::new("bench_e2e", headline)
        .set("room", rooms.filter.as_str())
        .set("rooms", rooms.subjects.len())
        .set("size_bytes", args.size)
        .set("publishers", args.publishers)
        .set("subscribers", args.subscribers)
        .set("rate_per_second", args.rate.get())
        .set("places", places)
        .set("deliveries", measured.latency.len())
        .set("deliveries_per_second", per_second as u64)
        .set("duration_ms", measured.took().as_millis() as u64)
        .set("failed", measured.failure.is_some())
        .latency(measured)
        .note(rooms.describe())
        .note("note: latency counts from the moment that a message was due")
}
