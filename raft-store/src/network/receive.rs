//! Receiving a snapshot: what is there already is not asked for, and what was received stays when the
//! stream breaks.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use prost::Message;
use unibus_proto::peer;
use unibus_proto::peer::raft_response::Response;
use unibus_proto::peer::snapshot_request::Request;

use super::serve::{answer_of, error_of};
use crate::codec::{decode_vote, encode_vote, required};
use crate::env::{Duplex, Env, FrameRx, FrameTx, Net, NetError, WatchReceiver, sleep, timeout};
use crate::group::Inner;
use crate::replica::Replica;
use crate::snapshot::{SnapshotData, StagedFile, Staging};
use crate::space::Space;
use crate::state::{Snapshot, StateMachine};
use crate::stream::{decode, malformed};
use crate::sum::FileSum;
use crate::types::{Raft, Vote};

/// A sender that sends nothing for so long is gone.
const PROGRESS: Duration = Duration::from_secs(30);
/// While this node is busy, it lets the sender hear so often.
const BUSY: Duration = Duration::from_secs(5);

/// A tree takes some times its rows while it is written, and something at least.
const TREE_FACTOR: u64 = 3;
const TREE_BYTES_MIN: u64 = 16 << 20;

/// The stream to the sender.
struct Sender<E: Env> {
    tx: <E::Net as Net>::Tx,
    rx: <E::Net as Net>::Rx,
}

/// Serves one stream of the kind.
pub async fn serve<E: Env>(group: &Inner<E>, (tx, mut rx): Duplex<E::Net>) -> Result<(), NetError> {
    let Inner { raft, replica, .. } = group;
    let offer: peer::SnapshotOffer = decode(rx.recv().await?)?;
    let mut sender = Sender::<E> { tx, rx };
    let (mut offers, turn) = replica.snapshots.offered().await;
    let vote = decode_vote(required(offer.vote.as_ref(), "vote of a snapshot").map_err(malformed)?);
    let received = {
        let receive = std::pin::pin!(stage_and_receive(group, &mut sender, offer.manifest));
        let superseded = std::pin::pin!(offers.changed());
        match futures::future::select(receive, superseded).await {
            Either::Left((received, _)) => received,
            Either::Right(_) => Err("another snapshot is offered".into()),
        }
    };
    let response = match received {
        Ok(data) => Box::pin(install(raft, replica, &mut sender, (vote, data))).await?,
        Err(why) => error_of(why),
    };
    // Not before: what is staged must not change while it is installed.
    drop(turn);
    sender.say(Request::Answer(response)).await?;
    sender.tx.finish().await
}

async fn install<E: Env>(
    raft: &Raft<E, StateMachine<E>>,
    replica: &Replica<E>,
    sender: &mut Sender<E>,
    (vote, data): (Vote, SnapshotData),
) -> Result<peer::RaftResponse, NetError> {
    let snapshot = Snapshot { meta: data.meta().clone(), snapshot: data.clone() };
    let answer = Box::pin(sender.meanwhile(raft.install_full_snapshot(vote, snapshot))).await?;
    replica.snapshots.release(data).await;
    Ok(answer.map_or_else(error_of, |answer| answer_of(Response::Snapshot(encode_vote(&answer.vote)))))
}

async fn stage_and_receive<E: Env>(
    Inner { replica, space, .. }: &Inner<E>,
    sender: &mut Sender<E>,
    manifest: Bytes,
) -> Result<SnapshotData, String> {
    refuse_when_full(space)?;
    let staging = Box::pin(sender.meanwhile(replica.snapshots.stage(manifest, &replica.segments))).await;
    let staging = staging.map_err(text)?.map_err(text)?;
    let (missing, tree) = (staging.missing_bytes().await.map_err(text)?, tree_bytes(staging.data()));
    let above = space.marks().reserve_bytes.saturating_add(tree);
    space.check("a snapshot and its tables above the reserve", missing.saturating_add(above)).await?;
    let data = Box::pin(receive(replica, &staging, sender, space)).await?;
    // The rows become a tree before the snapshot counts, and Raft ends when that fails: what it takes must be
    // there before Raft hears of the snapshot.
    space.check("the tables of a snapshot", tree).await?;
    Ok(data)
}

