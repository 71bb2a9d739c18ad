//! Sending a snapshot: the receiver gets the manifest and asks for the files that it lacks, each from the
//! first block that it does not have. It ends with the receiver's vote. There is no deadline but on progress.

use std::time::Duration;

use prost::Message;
use unibus_proto::peer;
use unibus_proto::peer::raft_response::Response;
use unibus_proto::peer::snapshot_request::Request;

use super::control::response;
use super::pace::Pace;
use crate::codec::{decode_vote, encode_vote};
use crate::env::{Disk, DiskFile, Duplex, Env, FrameRx, FrameTx, Net, OpenMode, timeout};
use crate::snapshot::SnapshotData;
use crate::stream::decode;
use crate::sum::BLOCK_BYTES;
use crate::types::Vote;

/// Bytes per chunk: small enough to share a connection, large enough to be few.
const CHUNK_BYTES: u64 = 256 << 10;
/// A receiver that takes nothing and says nothing for so long is gone.
const PROGRESS: Duration = Duration::from_secs(30);

/// Sends a snapshot; answers the receiver's vote.
pub async fn send<E: Env>(
    env: &E,
    pace: &Pace<E>,
    (mut tx, mut rx): Duplex<E::Net>,
    vote: &Vote,
    data: &SnapshotData,
) -> Result<Vote, String> {
    let offer = peer::SnapshotOffer { vote: Some(encode_vote(vote)), manifest: data.encoded.clone() };
    put::<E>(&mut tx, offer.encode_to_vec()).await?;
    loop {
        let frame = timeout::<E, _>(PROGRESS, rx.recv()).await.ok_or("the receiver says nothing")?;
        let request: peer::SnapshotRequest = frame.and_then(decode).map_err(|e| e.to_string())?;
        match request.request {
            Some(Request::Want(want)) => send_file::<E>(env, pace, &mut tx, data, want).await?,
            Some(Request::Busy(_)) => {}
            Some(Request::Answer(answer)) => match response(answer)? {
                Response::Snapshot(vote) => return Ok(decode_vote(&vote)),
                _ => return Err("a response of another kind, expected one to a snapshot".into()),
            },
            None => return Err("an empty request on a snapshot stream".into()),
        }
    }
}

async fn send_file<E: Env>(
    env: &E,
    pace: &Pace<E>,
    tx: &mut <E::Net as Net>::Tx,
    data: &SnapshotData,
    want: peer::SnapshotWant,
) -> Result<(), String> {
    let (path, sum) =
        data.files().nth(want.file as usize).ok_or_else(|| format!("file {} is not in the snapshot", want.file))?;
    let failed = |e: std::io::Error| format!("read {}: {e}", path.display());
    let source = env.disk().open(path, OpenMode::Read).await.map_err(failed)?;
    let mut at = 0;
    for block in want.blocks.chunks_exact(32) {
        let length = BLOCK_BYTES.min(sum.length.saturating_sub(at));
        let own = source.read_at(at, length as usize).await.map_err(failed)?;
        if length < BLOCK_BYTES || blake3::hash(&own).as_bytes() != block {
            break;
        }
        at += length;
    }
    loop {
        let piece = CHUNK_BYTES.min(sum.length - at);
        let data = source.read_at(at, piece as usize).await.map_err(failed)?;
        pace.wait(piece).await;
        put::<E>(tx, peer::SnapshotChunk { offset: at, data }.encode_to_vec()).await?;
        at += piece;
        if at == sum.length {
            return Ok(());
        }
    }
}

async fn put<E: Env>(tx: &mut <E::Net as Net>::Tx, frame: Vec<u8>) -> Result<(), String> {
    let sent = timeout::<E, _>(PROGRESS, tx.send(vec![frame.into()])).await;
    sent.ok_or("the receiver takes nothing")?.map_err(|e| e.to_string())
}
