//! One subscription of the fake.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::Status;
use unibus_client::ErrorCode;
use unibus_client::proto::id::RoomId;
use unibus_client::proto::subject::SubjectFilter;
use unibus_client::proto::v1::{self, start_from, subscribe_response::Item};

use super::service::{Server, broken, status};
use super::state::SubscribeFault;

/// One subscription of the fake.
pub struct Feed {
    pub server: Server,
    filter: SubjectFilter,
    until_end: bool,
    next: BTreeMap<RoomId, u64>,
    start: v1::StartFrom,
    caught_up: bool,
    batches: usize,
    fault: Option<SubscribeFault>,
    idle: Duration,
}

impl Feed {
    pub fn new(server: Server, request: v1::SubscribeRequest, fault: Option<SubscribeFault>) -> Result<Self, Status> {
        let filter: SubjectFilter = request.filter.parse().unwrap();
        let mut next = BTreeMap::new();
        for position in &request.resume {
            next.insert(RoomId::from_bytes(&position.room_id).unwrap(), position.next_sequence);
        }
        let mut feed = Self {
            server,
            filter,
            until_end: request.until_end,
            next,
            start: request.start.unwrap(),
            caught_up: false,
            batches: 0,
            fault,
            idle: Duration::ZERO,
        };
        feed.find_rooms();
        if feed.filter.as_subject().is_some() && feed.next.is_empty() {
            return Err(status(ErrorCode::RoomNotFound, 0));
        }
        if let Some(SubscribeFault::Repeat(count)) = feed.fault {
            feed.next.values_mut().for_each(|next| *next = next.saturating_sub(count));
        }
        Ok(feed)
    }

    fn find_rooms(&mut self) {
        let state = self.server.cluster.lock();
        for (&id, room) in &state.rooms {
            if !self.filter.matches(&room.room.subject.parse().unwrap()) {
                continue;
            }
            let start = match self.start.from {
                _ if self.caught_up => 0,
                Some(start_from::From::Latest(_)) => room.head() + 1,
                Some(start_from::From::Sequence(sequence)) => sequence,
                _ => 0,
            };
            self.next.entry(id).or_insert(start);
        }
    }

    pub async fn next(&mut self) -> Option<Result<Item, Status>> {
        loop {
            match self.fault {
                Some(SubscribeFault::BreakAfter(count)) if self.batches >= count => return Some(broken()),
                Some(SubscribeFault::SilentAfter(count)) if self.batches >= count => std::future::pending().await,
                _ => {}
            }
            self.find_rooms();
            if let Some(batch) = self.batch() {
                self.batches += 1;
                return Some(Ok(Item::Batch(batch)));
            }
            if !self.caught_up {
                self.caught_up = true;
                let position =
                    |(id, &next_sequence): (&RoomId, &u64)| v1::RoomPosition { room_id: id.to_bytes(), next_sequence };
                return Some(Ok(Item::CaughtUp(v1::CaughtUp { positions: self.next.iter().map(position).collect() })));
            }
            if self.until_end {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.idle += Duration::from_millis(5);
            if self.idle >= Duration::from_secs(10) {
                self.idle = Duration::ZERO;
                return Some(Ok(Item::Heartbeat(v1::Heartbeat {})));
            }
        }
    }

    fn batch(&mut self) -> Option<v1::DeliveryBatch> {
        let mut state = self.server.cluster.lock();
        let shows = state.node(self.server.node).shows;
        for (id, next) in &mut self.next {
            let room = &state.rooms[id];
            let end = shows.unwrap_or(u64::MAX).min(room.timeline.len() as u64);
            if *next >= end {
                continue;
            }
            let to = end.min(*next + 3);
            let mut deliveries = room.timeline[*next as usize..to as usize].to_vec();
            if let Some(SubscribeFault::Skip(sequence)) = self.fault {
                deliveries.retain(|delivery| delivery.sequence != sequence);
            }
            *next = to;
            return Some(v1::DeliveryBatch::of(id.to_bytes(), &room.room.subject, &deliveries));
        }
        None
    }
}