/// What remains below the reserve is not for what others send.
fn refuse_when_full<E: Env>(space: &Space<E>) -> Result<(), String> {
    space.refuses_entries().map_or(Ok(()), |why| Err(format!("no space for a snapshot: {why}")))
}

/// What the rows of a snapshot take as a tree.
fn tree_bytes(data: &SnapshotData) -> u64 {
    let rows: u64 = data.rows.iter().map(|(file, _)| file.sum.length).sum();
    rows.saturating_mul(TREE_FACTOR).saturating_add(TREE_BYTES_MIN)
}

/// Receives the files that are missing, and verifies the whole.
async fn receive<E: Env>(
    replica: &Replica<E>,
    staging: &Staging<E>,
    sender: &mut Sender<E>,
    space: &Space<E>,
) -> Result<SnapshotData, String> {
    let data = staging.data().clone();
    for (number, (path, sum)) in data.files().enumerate() {
        let has = sender.meanwhile(staging.has(path, sum)).await.map_err(text)?;
        if !has.map_err(text)? {
            let file = (number, path, sum);
            Box::pin(receive_file((replica, space), staging, sender, file)).await?;
        }
    }
    // Segments of this node that belong to it: they may never have been synced.
    sender.meanwhile(replica.segments.sync()).await.map_err(text)?.map_err(text)?;
    sender.meanwhile(staging.complete()).await.map_err(text)?.map_err(text)
}

async fn receive_file<E: Env>(
    (replica, space): (&Replica<E>, &Space<E>),
    staging: &Staging<E>,
    sender: &mut Sender<E>,
    (number, path, sum): (usize, &Path, FileSum),
) -> Result<(), String> {
    let seed = replica.snapshots.segment_in_place(path);
    let file = sender.meanwhile(staging.file(path, sum, seed.as_deref())).await.map_err(text)?;
    let mut file: StagedFile<E> = file.map_err(text)?;
    if file.is_whole() {
        return sender.meanwhile(file.finish()).await.map_err(text)?.map_err(text);
    }
    let want = peer::SnapshotWant { file: number as u32, blocks: file.blocks().concat().into() };
    sender.say(Request::Want(want)).await.map_err(text)?;
    let mut begun = false;
    while !(begun && file.is_full()) {
        refuse_when_full(space)?;
        let chunk = sender.chunk().await.map_err(text)?;
        if !begun && chunk.offset <= file.length() {
            file.cut(chunk.offset)?;
            begun = true;
        }
        if chunk.offset != file.length() || chunk.data.is_empty() {
            return Err(format!("a chunk for byte {}, expected {} of {}", chunk.offset, file.length(), path.display()));
        }
        file.write(chunk.data).await.map_err(text)?;
    }
    sender.meanwhile(file.finish()).await.map_err(text)?.map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl<E: Env> Sender<E> {
    async fn say(&mut self, request: Request) -> Result<(), NetError> {
        let frame = peer::SnapshotRequest { request: Some(request) };
        self.tx.send(vec![frame.encode_to_vec().into()]).await
    }

    async fn chunk(&mut self) -> Result<peer::SnapshotChunk, NetError> {
        let frame = timeout::<E, _>(PROGRESS, self.rx.recv()).await;
        decode(frame.ok_or_else(|| NetError::Closed("the sender sends nothing".into()))??)
    }

    /// Waits for something that may take long, and lets the sender hear of it.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, NetError> {
        let mut work = std::pin::pin!(work);
        loop {
            let pause = std::pin::pin!(sleep::<E>(BUSY));
            match futures::future::select(work.as_mut(), pause).await {
                Either::Left((done, _)) => return Ok(done),
                Either::Right(_) => self.say(Request::Busy(peer::SnapshotBusy {})).await?,
            }
        }
    }
}
