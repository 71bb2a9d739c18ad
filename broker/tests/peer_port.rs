//! The peer port over real QUIC on loopback: who gets in, and what arrives.
#![allow(clippy::disallowed_methods)] // Real sockets and time.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use unibus_broker::certs::{Authority, Issued, Validity};
use unibus_broker::peer::quic::{QuicNet, QuicSettings};
use unibus_broker::tls::Material;
use unibus_proto::id::{ClusterId, NodeId};
use unibus_raft_store::env::{FrameRx, FrameTx, Lane, Net, NetError};

const CLUSTER: ClusterId = ClusterId([0x11; 16]);
const PATIENCE: Duration = Duration::from_secs(10);

fn authority(purpose: &str) -> Authority {
    Authority::mint(CLUSTER, purpose, SystemTime::now()).expect("minted")
}

fn leaf() -> Validity {
    Validity::leaf(SystemTime::now())
}

fn material(issued: &Issued, ca: &Authority) -> Material {
    Material {
        chain: vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).expect("PEM")],
        key: PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("PEM"),
        ca: CertificateDer::from_pem_slice(ca.issued().cert_pem.as_bytes()).expect("PEM"),
    }
}

fn bind(node: u64, issued: &Issued, ca: &Authority, peers: &[(u64, SocketAddr)]) -> QuicNet {
    let peers: BTreeMap<_, _> = peers.iter().map(|(id, address)| (NodeId(*id), address.to_string())).collect();
    QuicNet::bind(QuicSettings {
        listen: "127.0.0.1:0".parse().expect("an address"),
        cluster: CLUSTER,
        node: NodeId(node),
        peers,
        tls: material(issued, ca),
        groups: 3,
        initial_mtu: Some(16_384),
    })
    .expect("bound")
}

fn peer_cert(ca: &Authority, node: u64) -> Issued {
    ca.issue_peer(CLUSTER, NodeId(node), leaf()).expect("issued")
}

/// Node 1, which knows nodes 2 and 3 wherever they are.
fn node_one(ca: &Authority) -> (QuicNet, SocketAddr) {
    let nowhere = "127.0.0.1:9".parse().expect("an address");
    let net = bind(1, &peer_cert(ca, 1), ca, &[(2, nowhere), (3, nowhere)]);
    let address = net.local_addr().expect("bound");
    (net, address)
}

/// Opens a stream and sends a frame on it; whether it was answered.
async fn speak(net: &QuicNet, to: u64) -> Result<Bytes, NetError> {
    let (mut tx, mut rx) = net.connect(NodeId(to), Lane::Control).await?;
    tx.send(vec![Bytes::from_static(b"hel"), Bytes::from_static(b"lo")]).await?;
    let answer = tokio::time::timeout(PATIENCE, rx.recv()).await.expect("an answer or an end")?;
    answer.ok_or_else(|| NetError::Closed("no answer".into()))
}

/// Answers each stream with the peer's node id and its first frame.
fn echo(net: QuicNet) {
    tokio::spawn(async move {
        while let Ok((peer, (mut tx, mut rx))) = net.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(frame)) = rx.recv().await {
                    let from = Bytes::from(format!("{peer}:"));
                    if tx.send(vec![from, frame]).await.is_err() {
                        return;
                    }
                }
                tx.finish().await.ok();
            });
        }
    });
}

#[tokio::test]
async fn members_talk_and_are_known_by_their_certificates() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    echo(one);
    for node in [2, 3] {
        let net = bind(node, &peer_cert(&ca, node), &ca, &[(1, address)]);
        assert_eq!(speak(&net, 1).await.expect("answered"), format!("{node}:hello"));
    }
}

#[tokio::test]
async fn large_frames_of_many_streams_arrive_whole() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    echo(one);
    let two = bind(2, &peer_cert(&ca, 2), &ca, &[(1, address)]);
    let streams = (0..8_u8).map(|n| {
        let two = two.clone();
        async move {
            let lane = if n % 2 == 0 { Lane::Log } else { Lane::Bulk };
            let (mut tx, mut rx) = two.connect(NodeId(1), lane).await.expect("opened");
            let body = Bytes::from(vec![n; 3_000_000]);
            tx.send(vec![body.clone()]).await.expect("sent");
            tx.finish().await.expect("finished");
            let answer = rx.recv().await.expect("received").expect("a frame");
            assert_eq!(answer.strip_prefix(b"2:"), Some(&body[..]));
            assert_eq!(rx.recv().await.expect("an end"), None);
        }
    });
    tokio::time::timeout(PATIENCE, futures::future::join_all(streams)).await.expect("in time");
}

