//! The streams between the nodes: one that this node opened to each peer, for messages, and one that each
//! peer opened, on which it hears what this node listens to.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc;
use unibus_proto::id::{NodeId, RoomId};
use unibus_proto::peer::{EphemeralFrame, EphemeralStream, InterestFrame};
use unibus_proto::peer::{ephemeral_frame::Frame, stream_open::Purpose};
use unibus_raft_store::env::{Duplex, Env, FrameRx, FrameTx, Lane, sleep, spawn, timeout};
use unibus_raft_store::stream::open_stream;

use super::Ephemeral;
use super::listeners::Feed;
use super::outbox::Outbox;
use crate::fanout::Burst;

/// Between two looks at who is a peer.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// An attempt to connect that takes longer is given up.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// Between two signs of life.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// A peer that is silent for longer is gone: two signs of life are missing.
const SILENCE_MAX: Duration = Duration::from_secs(3);

impl<E: Env> Ephemeral<E> {
    /// Keeps a stream to each peer, those that come and go included.
    pub(super) async fn keep_streams(self) {
        while !self.inner.running.is_closed() {
            self.look_at_peers();
            let stopped = self.inner.running.acquire();
            drop(timeout::<E, _>(LOOK_EVERY, stopped).await);
        }
        self.outboxes().values().for_each(|outbox| outbox.close());
    }

    fn look_at_peers(&self) {
        let peers = self.inner.shards.peers().ids();
        let mut outboxes = self.outboxes();
        outboxes.retain(|peer, outbox| {
            let stays = peers.contains(peer);
            if !stays {
                outbox.close();
            }
            stays
        });
        for peer in peers {
            outboxes.entry(peer).or_insert_with(|| {
                let (outbox, woken) = Outbox::new();
                spawn::<E>(self.clone().keep_stream(peer, Arc::clone(&outbox), woken));
                outbox
            });
        }
    }

    async fn keep_stream(self, peer: NodeId, outbox: Arc<Outbox>, mut woken: mpsc::Receiver<()>) {
        while !outbox.is_closed() {
            let purpose = Purpose::Ephemeral(EphemeralStream {});
            let opening = open_stream::<E>(&self.inner.env, &self.inner.identity, peer, purpose, Lane::Log);
            let why = match timeout::<E, _>(CONNECT_PATIENCE, opening).await {
                Some(Ok(stream)) => carry::<E>(&outbox, stream, &mut woken).await,
                Some(Err(error)) => error.to_string(),
                None => format!("no connection within {CONNECT_PATIENCE:?}"),
            };
            tracing::debug!(%peer, why, "ephemeral stream to peer is down");
            self.inner.counters.ephemeral_dropped(outbox.went_down());
            sleep::<E>(RECONNECT_PAUSE).await;
        }
    }

    /// Serves a stream that a peer opened, until it ends.
    pub async fn serve(&self, peer: NodeId, (tx, rx): Duplex<E::Net>) {
        let (feed, mut woken) = self.inner.listeners.feed();
        let why = tokio::select! {
            biased;
            _ = self.inner.running.acquire() => "the node is stopping".into(),
            why = self.receive(rx, &feed) => why,
            why = tell::<E>(tx, &feed, &mut woken) => why,
        };
        tracing::debug!(%peer, why, "ephemeral stream of peer ended");
    }

    async fn receive(&self, mut rx: impl FrameRx, feed: &Feed) -> String {
        loop {
            match hear::<E, EphemeralFrame>(&mut rx).await.map(|frame| frame.frame) {
                Ok(Some(Frame::Confirmed(version))) => feed.confirm(version),
                Ok(Some(Frame::Batch(batch))) => {
                    let Ok(room) = RoomId::from_bytes(&batch.room_id) else { return "a bad room id".into() };
                    self.deliver(&Burst { room, count: batch.count, bytes: batch.entries });
                }
                Ok(None) => {}
                Err(why) => return why,
            }
        }
    }
}

/// Carries messages to a peer until the stream breaks.
async fn carry<E: Env>(outbox: &Outbox, (tx, rx): Duplex<E::Net>, woken: &mut mpsc::Receiver<()>) -> String {
    tokio::select! {
        biased;
        () = outbox.closed() => "the peer is no member any more".into(),
        why = learn::<E>(outbox, rx) => why,
        why = write(outbox, tx, woken) => why,
    }
}

async fn learn<E: Env>(outbox: &Outbox, mut rx: impl FrameRx) -> String {
    loop {
        match hear::<E, InterestFrame>(&mut rx).await {
            Ok(said) => {
                if !outbox.learn(said) {
                    return "the peer listens to more rooms than a node may".into();
                }
            }
            Err(why) => return why,
        }
    }
}

/// The peer's next frame; else why the stream ends.
async fn hear<E: Env, M: Message + Default>(rx: &mut impl FrameRx) -> Result<M, String> {
    match timeout::<E, _>(SILENCE_MAX, rx.recv()).await {
        Some(Ok(Some(frame))) => M::decode(frame).map_err(|error| format!("a frame cannot be decoded: {error}")),
        Some(Ok(None)) => Err("closed by the peer".into()),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(format!("the peer was silent for {SILENCE_MAX:?}")),
    }
}

async fn write(outbox: &Outbox, mut tx: impl FrameTx, woken: &mut mpsc::Receiver<()>) -> String {
    loop {
        while let Some(frame) = outbox.next() {
            if let Err(error) = tx.send(vec![frame]).await {
                return error.to_string();
            }
        }
        if woken.recv().await.is_none() {
            return "the node is stopping".into();
        }
    }
}

/// Tells a peer what is listened to here, and each second that this node is there.
async fn tell<E: Env>(mut tx: impl FrameTx, feed: &Feed, woken: &mut mpsc::Receiver<()>) -> String {
    loop {
        let frame = feed.frame().encode_to_vec();
        if let Err(error) = tx.send(vec![frame.into()]).await {
            return error.to_string();
        }
        timeout::<E, _>(ALIVE_EVERY, woken.recv()).await;
    }
}
