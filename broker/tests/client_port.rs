//! The client port, the local socket and the admin port over real sockets.
#![allow(clippy::disallowed_methods)] // Real sockets and time.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use unibus_broker::admin::{self, Probe, Probed};
use unibus_broker::api::connection::{Connection, NOT_SIGNED_IN_MAX};
use unibus_broker::certs::{Authority, Validity};
use unibus_broker::local::{LocalSocket, SOCKET_NAME};
use unibus_broker::metrics::Sample;
use unibus_broker::server::{self, ClientPort, Lifetimes};
use unibus_broker::tls::{self, Material};
use unibus_proto::id::ClusterId;

const PATIENCE: Duration = Duration::from_secs(15);

struct Port {
    address: SocketAddr,
    ca: Authority,
    count: server::ConnectionCount,
}

/// A client port that serves the health service.
async fn serve() -> Port {
    serve_with(Lifetimes::default()).await
}

async fn serve_with(lifetimes: Lifetimes) -> Port {
    let now = SystemTime::now();
    let ca = Authority::mint(ClusterId([1; 16]), "client", now).expect("minted");
    let issued = ca.issue_server(&["127.0.0.1".into(), "localhost".into()], Validity::leaf(now)).expect("issued");
    let material = Material {
        chain: vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).expect("PEM")],
        key: PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("PEM"),
        ca: CertificateDer::from_pem_slice(ca.issued().cert_pem.as_bytes()).expect("PEM"),
    };
    let tls = tls::client_server(&material).expect("a configuration");
    let port = ClientPort::bind("127.0.0.1:0".parse().expect("an address"), tls).await.expect("bound");
    let port = port.with_lifetimes(lifetimes);
    let (address, count) = (port.local_addr().expect("bound"), port.connections());
    let (_reporter, health) = tonic_health::server::health_reporter();
    // Stands in for a token: what the gate does with a good one.
    let signs_in = |request: tonic::Request<()>| {
        if request.metadata().contains_key("signs-in") {
            let connection = request.extensions().get::<Connection>().expect("every request has its connection");
            connection.used_by(&"alice".parse().expect("a handle")).expect("the first");
        }
        Ok(request)
    };
    let router = server::limited().add_service(InterceptedService::new(health, signs_in));
    tokio::spawn(port.serve(router, std::future::pending()));
    Port { address, ca, count }
}

async fn connect(address: SocketAddr, ca: &Authority) -> Result<Channel, String> {
    let tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.issued().cert_pem)).domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{address}")).and_then(|it| it.tls_config(tls));
    endpoint.map_err(|error| error.to_string())?.connect().await.map_err(|error| error.to_string())
}

async fn check(address: SocketAddr, ca: &Authority) -> Result<ServingStatus, String> {
    let channel = connect(address, ca).await?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    Ok(answer.map_err(|status| status.to_string())?.into_inner().status())
}

/// Whether the port hangs up by itself.
async fn hung_up(mut stream: impl tokio::io::AsyncRead + Unpin) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_client_that_pins_the_authority_is_served_and_no_other() {
    let port = serve().await;
    assert_eq!(check(port.address, &port.ca).await, Ok(ServingStatus::Serving));
    let other = Authority::mint(ClusterId([1; 16]), "client", SystemTime::now()).expect("minted");
    check(port.address, &other).await.expect_err("another authority");
}

