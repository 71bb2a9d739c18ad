//! What clients publish through the SDK: numbered messages into rooms over all shards, some one at a time,
//! some many at once, every answer recorded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use unibus_client::{Ack, Client, Error, Publisher, Receipt};
use unibus_proto::code::Outcome as Happened;
use unibus_proto::id::RoomId;
use unibus_proto::subject::Subject;
use unibus_proto::v1::RoomPolicy;

use crate::history::Outcome;
use crate::record::Recorder;
use crate::sim::random::Random;

/// Writers in turn: some wait for each answer, some have many messages on their way.
pub const MIXED: &[usize] = &[1, 64, 1, 16];
/// Each waits for its answer.
pub const ONE_AT_A_TIME: &[usize] = &[1];
/// Each has many messages on their way.
pub const PIPELINED: &[usize] = &[64];
const RETRY: Duration = Duration::from_millis(100);
/// All answers are there so long after the last fault has ended.
const SETTLE: Duration = Duration::from_secs(100);

/// Makes `count` rooms under `prefix`.
pub async fn create_rooms(client: &Client, prefix: &str, count: u64) -> Result<Vec<RoomId>, String> {
    let mut rooms = Vec::new();
    for number in 0..count {
        let subject: Subject = format!("{prefix}.r{number}").parse().map_err(|error| format!("subject: {error}"))?;
        let policy = RoomPolicy { persist: true, ..RoomPolicy::default() };
        let created = client.create_room(&subject, policy).await.map_err(|error| format!("create room: {error}"))?;
        rooms.push(RoomId::from_bytes(&created.room.room_id).map_err(|error| error.to_string())?);
    }
    Ok(rooms)
}

/// What writers do.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// How many.
    pub writers: u64,
    /// Messages per second of all together, at most.
    pub rate: u64,
    /// The largest body; most are small.
    pub body_bytes_max: u64,
    /// How many messages the writers have on their way, in turn.
    pub depths: &'static [usize],
}

/// The writers, at rest between [`Load::stop`] and [`Load::start`].
pub struct Load {
    recorder: Recorder,
    stop: Arc<AtomicBool>,
    at_rest: Vec<Writer>,
    running: Vec<JoinHandle<Writer>>,
    refused: Arc<Mutex<BTreeSet<String>>>,
}

impl Load {
    /// Writers over `clients`, at rest.
    pub fn new(config: &LoadConfig, seed: u64, clients: &[Client], rooms: &[RoomId], recorder: &Recorder) -> Self {
        let pause = Duration::from_micros(1_000_000 * config.writers / config.rate.max(1));
        let pace = Pace { pause, on_schedule: false };
        let refused: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let writer = |number: u64| Writer {
            client: clients[number as usize % clients.len()].clone(),
            rooms: rooms.to_vec(),
            random: Random::stream(seed, "writer", number),
            pace,
            bodies: Bodies::new(seed, number, config.body_bytes_max),
            depth: config.depths[number as usize % config.depths.len()],
            publishers: BTreeMap::new(),
            waiting: VecDeque::new(),
            refused: refused.clone(),
        };
        let at_rest = (0..config.writers).map(writer).collect();
        Self { recorder: recorder.clone(), stop: Arc::default(), at_rest, running: Vec::new(), refused }
    }

    /// For measuring: what a slow answer holds up stays due, and counts from when it was due. Otherwise it is
    /// forgiven, and writers that wait for answers would publish, and measure, least when it goes worst.
    #[must_use]
    pub fn on_schedule(mut self) -> Self {
        self.at_rest.iter_mut().for_each(|writer| writer.pace.on_schedule = true);
        self
    }

    /// Publishes until [`Self::stop`].
    pub fn start(&mut self) {
        self.stop = Arc::default();
        for writer in self.at_rest.drain(..) {
            self.running.push(tokio::spawn(writer.run(self.recorder.clone(), self.stop.clone())));
        }
    }

    /// Begins nothing more and waits for every answer.
    pub async fn stop(&mut self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.running.drain(..) {
            match tokio::time::timeout(SETTLE, writer).await {
                Ok(Ok(writer)) => self.at_rest.push(writer),
                Ok(Err(error)) => return Err(format!("a writer: {error}")),
                Err(_) => return Err(format!("a writer has no answer {SETTLE:?} after the last fault ended")),
            }
        }
        Ok(())
    }

