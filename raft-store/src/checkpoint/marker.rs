//! What a checkpoint covers.

use bytes::Bytes;
use prost::Message;
use unibus_proto::peer;

use crate::codec::{
    CodecError, decode_hash, decode_log_id, decode_segment, decode_stored_membership, encode_log_id, encode_segment,
    encode_stored_membership, required,
};
use crate::segment::SegmentEntry;
use crate::snapshot::Manifest;
use crate::tables::{RowSum, StateHash};
use crate::types::SnapshotMeta;

/// Coverage, rows and segments at the index of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marker {
    /// Last entry and membership at it.
    pub meta: SnapshotMeta,
    /// What the rows come to.
    pub sum: RowSum,
    /// The segment files; the open one is a prefix.
    pub segments: Vec<SegmentEntry>,
}

impl Marker {
    /// Index of the last entry that it holds.
    pub fn index(&self) -> Option<u64> {
        self.meta.last_log_id.map(|id| id.index)
    }

    /// BLAKE3 of its bytes: names it.
    pub fn name(&self) -> [u8; 32] {
        blake3::hash(&self.encode()).into()
    }

    /// As it stands in the tree.
    pub fn encode(&self) -> Bytes {
        self.to_message().encode_to_vec().into()
    }

    pub(super) fn to_message(&self) -> peer::CheckpointMarker {
        peer::CheckpointMarker {
            log_id: self.meta.last_log_id.as_ref().map(encode_log_id),
            membership: Some(encode_stored_membership(&self.meta.last_membership)),
            state_hash: Bytes::copy_from_slice(&self.sum.hash.0),
            rows: self.sum.rows,
            bytes: self.sum.bytes,
            segments: self.segments.iter().map(encode_segment).collect(),
        }
    }

    pub(super) fn from_message(marker: &peer::CheckpointMarker) -> Result<Self, CodecError> {
        let membership = required(marker.membership.as_ref(), "membership of a checkpoint")?;
        let last_membership = decode_stored_membership(membership)?;
        let hash = StateHash(decode_hash(&marker.state_hash, "state hash of a checkpoint")?);
        Ok(Self {
            meta: SnapshotMeta { last_log_id: marker.log_id.as_ref().map(decode_log_id), last_membership },
            sum: RowSum { hash, rows: marker.rows, bytes: marker.bytes },
            segments: marker.segments.iter().map(decode_segment).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Marker> for Manifest {
    fn from(marker: &Marker) -> Self {
        Self { meta: marker.meta.clone(), state_hash: marker.sum.hash, segments: marker.segments.clone() }
    }
}

/// Of rows that are counted when they are loaded.
impl From<&Manifest> for Marker {
    fn from(manifest: &Manifest) -> Self {
        let sum = RowSum { hash: manifest.state_hash, ..RowSum::default() };
        Self { meta: manifest.meta.clone(), sum, segments: manifest.segments.clone() }
    }
}
