//! Where a room starts.

use std::collections::BTreeMap;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::RoomId;
use unibus_proto::v1::{SubscribeRequest, start_from::From};
use unibus_raft_store::env::Env;

use super::super::access::Access;
use super::super::messages::check_position;
use super::super::{Failure, Outcome, Service};
use super::ROOMS_MAX;

/// The positions that a request names.
pub(super) fn resumed(request: &SubscribeRequest) -> Outcome<BTreeMap<RoomId, u64>> {
    let found = request.resume.len();
    if found > ROOMS_MAX {
        return Err(Failure::invalid(format!("resume: found {found} positions, at most {ROOMS_MAX} are allowed")));
    }
    let position = |position: &unibus_proto::v1::RoomPosition| {
        Ok((RoomId::from_bytes(&position.room_id)?, position.next_sequence))
    };
    request.resume.iter().map(position).collect()
}

impl<E: Env> Service<E> {
    /// The first sequence to deliver of a room without a position of its own.
    pub(super) async fn start_position(&self, access: &Access, start: From) -> Outcome<u64> {
        match start {
            From::Latest(_) => Ok(access.row.next_sequence),
            From::Earliest(_) => Ok(access.row.floor),
            From::Sequence(sequence) => check_position(&access.row, sequence).map(|()| sequence),
            From::TimeMs(time_ms) => self.first_at(access, time_ms).await,
        }
    }

    /// The first entry stored at or after a log time: log time never decreases along a timeline.
    async fn first_at(&self, access: &Access, time_ms: u64) -> Outcome<u64> {
        let (mut low, mut high) = (access.row.floor, access.row.next_sequence);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.read_timeline(access.shard, access.room, middle, 1, 1).await {
                Ok(found) if found.first().is_some_and(|entry| entry.at_ms < time_ms) => low = middle + 1,
                Ok(_) => high = middle,
                // Retention took it meanwhile: it is too old for anybody.
                Err(failure) if failure.code == ErrorCode::OutOfRange => low = middle + 1,
                Err(failure) => return Err(failure),
            }
        }
        Ok(low)
    }
}
