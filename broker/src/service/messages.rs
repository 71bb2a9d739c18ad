//! Publishing and reading a range.

use std::future::Future;

use futures::FutureExt;
use unibus_machine::StoredDelivery;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{GroupId, ProducerId, RoomId};
use unibus_proto::limits::BATCH_BYTES_MAX;
use unibus_proto::log::PublishGroup;
use unibus_proto::position::Sequence;
use unibus_proto::row::RoomRow;
use unibus_proto::v1::{
    Delivery, FetchRangeRequest, FetchRangeResponse, PublishOutcome, PublishRequest, PublishResponse, publish_outcome,
};
use unibus_raft_store::TimelineError;
use unibus_raft_store::env::Env;

use super::access::{Access, Wanted};
use super::{Caller, Failure, Outcome, Service, check};

/// Bytes of a range: one delivery more still fits into a gRPC message.
const RANGE_BYTES_MAX: usize = BATCH_BYTES_MAX / 2;

impl<E: Env> Service<E> {
    /// Stores messages; the answer comes when they are fsynced on a majority. Those of an ephemeral room are
    /// sent.
    pub async fn publish(&self, caller: &Caller, request: PublishRequest) -> Outcome<PublishResponse> {
        self.admit_publish(caller, request).await?.await
    }

    /// Checks a publish and queues it; the returned future waits for what became of it. Requests that are
    /// admitted one after another enter the log in that order.
    pub async fn admit_publish(
        &self,
        caller: &Caller,
        request: PublishRequest,
    ) -> Outcome<impl Future<Output = Outcome<PublishResponse>> + Send + 'static + use<E>> {
        let (user, device) = caller.user()?;
        let room = RoomId::from_bytes(&request.room_id)?;
        ProducerId::from_bytes(&request.producer_id)?;
        check::publish(&request)?;
        let access = self.publishable(caller, room).await?;
        if Self::is_ephemeral(&access) {
            let sent = self.publish_ephemeral(caller, request, &access).await?;
            return Ok(std::future::ready(Ok(sent)).left_future());
        }
        let Access { shard, .. } = access;
        let tag = request.request;
        let group = PublishGroup {
            room_id: request.room_id,
            user: user.to_string(),
            device_id: device.to_bytes(),
            producer_id: request.producer_id,
            opened_ms: request.opened_ms,
            first_number: request.first_number,
            messages: request.messages,
        };
        let queued = self.shards().publish(shard, group)?;
        let service = self.clone();
        let stored = async move {
            let published = queued.await?;
            service.count_outcomes(&published.outcomes);
            Ok(PublishResponse {
                request: tag,
                outcomes: published.outcomes,
                time_ms: published.at_ms,
                leader: published.leader.map_or(0, |leader| leader.0),
                voters: published.voters,
                failure: None,
            })
        };
        Ok(stored.right_future())
    }

    fn count_outcomes(&self, outcomes: &[PublishOutcome]) {
        for PublishOutcome { count, outcome, .. } in outcomes {
            match outcome {
                Some(publish_outcome::Outcome::Stored(_)) => self.counters().published(u64::from(*count)),
                Some(publish_outcome::Outcome::Reject(reject)) => self.counters().rejected(reject.error_code()),
                Some(publish_outcome::Outcome::Duplicate(_) | publish_outcome::Outcome::Accepted(_)) | None => {}
            }
        }
    }

    /// A range of a room's timeline.
    pub async fn fetch_range(&self, caller: &Caller, request: FetchRangeRequest) -> Outcome<FetchRangeResponse> {
        let count = check::page_size("count_max", request.count_max)?;
        let wanted = Wanted::of(request.room.as_ref())?;
        let from = request.from_sequence;
        let mut access = self.readable(caller, &wanted).await?;
        if from > access.row.next_sequence {
            access = self.readable_now(caller, &wanted).await?;
        }
        check_position(&access.row, from)?;
        let stored = self.read_timeline(access.shard, access.room, from, RANGE_BYTES_MAX, count).await?;
        // What was read may lie behind a removal that this node has applied since.
        let now = self.readable_here(caller.user()?.0, &wanted).ok_or_else(|| wanted.not_found())?;
        let deliveries = decode(&stored)?;
        self.counters().delivered(deliveries.len());
        Ok(FetchRangeResponse { deliveries, floor: now.row.floor, head: now.row.next_sequence.saturating_sub(1) })
    }

    /// Consecutive entries from a position on; none at the head.
    pub(super) async fn read_timeline(
        &self,
        shard: GroupId,
        room: RoomId,
        from: u64,
        bytes_max: usize,
        count_max: usize,
    ) -> Outcome<Vec<StoredDelivery>> {
        let replica = self.shards().group(shard)?;
        match replica.read_timeline(room, Sequence(from), bytes_max, count_max).await {
            Ok(deliveries) => Ok(deliveries),
            Err(TimelineError::OutOfRange { floor, head }) => {
                let subject =
                    replica.view(|machine| machine.room(room)).map_or_else(|| room.to_string(), |row| row.subject);
                Err(out_of_range(&subject, from, floor.0, head.0))
            }
            Err(TimelineError::NotFound) => Err(Wanted::Id(room).not_found()),
            Err(TimelineError::Corrupt(why)) => {
                let node = self.node();
                let message = format!(
                    "read room {room} from sequence {from}: node {node} found damage: {why}; read from another node"
                );
                Err(Failure::new(ErrorCode::Corrupt, message))
            }
        }
    }
}

/// A position may be anything from the floor to the head + 1.
pub(super) fn check_position(row: &RoomRow, from: u64) -> Outcome<()> {
    if from < row.floor || from > row.next_sequence {
        return Err(out_of_range(&row.subject, from, row.floor, row.next_sequence.saturating_sub(1)));
    }
    Ok(())
}

fn out_of_range(subject: &str, from: u64, floor: u64, head: u64) -> Failure {
    let reaches = match floor <= head {
        true => format!("reaches from {floor} to {head}"),
        false => format!("holds no entry, the next one is {floor}"),
    };
    let remedy = match from < floor {
        true => "what was before is not kept; start from the earliest",
        false => "nothing has a higher sequence; start from the latest",
    };
    let message = format!("the timeline of {subject} {reaches}; found sequence {from} asked for: {remedy}");
    Failure::new(ErrorCode::OutOfRange, message).fact("floor", floor).fact("head", head)
}

/// Stored bytes as messages; bodies are shared, not copied.
pub(super) fn decode(stored: &[StoredDelivery]) -> Outcome<Vec<Delivery>> {
    let decode = |stored: &StoredDelivery| {
        prost::Message::decode(stored.bytes.clone()).map_err(|error| {
            let message = format!("entry {} cannot be decoded: {error}; read from another node", stored.sequence);
            Failure::new(ErrorCode::Corrupt, message)
        })
    };
    stored.iter().map(decode).collect()
}
