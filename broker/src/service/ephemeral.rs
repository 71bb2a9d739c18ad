//! Publishing to ephemeral rooms: decided here, under the leases of all that decides on it, and sent at once.

use prost::Message;
use unibus_machine::{bad_size, is_ephemeral};
use unibus_proto::delivery::ChunkWriter;
use unibus_proto::id::{DeviceId, Handle, RoomId};
use unibus_proto::v1::publish_outcome::Outcome as Became;
use unibus_proto::v1::{
    Accepted, Delivery, OutgoingMessage, PublishOutcome, PublishRequest, PublishResponse, StoredMessage, delivery,
};
use unibus_raft_store::env::Env;

use super::access::Access;
use super::{Caller, Outcome, Service};
use crate::fanout::{Burst, CHUNK_BYTES};

impl<E: Env> Service<E> {
    /// Sends the messages of a request that was checked as a whole.
    pub(super) async fn publish_ephemeral(
        &self,
        caller: &Caller,
        request: PublishRequest,
        found: &Access,
    ) -> Outcome<PublishResponse> {
        let (user, device) = caller.user()?;
        self.inner.ephemeral.obtain(found.shard, user).await?;
        // What was found before may be older than the leases: the user, the device and the membership.
        self.reauthenticate_stream(caller).await?;
        let access = self.publishable(caller, found.room).await?;
        let (time_ms, tag) = (self.now_ms(), request.request);
        let mut writer = Writer { room: access.room, chunk: ChunkWriter::default(), count: 0, nodes: 0 };
        let mut outcomes = Vec::new();
        for (number, message) in (request.first_number..).zip(request.messages) {
            if let Some(reject) = bad_size(&message) {
                outcomes.push(PublishOutcome { first_number: number, count: 1, outcome: Some(Became::Reject(reject)) });
                continue;
            }
            let delivery = delivery((user, device), &request.producer_id, number, message, time_ms);
            writer.push(self, &delivery.encode_to_vec());
            accept(&mut outcomes, number);
        }
        writer.flush(self);
        let nodes = writer.nodes;
        for PublishOutcome { count, outcome, .. } in &mut outcomes {
            match outcome {
                Some(Became::Accepted(accepted)) => {
                    accepted.nodes = nodes;
                    self.counters().ephemeral_sent(u64::from(*count));
                }
                Some(Became::Reject(reject)) => self.counters().rejected(reject.error_code()),
                _ => {}
            }
        }
        Ok(PublishResponse { request: tag, outcomes, time_ms, ..PublishResponse::default() })
    }

    /// Nodes that know which ephemeral rooms the subscribers of this one listen to.
    pub fn told_nodes(&self) -> usize {
        self.inner.ephemeral.told_nodes()
    }

    /// Whether a room's messages are not stored.
    pub(super) fn is_ephemeral(access: &Access) -> bool {
        is_ephemeral(&access.row)
    }
}

/// Joins messages to bursts.
struct Writer {
    room: RoomId,
    chunk: ChunkWriter,
    count: u32,
    nodes: u32,
}

impl Writer {
    fn push<E: Env>(&mut self, service: &Service<E>, delivery: &[u8]) {
        if self.count > 0 && self.chunk.bytes() + delivery.len() > CHUNK_BYTES {
            self.flush(service);
        }
        self.chunk.push(delivery);
        self.count += 1;
    }

    fn flush<E: Env>(&mut self, service: &Service<E>) {
        if self.count > 0 {
            let bytes = std::mem::take(&mut self.chunk).finish();
            let burst = Burst { room: self.room, count: std::mem::take(&mut self.count), bytes };
            self.nodes = self.nodes.max(service.inner.ephemeral.send(&burst));
        }
    }
}

fn delivery(
    (user, device): (&Handle, DeviceId),
    producer: &bytes::Bytes,
    number: u64,
    message: OutgoingMessage,
    time_ms: u64,
) -> Delivery {
    let message = StoredMessage {
        user: user.to_string(),
        device_id: device.to_bytes(),
        producer_id: producer.clone(),
        number,
        headers: message.headers,
        body: message.body,
    };
    Delivery { sequence: 0, time_ms, entry: Some(delivery::Entry::Message(message)) }
}

/// One more message was accepted.
fn accept(outcomes: &mut Vec<PublishOutcome>, number: u64) {
    match outcomes.last_mut() {
        Some(last) if matches!(last.outcome, Some(Became::Accepted(_))) => last.count += 1,
        _ => {
            let outcome = Some(Became::Accepted(Accepted::default()));
            outcomes.push(PublishOutcome { first_number: number, count: 1, outcome });
        }
    }
}