#[tokio::test]
async fn plaintext_and_silence_are_cut_off() {
    let port = serve().await;
    let mut plain = TcpStream::connect(port.address).await.expect("connected");
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
    assert!(hung_up(plain).await, "plaintext is not served");
    let begun = Instant::now();
    let silent = TcpStream::connect(port.address).await.expect("connected");
    assert!(hung_up(silent).await, "a silent client is cut off");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(check(port.address, &port.ca).await, Ok(ServingStatus::Serving));
    let begun = Instant::now();
    while port.count.open() > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} connections are still counted", port.count.open());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn whoever_does_not_sign_in_is_cut_off_whatever_he_does() {
    let port = serve_with(Lifetimes { sign_in: Duration::from_secs(1), ..Lifetimes::default() }).await;
    // He speaks HTTP/2, answers pings, keeps a stream open.
    let channel = connect(port.address, &port.ca).await.expect("connected");
    let watch = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.expect("watching");
    let mut watch = watch.into_inner();
    watch.message().await.expect("the status").expect("one");
    let end = tokio::time::timeout(PATIENCE, watch.message()).await.expect("cut off");
    end.expect_err("not by a proper end");
    // He says nothing at all after the handshake.
    let silent = handshake(&port, &[b"h2"]).await;
    assert!(hung_up(silent).await);
}

#[tokio::test]
async fn a_signed_in_connection_lives_on_and_not_for_ever() {
    let [sign_in, whole] = [1, 3].map(Duration::from_secs);
    let port = serve_with(Lifetimes { sign_in, whole }).await;
    let begun = Instant::now();
    let channel = connect(port.address, &port.ca).await.expect("connected");
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("signs-in", "yes".parse().expect("a value"));
    let mut watch = HealthClient::new(channel).watch(request).await.expect("watching").into_inner();
    watch.message().await.expect("the status").expect("one");
    let end = tokio::time::timeout(PATIENCE, watch.message()).await.expect("cut off");
    end.expect_err("not by a proper end");
    assert!(begun.elapsed() >= whole - Duration::from_millis(500), "cut off after {:?}", begun.elapsed());
}

#[tokio::test]
async fn one_source_holds_a_bounded_number_of_connections_without_signing_in() {
    let port = serve().await;
    let mut silent = Vec::new();
    for _ in 0..NOT_SIGNED_IN_MAX {
        silent.push(TcpStream::connect(port.address).await.expect("connected"));
    }
    let begun = Instant::now();
    while port.count.open() < NOT_SIGNED_IN_MAX {
        assert!(begun.elapsed() < Duration::from_secs(4), "{} connections are counted", port.count.open());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begun = Instant::now();
    assert!(hung_up(TcpStream::connect(port.address).await.expect("connected")).await);
    assert!(begun.elapsed() < Duration::from_secs(2), "refused at once, not after the handshake's patience");
}

#[tokio::test]
async fn a_client_without_http2_is_cut_off() {
    let port = serve().await;
    let stream = handshake(&port, &[]).await;
    assert!(hung_up(stream).await);
}

async fn handshake(port: &Port, protocols: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(port.ca.issued().cert_pem.as_bytes()).expect("PEM")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let tcp = TcpStream::connect(port.address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS itself is fine")
}

#[tokio::test]
async fn the_local_socket_is_the_owners_and_replaces_a_left_over() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join(SOCKET_NAME);
    std::fs::write(&path, b"left over").expect("written");
    let socket = LocalSocket::bind(dir.path()).expect("bound");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    drop(socket);
    assert!(!path.exists());
}

struct Waiting;

impl Probe for Waiting {
    fn not_ready(&self) -> Vec<String> {
        vec!["waiting for n2".into(), "group s1 has no leader".into()]
    }

    fn sample(&self) -> Sample {
        Sample { connections: 7, ..Sample::default() }
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

#[tokio::test]
async fn the_admin_port_is_alive_before_the_node_and_says_why_it_is_not_ready() {
    let listener = admin::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    let (address, probed) = (listener.local_addr().expect("bound"), Probed::default());
    tokio::spawn(admin::serve(listener, probed.clone(), std::future::pending()));
    assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
    let starting = get(address, "/readyz").await;
    assert!(starting.starts_with("HTTP/1.1 503") && starting.contains("starting"), "{starting}");
    probed.set(Waiting);
    let waiting = get(address, "/readyz").await;
    assert!(waiting.contains("waiting for n2\ngroup s1 has no leader\n"), "{waiting}");
    assert!(get(address, "/metrics").await.contains("unibus_connections 7\n"));
}