#[tokio::test]
async fn a_dropped_stream_is_no_end() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    let two = bind(2, &peer_cert(&ca, 2), &ca, &[(1, address)]);
    let (mut tx, _rx) = two.connect(NodeId(1), Lane::Log).await.expect("opened");
    tx.send(vec![Bytes::from_static(b"first")]).await.expect("sent");
    let (_, (_tx, mut rx)) = one.accept().await.expect("accepted");
    assert_eq!(rx.recv().await.expect("received"), Some(Bytes::from_static(b"first")));
    drop(tx);
    let end = tokio::time::timeout(PATIENCE, rx.recv()).await.expect("an end");
    assert!(matches!(end, Err(NetError::Closed(_))), "{end:?}");
}

/// A stranger's stream is never accepted, and the port goes on serving members.
async fn refused(ca: &Authority, one: QuicNet, address: SocketAddr, stranger: QuicNet) {
    let (seen, mut strangers) = tokio::sync::mpsc::unbounded_channel();
    let accepting = one.clone();
    tokio::spawn(async move {
        while let Ok((peer, (mut tx, mut rx))) = accepting.accept().await {
            seen.send(peer).ok();
            if let Ok(Some(frame)) = rx.recv().await {
                tx.send(vec![frame]).await.ok();
                tx.finish().await.ok();
            }
        }
    });
    let answer = speak(&stranger, 1).await;
    assert!(answer.is_err(), "a stranger was answered: {answer:?}");
    let member = bind(2, &peer_cert(ca, 2), ca, &[(1, address)]);
    speak(&member, 1).await.expect("members are served");
    assert_eq!(strangers.recv().await, Some(NodeId(2)));
    assert!(strangers.try_recv().is_err());
}

#[tokio::test]
async fn another_authority_is_refused() {
    let (ca, other) = (authority("peer"), authority("peer"));
    let (one, address) = node_one(&ca);
    // It trusts our authority, so that only our side can refuse.
    let stranger = bind(2, &peer_cert(&other, 2), &ca, &[(1, address)]);
    refused(&ca, one, address, stranger).await;
}

#[tokio::test]
async fn a_certificate_of_the_client_authority_is_refused() {
    let (ca, clients) = (authority("peer"), authority("client"));
    let (one, address) = node_one(&ca);
    let issued = clients.issue_server(&["localhost".into()], leaf()).expect("issued");
    refused(&ca, one, address, bind(2, &issued, &ca, &[(1, address)])).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    let day = Duration::from_secs(24 * 3600);
    let expired = Validity { not_before: SystemTime::now() - 2 * day, not_after: SystemTime::now() - day };
    let issued = ca.issue_peer(CLUSTER, NodeId(2), expired).expect("issued");
    refused(&ca, one, address, bind(2, &issued, &ca, &[(1, address)])).await;
}

/// More than a guest: as many as three groups need.
#[tokio::test]
async fn a_member_opens_many_streams() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    echo(one);
    let two = bind(2, &peer_cert(&ca, 2), &ca, &[(1, address)]);
    let mut open = Vec::new();
    for _ in 0..80 {
        let opened = tokio::time::timeout(PATIENCE, two.connect(NodeId(1), Lane::Control)).await;
        let (mut tx, mut rx) = opened.expect("not held back").expect("opened");
        tx.send(vec![Bytes::from_static(b"one more")]).await.expect("sent");
        assert_eq!(rx.recv().await.expect("received").expect("a frame"), "2:one more");
        open.push((tx, rx));
    }
}

/// It may ask to be taken in: whoever accepts its few streams sees to it that it does nothing else.
#[tokio::test]
async fn a_node_that_is_no_member_is_a_guest_with_few_streams() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    echo(one.clone());
    let nine = bind(9, &peer_cert(&ca, 9), &ca, &[(1, address)]);
    let mut open = Vec::new();
    for _ in 0..4 {
        let (mut tx, mut rx) = nine.connect(NodeId(1), Lane::Control).await.expect("opened");
        tx.send(vec![Bytes::from_static(b"may I")]).await.expect("sent");
        assert_eq!(rx.recv().await.expect("received").expect("a frame"), "9:may I");
        open.push((tx, rx));
    }
    let fifth = tokio::time::timeout(Duration::from_millis(200), nine.connect(NodeId(1), Lane::Control)).await;
    assert!(fifth.is_err(), "a guest opens as many streams as it likes");

    one.set_peers([(NodeId(9), address.to_string())].into());
    let end = tokio::time::timeout(PATIENCE, open[0].1.recv()).await.expect("an end");
    assert!(end.is_err(), "it connects anew, as a member: {end:?}");
    assert_eq!(speak(&nine, 1).await.expect("answered"), "9:hello");
}

