//! What clients do all the time: publish into rooms over all shards and read them in every way, with
//! the real SDK.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft_rt::AsyncRuntime;
use unibus_client::{Client, ClientConfig, Error, ErrorCode, Publisher, Receipt, Start, SubscribeOptions};
use unibus_proto::code::Outcome as Happened;
use unibus_proto::files::Identity;
use unibus_proto::id::{ClusterId, RoomId};
use unibus_proto::position::Sequence;
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::{RoomPolicy, RoomRetention};

use crate::history::Outcome;
use crate::record::Recorder;
use crate::sim::grpc::SimPlatform;
use crate::sim::random::Random;
use crate::sim::runtime::{Handle, SimRuntime};

/// Longer than any fault: the SDK has to get through.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a client that failed tries again.
const RETRY: Duration = Duration::from_millis(200);

/// What all clients of a run share.
#[derive(Clone)]
pub struct Load {
    /// The history.
    pub recorder: Recorder,
    /// Where the nodes are.
    pub addresses: Vec<String>,
    /// The cluster.
    pub cluster: ClusterId,
    /// Set when no new publish is to begin.
    pub stop: Arc<AtomicBool>,
}

impl Load {
    fn config(&self) -> ClientConfig {
        ClientConfig { cluster_id: Some(self.cluster), ..ClientConfig::new(self.addresses.clone()) }.patience(PATIENCE)
    }

