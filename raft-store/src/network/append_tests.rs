use std::future;

use prost::Message;
use unibus_proto::id::NodeId;
use unibus_proto::peer::append_response::Result as Outcome;
use unibus_proto::peer::raft_request;

use super::super::message::encode_stream_result;
use super::*;
use crate::codec::encode_log_id;
use crate::env::{Lane, now, sleep};
use crate::testing::{FixedClock, FsDisk, SeededRng, TestEnv};
use crate::tree::LogTrees;
use crate::types::{Entry, Payload, Proposal, Vote, log_id};

/// Streams in memory, whose other ends the test holds.
#[derive(Clone)]
struct PipeEnv;
#[derive(Clone)]
struct PipeNet;
struct PipeTx(mpsc::UnboundedSender<Bytes>);
struct PipeRx(mpsc::UnboundedReceiver<Bytes>);

impl Env for PipeEnv {
    type Rt = <TestEnv as Env>::Rt;
    type Net = PipeNet;
    type Disk = FsDisk;
    type Trees = LogTrees<FsDisk>;
    type Clock = FixedClock;
    type Rng = SeededRng;

    fn net(&self) -> &PipeNet {
        &PipeNet
    }
    fn disk(&self) -> &FsDisk {
        &FsDisk
    }
    fn trees(&self) -> LogTrees<FsDisk> {
        LogTrees(FsDisk)
    }
    fn clock(&self) -> &FixedClock {
        &FixedClock
    }
    fn rng(&self) -> &SeededRng {
        unreachable!("nothing here is random")
    }
}

impl Net for PipeNet {
    type Tx = PipeTx;
    type Rx = PipeRx;

    async fn connect(&self, _peer: NodeId, _lane: Lane) -> Result<Duplex<Self>, NetError> {
        unreachable!("the test has the stream")
    }

    async fn accept(&self) -> Result<(NodeId, Duplex<Self>), NetError> {
        future::pending().await
    }
}

impl FrameTx for PipeTx {
    async fn send(&mut self, parts: Vec<Bytes>) -> Result<(), NetError> {
        self.0.send(parts.concat().into()).map_err(|_| NetError::Closed("gone".into()))
    }

    async fn finish(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

impl FrameRx for PipeRx {
    async fn recv(&mut self) -> Result<Option<Bytes>, NetError> {
        Ok(self.0.recv().await)
    }
}

/// The leader's side runs; the test is Raft on one end and the follower on the other.
struct Ends {
    raft: mpsc::UnboundedSender<Request<PipeEnv>>,
    frames: mpsc::UnboundedReceiver<Bytes>,
    answers: mpsc::UnboundedSender<Bytes>,
}

fn id(index: u64) -> LogId {
    log_id(1, NodeId(1), index)
}

/// Entries (`previous`, `last`] and a commit index.
fn request(previous: u64, last: u64, committed: u64) -> Request<PipeEnv> {
    let entry = |index| Entry { log_id: id(index), payload: Payload::Normal(Proposal(vec![1].into())) };
    Request::<PipeEnv> {
        vote: Vote { leader_id: id(1).leader_id, committed: true },
        prev_log_id: Some(id(previous)),
        entries: (previous + 1..=last).map(entry).collect(),
        leader_commit: Some(id(committed)),
    }
}

fn start() -> Ends {
    let ((raft, mut input), (tx, frames), (answers, rx)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let input = Box::pin(futures::stream::poll_fn(move |context| input.poll_recv(context)));
    let stream = stream::<PipeEnv, _>((PipeTx(tx), PipeRx(rx)), input, Duration::from_secs(60));
    spawn::<PipeEnv>(stream.for_each(|answer| async move {
        answer.expect("no answer is an error").expect("accepted");
    }));
    Ends { raft, frames, answers }
}

impl Ends {
    /// What the follower gets next: last entry, commit index, whether it is silent.
    async fn sent(&mut self) -> (Option<u64>, u64, bool) {
        let frame = self.frames.recv().await.expect("the leader goes on");
        let request = peer::RaftRequest::decode(frame).expect("a request").request;
        let Some(raft_request::Request::Append(append)) = request else { panic!("an append") };
        let last = append.entries.last().map(|entry| entry.log_id.expect("an id").index);
        (last, append.committed.expect("a commit index").index, append.silent)
    }

    fn answer(&self, upto: u64, awaited: bool) {
        let response = encode_stream_result::<PipeEnv>(&Ok(Some(id(upto))), awaited);
        let Response::Append(answer) = &response else { panic!("an append") };
        assert_eq!((answer.result(), answer.log_id), (Outcome::Partial, Some(encode_log_id(&id(upto)))));
        let frame = peer::RaftResponse { error: String::new(), response: Some(response) }.encode_to_vec();
        self.answers.send(frame.into()).expect("the leader goes on");
    }

    fn ask(&self, request: Request<PipeEnv>) {
        self.raft.send(request).expect("the leader goes on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_index_goes_with_the_entries_that_come_soon() {
    let mut ends = start();
    ends.ask(request(4, 5, 4));
    assert_eq!(ends.sent().await, (Some(5), 4, false));
    ends.answer(5, false);
    sleep::<PipeEnv>(COMMIT_HOLD).await;
    let start = now::<PipeEnv>();
    ends.ask(request(5, 5, 5));
    sleep::<PipeEnv>(COMMIT_HOLD / 2).await;
    ends.ask(request(5, 6, 5));
    assert_eq!(ends.sent().await, (Some(6), 5, false));
    assert_eq!(start.elapsed(), COMMIT_HOLD / 2);
    ends.answer(6, false);
    sleep::<PipeEnv>(3 * COMMIT_HOLD).await;
    assert!(ends.frames.try_recv().is_err(), "it was told");
}

#[tokio::test(start_paused = true)]
async fn a_commit_index_is_told_without_entries_in_the_end_and_nobody_answers() {
    let mut ends = start();
    ends.ask(request(4, 5, 4));
    ends.sent().await;
    ends.answer(5, false);
    sleep::<PipeEnv>(COMMIT_HOLD).await;
    let start = now::<PipeEnv>();
    for committed in [3, 4, 5] {
        ends.ask(request(5, 5, committed));
        sleep::<PipeEnv>(COMMIT_HOLD / 4).await;
    }
    assert_eq!(ends.sent().await, (None, 5, true), "the newest");
    assert!(start.elapsed() <= COMMIT_HOLD + Duration::from_millis(1), "after {:?}", start.elapsed());
    // It would fail after `progress` if an answer to it were waited for.
    sleep::<PipeEnv>(Duration::from_secs(600)).await;
    ends.ask(request(5, 6, 5));
    assert_eq!(ends.sent().await, (Some(6), 5, false));
}

#[tokio::test(start_paused = true)]
async fn a_commit_index_is_told_at_once_where_somebody_waits_for_it() {
    let mut ends = start();
    ends.ask(request(4, 5, 4));
    ends.sent().await;
    ends.answer(5, true);
    sleep::<PipeEnv>(COMMIT_HOLD).await;
    let start = now::<PipeEnv>();
    ends.ask(request(5, 5, 5));
    assert_eq!(ends.sent().await, (None, 5, true));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_first_request_of_a_stream_is_a_question() {
    let mut ends = start();
    ends.ask(request(5, 5, 5));
    assert_eq!(ends.sent().await, (None, 5, false));
}