    /// What the SDK refused for good since this was called last: P11 forbids it.
    pub fn take_refused(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When a writer's messages are due.
#[derive(Clone, Copy)]
struct Pace {
    /// From one message to the next.
    pause: Duration,
    /// What was held up stays due.
    on_schedule: bool,
}

impl Pace {
    /// How many messages are due at once: the pause for all of them follows.
    fn burst(self, random: &mut Random, depth: usize) -> u64 {
        if self.on_schedule { 1 } else { random.between(1, 2 * depth as u64) }
    }

    /// When the next ones are due.
    fn next(self, due: Instant, burst: u64, now: Instant) -> Instant {
        let next = due + self.pause * burst as u32;
        if self.on_schedule { next } else { next.max(now) }
    }

    /// How long what is sent now was held up.
    fn late_nanos(self, due: Instant, now: Instant) -> u64 {
        if self.on_schedule { now.saturating_duration_since(due).as_nanos() as u64 } else { 0 }
    }
}

/// The bodies of one writer: no two are equal, of no two writers and of no two loads, as the judges demand.
struct Bodies {
    /// Of the load and the writer.
    name: String,
    random: Random,
    bytes_max: u64,
    made: u64,
}

impl Bodies {
    fn new(seed: u64, writer: u64, bytes_max: u64) -> Self {
        let random = Random::stream(seed, "bodies", writer);
        Self { name: format!("s{seed} w{writer}"), random, bytes_max, made: 0 }
    }

    fn next(&mut self) -> Bytes {
        self.made += 1;
        let largest = if self.random.chance(50_000) { self.bytes_max } else { self.bytes_max / 16 };
        let mut body = format!("{} m{} ", self.name, self.made).into_bytes();
        let padding = self.random.below(largest) as usize;
        body.resize(body.len() + padding, b'.');
        body.into()
    }
}

struct Writer {
    client: Client,
    rooms: Vec<RoomId>,
    random: Random,
    pace: Pace,
    bodies: Bodies,
    depth: usize,
    publishers: BTreeMap<RoomId, Publisher>,
    waiting: VecDeque<(usize, RoomId, Receipt)>,
    refused: Arc<Mutex<BTreeSet<String>>>,
}

impl Writer {
    async fn run(mut self, recorder: Recorder, stop: Arc<AtomicBool>) -> Self {
        let depth = self.depth;
        let mut due = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let burst = self.pace.burst(&mut self.random, depth);
            for _ in 0..burst {
                self.publish_one(&recorder, due).await;
                while self.waiting.len() >= depth {
                    self.settle_one(&recorder).await;
                }
            }
            due = self.pace.next(due, burst, Instant::now());
            while Instant::now() < due && !stop.load(Ordering::Relaxed) {
                sleep_until(due.min(Instant::now() + RETRY)).await;
            }
        }
        while !self.waiting.is_empty() {
            self.settle_one(&recorder).await;
        }
        self
    }

    async fn publish_one(&mut self, recorder: &Recorder, due: Instant) {
        let Some(room) = self.random.pick(&self.rooms).copied() else { return };
        if !self.publishers.contains_key(&room) {
            match self.client.publisher(room).open().await {
                Ok(publisher) => drop(self.publishers.insert(room, publisher)),
                Err(error) => {
                    self.note("open a publisher", &error);
                    return tokio::time::sleep(RETRY).await;
                }
            }
        }
        let body = self.bodies.next();
        let Some(publisher) = self.publishers.get(&room) else { return };
        let began = recorder.now_nanos().saturating_sub(self.pace.late_nanos(due, Instant::now()));
        let number = recorder.begin_at(began, room, publisher.producer_id(), &body);
        match publisher.enqueue(body).await {
            Ok(receipt) => self.waiting.push_back((number, room, receipt)),
            Err(error) => self.end(recorder, number, room, Err(error)),
        }
    }

    async fn settle_one(&mut self, recorder: &Recorder) {
        let Some((number, room, receipt)) = self.waiting.pop_front() else { return };
        let answer = receipt.await;
        self.end(recorder, number, room, answer);
    }

    fn end(&mut self, recorder: &Recorder, number: usize, room: RoomId, answer: Result<Ack, Error>) {
        let outcome = match &answer {
            Ok(ack) => Outcome::Acked { at: recorder.now_nanos(), sequence: ack.sequence.0 },
            Err(error) => {
                self.note("publish", error);
                // After an error the publisher has ended.
                self.publishers.remove(&room);
                if error.outcome == Happened::None { Outcome::Refused } else { Outcome::Unknown }
            }
        };
        recorder.end(number, outcome);
    }

    fn note(&self, step: &str, error: &Error) {
        // What may pass may fail; what is refused for good never should be.
        if !error.is_transient() {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.insert(format!("{step}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_for_all_that_it_held_up_when_on_schedule() {
        let pace = Pace { pause: Duration::from_millis(10), on_schedule: true };
        let due = Instant::now();
        // The message of `due` is answered after a second: 99 more were due meanwhile.
        let now = due + Duration::from_secs(1);
        let (mut next, mut late) = (pace.next(due, 1, now), Vec::new());
        while next < now {
            late.push(pace.late_nanos(next, now) / 1_000_000);
            next = pace.next(next, 1, now);
        }
        assert_eq!((late.len(), late[0], late[98]), (99, 990, 10));
        let forgiving = Pace { on_schedule: false, ..pace };
        assert_eq!((forgiving.next(due, 1, now), forgiving.late_nanos(due, now)), (now, 0));
    }

    #[test]
    fn loads_of_two_seeds_publish_no_body_twice() {
        let of_load = |seed: u64| (0..4).map(move |writer| Bodies::new(seed, writer, 1024));
        let first = |mut bodies: Bodies| (0..1_250).map(move |_| bodies.next());
        let all: BTreeSet<Bytes> = [1, 2].into_iter().flat_map(of_load).flat_map(first).collect();
        assert_eq!(all.len(), 10_000);
    }
}