    /// Connects, however long it takes.
    pub async fn connect(
        &self,
        platform: &SimPlatform,
        identity: &Identity,
        pin: Option<String>,
    ) -> Client<SimPlatform> {
        loop {
            let config = self.config().pinned(pin.clone());
            match Client::connect(platform.clone(), config, identity.clone()).await {
                Ok(client) => return client,
                Err(error) => {
                    Handle::current().note(&format!("client {:?} cannot connect: {error}", platform.endpoint()));
                    SimRuntime::sleep(RETRY).await;
                }
            }
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Makes the rooms.
pub async fn create_rooms(client: &Client<SimPlatform>, count: u64) -> Result<Vec<RoomId>, String> {
    let mut rooms = Vec::new();
    for number in 0..count {
        let subject: Subject = format!("sim.r{number}").parse().map_err(|error| format!("subject: {error}"))?;
        let policy = RoomPolicy { persist: true, retention: retention(number), ..RoomPolicy::default() };
        let created = client.create_room(&subject, policy).await.map_err(|error| format!("create room: {error}"))?;
        rooms.push(RoomId::from_bytes(&created.room.room_id).map_err(|error| error.to_string())?);
    }
    Ok(rooms)
}

/// Every fourth room keeps everything; the others little, by number of entries, by bytes or by age.
fn retention(number: u64) -> Option<RoomRetention> {
    match number % 4 {
        1 => Some(RoomRetention { max_messages: 40, ..RoomRetention::default() }),
        2 => Some(RoomRetention { max_bytes: 30_000, ..RoomRetention::default() }),
        3 => Some(RoomRetention { max_age_ms: 3_000, ..RoomRetention::default() }),
        _ => None,
    }
}

fn outcome(answer: Result<unibus_client::Ack, Error>) -> Outcome {
    match answer {
        Ok(ack) => Outcome::Acked { at: Handle::current().now_nanos(), sequence: ack.sequence.0 },
        // P11: faults may delay a user of the SDK, and at worst leave him in doubt. The judges see the panic.
        Err(error) if !error.is_transient() => panic!("P11: a user of the SDK was refused: {error}"),
        Err(error) if error.outcome == Happened::None => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}

/// A producer: its publishers, what is on its way, and its choices.
pub struct Producer {
    number: u64,
    load: Load,
    client: Client<SimPlatform>,
    rooms: Vec<RoomId>,
    random: Random,
    pause_ms_max: u64,
    publishers: BTreeMap<RoomId, Publisher>,
    waiting: VecDeque<(usize, RoomId, Receipt)>,
    sent: u64,
}

impl Producer {
    /// A producer that publishes into `rooms`.
    pub fn new(
        number: u64,
        load: Load,
        client: Client<SimPlatform>,
        rooms: Vec<RoomId>,
        random: Random,
        pause_ms_max: u64,
    ) -> Self {
        let (publishers, waiting) = (BTreeMap::new(), VecDeque::new());
        Self { number, load, client, rooms, random, pause_ms_max, publishers, waiting, sent: 0 }
    }

    /// Publishes until stopped, then waits for every answer.
    pub async fn run(mut self) {
        // Some wait for each answer, some keep many messages on their way.
        let depth = [1, 4, 32][self.random.below(3) as usize];
        while !self.load.stopped() {
            self.publish_one().await;
            while self.waiting.len() >= depth {
                self.settle_one().await;
            }
            let pause = Duration::from_millis(self.random.below(self.pause_ms_max));
            SimRuntime::sleep(pause).await;
        }
        while !self.waiting.is_empty() {
            self.settle_one().await;
        }
    }

    fn body(&mut self) -> Bytes {
        self.sent += 1;
        let padding = if self.random.chance(30_000) { self.random.below(20_000) } else { self.random.below(200) };
        let mut body = format!("p{} m{} ", self.number, self.sent).into_bytes();
        body.resize(body.len() + padding as usize, b'.');
        body.into()
    }

    async fn publish_one(&mut self) {
        let Some(room) = self.random.pick(&self.rooms).copied() else { return };
        if !self.publishers.contains_key(&room) {
            match self.client.publisher(room).open().await {
                Ok(publisher) => drop(self.publishers.insert(room, publisher)),
                Err(error) => {
                    Handle::current().note(&format!("p{} opens no publisher: {error}", self.number));
                    return;
                }
            }
        }
        let body = self.body();
        let Some(publisher) = self.publishers.get(&room) else { return };
        let number = self.load.recorder.begin(room, publisher.producer_id(), &body);
        match publisher.enqueue(body).await {
            Ok(receipt) => self.waiting.push_back((number, room, receipt)),
            Err(error) => {
                self.load.recorder.end(number, outcome(Err(error)));
                self.publishers.remove(&room);
            }
        }
    }

    async fn settle_one(&mut self) {
        let Some((number, room, receipt)) = self.waiting.pop_front() else { return };
        let answer = receipt.await;
        if let Err(error) = &answer {
            Handle::current().note(&format!("p{} publish {number} failed: {error}", self.number));
            self.publishers.remove(&room);
        }
        self.load.recorder.end(number, outcome(answer));
    }
}

/// Publishes one message and records what became of it.
pub async fn publish_one(load: &Load, client: &Client<SimPlatform>, room: RoomId, body: &'static str) -> Outcome {
    let publisher = match client.publisher(room).open().await {
        Ok(publisher) => publisher,
        Err(error) => {
            Handle::current().note(&format!("no publisher: {error}"));
            return Outcome::Refused;
        }
    };
    let number = load.recorder.begin(room, publisher.producer_id(), body.as_bytes());
    let outcome = outcome(publisher.send(body).await);
    load.recorder.end(number, outcome);
    outcome
}

/// A named producer that sends its messages and then, as after a restart, all of them again from the
/// first on: the second run must get the first run's answers.
pub async fn repeat(load: Load, client: Client<SimPlatform>, room: RoomId, count: u64) {
    let bodies: Vec<_> = (0..count).map(|number| Bytes::from(format!("named m{number}"))).collect();
    let mut firsts = Vec::new();
    for run in 0..2 {
        let publisher = loop {
            match client.publisher(room).named("repeat").open().await {
                Ok(publisher) => break publisher,
                Err(_) if load.stopped() => return,
                Err(_) => SimRuntime::sleep(RETRY).await,
            }
        };
        for (at, body) in bodies.iter().enumerate() {
            let number = match run {
                0 => load.recorder.begin(room, publisher.producer_id(), body),
                _ => load.recorder.begin_again(firsts[at]),
            };
            if run == 0 {
                firsts.push(number);
            }
            let answer = publisher.send(body.clone()).await;
            let failed = answer.is_err();
            load.recorder.end(number, outcome(answer));
            if failed {
                return;
            }
            SimRuntime::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How a reader reads.
#[derive(Clone, Debug)]
pub struct ReaderPlan {
    /// Its name.
    pub name: String,
    /// Only from this node.
    pub pin: Option<String>,
    /// From the start of each timeline, or only what is new.
    pub from_start: bool,
    /// It drops its subscription after so many items and resumes with a new one, so many times.
    pub resumes: Option<(u64, u64)>,
}

/// Reads for ever.
pub async fn read(load: Load, platform: SimPlatform, identity: Identity, plan: ReaderPlan, reader: usize) {
    let filter: SubjectFilter = "sim.>".parse().expect("a valid filter");
    let client = load.connect(&platform, &identity, plan.pin.clone()).await;
    let mut positions = BTreeMap::new();
    let mut resumes = plan.resumes;
    let start = if plan.from_start { Start::Earliest } else { Start::Latest };
    loop {
        let options = SubscribeOptions { resume: positions.clone(), pin: plan.pin.clone(), ..Default::default() };
        let mut subscription = match client.subscribe(&filter, start, options).await {
            Ok(subscription) => subscription,
            Err(error) => {
                Handle::current().note(&format!("{} cannot subscribe: {error}", plan.name));
                if error.code == ErrorCode::OutOfRange {
                    move_on(&load, &client, &mut positions, reader).await;
                }
                SimRuntime::sleep(RETRY).await;
                continue;
            }
        };
        let mut left = resumes.map_or(u64::MAX, |(after, _)| after);
        resumes = resumes.and_then(|(after, times)| (times > 1).then(|| (after, times - 1)));
        while left > 0 {
            match subscription.next().await {
                Some(Ok(item)) => load.recorder.read(reader, &item),
                Some(Err(error)) => {
                    Handle::current().note(&format!("{} lost its subscription: {error}", plan.name));
                    break;
                }
                None => break,
            }
            left -= 1;
        }
        positions = subscription.positions();
        SimRuntime::sleep(RETRY).await;
    }
}

/// Retention was faster than the reader: it goes on where its rooms begin now.
async fn move_on(load: &Load, client: &Client<SimPlatform>, positions: &mut BTreeMap<RoomId, Sequence>, reader: usize) {
    for (room, next) in positions {
        let Ok(row) = client.room(*room).await else { continue };
        if row.floor > next.0 {
            *next = Sequence(row.floor);
            load.recorder.moved(reader, *room, row.floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn rooms_keep_everything_or_little_in_each_way_and_seeds_have_them_all() {
        let kinds: Vec<_> = (0..4).map(retention).collect();
        assert_eq!(kinds[0], None);
        let bounded = |kind: &Option<RoomRetention>| {
            let kind = kind.unwrap_or_default();
            [kind.max_messages > 0, kind.max_bytes > 0, kind.max_age_ms > 0]
        };
        assert_eq!(bounded(&kinds[1]), [true, false, false]);
        assert_eq!(bounded(&kinds[2]), [false, true, false]);
        assert_eq!(bounded(&kinds[3]), [false, false, true]);
        assert!((0..20).filter(|seed| Plan::of_seed(*seed).rooms >= 4).count() >= 5);
    }
}