#[tokio::test]
async fn another_cluster_under_the_same_authority_is_refused() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    let issued = ca.issue_peer(ClusterId([0x22; 16]), NodeId(2), leaf()).expect("issued");
    refused(&ca, one, address, bind(2, &issued, &ca, &[(1, address)])).await;
}

#[tokio::test]
async fn a_server_certificate_cannot_dial() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    let issued = ca.issue_server(&["localhost".into()], leaf()).expect("issued");
    refused(&ca, one, address, bind(2, &issued, &ca, &[(1, address)])).await;
}

#[tokio::test]
async fn a_removed_member_is_cut_off() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    echo(one.clone());
    let two = bind(2, &peer_cert(&ca, 2), &ca, &[(1, address)]);
    let (mut tx, mut rx) = two.connect(NodeId(1), Lane::Log).await.expect("opened");
    tx.send(vec![Bytes::from_static(b"still a member")]).await.expect("sent");
    assert_eq!(rx.recv().await.expect("received").expect("a frame"), "2:still a member");
    one.set_peers([(NodeId(3), "127.0.0.1:9".into())].into());
    let end = tokio::time::timeout(Duration::from_secs(1), rx.recv()).await.expect("at once, not after a timeout");
    assert!(end.is_err(), "{end:?}");
    assert!(one.connect(NodeId(2), Lane::Log).await.is_err(), "nor is it spoken to");
}

#[tokio::test]
async fn the_wrong_node_at_an_address_is_not_spoken_to() {
    let ca = authority("peer");
    let three = bind(3, &peer_cert(&ca, 3), &ca, &[(2, "127.0.0.1:9".parse().expect("an address"))]);
    let address = three.local_addr().expect("bound");
    echo(three);
    let two = bind(2, &peer_cert(&ca, 2), &ca, &[(1, address), (3, address)]);
    let error = speak(&two, 1).await.expect_err("node 3 is not node 1");
    assert!(matches!(error, NetError::Unreachable(_)), "{error}");
    assert_eq!(speak(&two, 3).await.expect("answered"), "2:hello");
}

#[tokio::test]
async fn garbage_is_ignored() {
    let ca = authority("peer");
    let (one, address) = node_one(&ca);
    echo(one);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    for len in [0_usize, 1, 20, 1_200, 1_400] {
        for fill in [0x00_u8, 0x40, 0xc0, 0xff] {
            socket.send_to(&vec![fill; len], address).expect("sent");
        }
    }
    let two = bind(2, &peer_cert(&ca, 2), &ca, &[(1, address)]);
    assert_eq!(speak(&two, 1).await.expect("answered"), "2:hello");
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_before_the_idle_timeout() {
    let ca = authority("peer");
    let cert = peer_cert(&ca, 1);
    let nowhere: SocketAddr = "127.0.0.1:9".parse().expect("an address");
    let settings = |listen: SocketAddr| QuicSettings {
        listen,
        cluster: CLUSTER,
        node: NodeId(1),
        peers: [(NodeId(2), nowhere.to_string())].into(),
        tls: material(&cert, &ca),
        groups: 3,
        initial_mtu: None,
    };
    // The first life of node 1 has a runtime of its own, so that it can end without a good-bye.
    let first = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("built");
    let address = first.block_on_elsewhere(settings("127.0.0.1:0".parse().expect("an address"))).await;
    let two = bind(2, &peer_cert(&ca, 2), &ca, &[(1, address)]);
    let (mut tx, mut rx) = two.connect(NodeId(1), Lane::Log).await.expect("opened");
    tx.send(vec![Bytes::from_static(b"before")]).await.expect("sent");
    assert_eq!(rx.recv().await.expect("received").expect("a frame"), "2:before");
    first.shutdown_background();
    let second = loop {
        match QuicNet::bind(settings(address)) {
            Ok(net) => break net,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    echo(second);
    tx.send(vec![Bytes::from_static(b"after")]).await.ok();
    let ended = tokio::time::timeout(Duration::from_secs(5), rx.recv()).await.expect("noticed in time");
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(speak(&two, 1).await.expect("answered"), "2:hello");
}

trait Elsewhere {
    async fn block_on_elsewhere(&self, settings: QuicSettings) -> SocketAddr;
}

impl Elsewhere for tokio::runtime::Runtime {
    async fn block_on_elsewhere(&self, settings: QuicSettings) -> SocketAddr {
        self.spawn(async move {
            let net = QuicNet::bind(settings).expect("bound");
            let address = net.local_addr().expect("bound");
            echo(net);
            address
        })
        .await
        .expect("bound")
    }
}
