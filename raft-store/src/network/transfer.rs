//! Sending a snapshot: its files whole, one after another, then the receiver's vote comes back.

use std::path::Path;
use std::time::Duration;

use prost::Message;
use unibus_proto::peer;
use unibus_proto::peer::raft_response::Response;

use super::control::response;
use crate::codec::{decode_vote, encode_snapshot_begin};
use crate::env::{Disk, DiskFile, Duplex, Env, FrameRx, FrameTx, Net, OpenMode, timeout};
use crate::snapshot::{SnapshotData, segment_name};
use crate::stream::decode;
use crate::types::Vote;

/// Bytes per chunk: small enough to share a connection, large enough to be few.
const CHUNK_BYTES: u64 = 256 << 10;
/// A receiver that takes nothing for so long is gone.
const PROGRESS: Duration = Duration::from_secs(30);
/// The receiver verifies and installs before it answers.
const INSTALL: Duration = Duration::from_secs(120);

/// Sends a snapshot; answers the receiver's vote.
pub async fn send<E: Env>(
    env: &E,
    (mut tx, mut rx): Duplex<E::Net>,
    vote: &Vote,
    data: &SnapshotData,
) -> Result<Vote, String> {
    let begin = encode_snapshot_begin(vote, data.meta(), files(data));
    put::<E>(&mut tx, begin.encode_to_vec()).await?;
    let paths = std::iter::once((data.rows.as_path(), data.rows_sum.length))
        .chain(data.segments.iter().map(|(entry, path)| (path.as_path(), entry.length)));
    for (file, (path, length)) in paths.enumerate() {
        send_file::<E>(env, &mut tx, file as u32, path, length).await?;
    }
    put::<E>(&mut tx, peer::SnapshotEnd {}.encode_to_vec()).await?;
    let answer = timeout::<E, _>(INSTALL, rx.recv()).await.ok_or("the snapshot is not answered")?;
    let answer: peer::RaftResponse = answer.and_then(decode).map_err(|e| e.to_string())?;
    match response(answer)? {
        Response::Snapshot(vote) => Ok(decode_vote(&vote)),
        _ => Err("a response of another kind, expected one to a snapshot".into()),
    }
}

fn files(data: &SnapshotData) -> Vec<peer::SnapshotFile> {
    let file = |name: String, length, hash: [u8; 32]| peer::SnapshotFile { name, length, hash: hash.to_vec().into() };
    let rows = file("rows".into(), data.rows_sum.length, data.rows_sum.hash);
    let segments = data.segments.iter().map(|(entry, _)| file(segment_name(entry.id), entry.length, entry.hash));
    std::iter::once(rows).chain(segments).collect()
}

async fn send_file<E: Env>(
    env: &E,
    tx: &mut <E::Net as Net>::Tx,
    file: u32,
    path: &Path,
    length: u64,
) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("read {}: {e}", path.display());
    let source = env.disk().open(path, OpenMode::Read).await.map_err(failed)?;
    let mut at = 0;
    while at < length {
        let piece = CHUNK_BYTES.min(length - at);
        let data = source.read_at(at, piece as usize).await.map_err(failed)?;
        put::<E>(tx, peer::SnapshotChunk { file, data }.encode_to_vec()).await?;
        at += piece;
    }
    Ok(())
}

async fn put<E: Env>(tx: &mut <E::Net as Net>::Tx, frame: Vec<u8>) -> Result<(), String> {
    let sent = timeout::<E, _>(PROGRESS, tx.send(vec![frame.into()])).await;
    sent.ok_or("the receiver takes nothing")?.map_err(|e| e.to_string())
}
