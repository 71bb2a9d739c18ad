//! The production platform over real sockets: what cannot be reached is told from what was lost.

use std::net::TcpListener;
use std::time::Duration;

use unibus_client::proto::code::Outcome;
use unibus_client::proto::files::Identity;
use unibus_client::proto::v1::DeviceKind;
use unibus_client::{Client, ClientConfig, Error, ErrorCode, TokioPlatform};

async fn refused(platform: TokioPlatform, address: &str) -> Error {
    let identity = Identity::generate("alice".parse().unwrap(), DeviceKind::Person, 7, |bytes| bytes.fill(1));
    let config = ClientConfig::new([address]).patience(Duration::from_millis(300));
    Client::connect(platform, config, identity).await.unwrap_err()
}

#[tokio::test]
async fn a_refused_connection_is_unreachable() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = refused(TokioPlatform::without_tls(), &address).await;
    assert_eq!((error.code, error.outcome), (ErrorCode::Unreachable, Outcome::None), "{error}");
    assert_eq!(error.message, format!("node {address} cannot be reached: connection refused"));
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_an_error_not_a_hang() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::Builder::new().spawn(move || listener.incoming().for_each(drop)).unwrap();
    let error = refused(TokioPlatform::new(""), &address).await;
    assert_eq!(error.code, ErrorCode::Unreachable, "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_is_said_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::Builder::new().spawn(move || listener.incoming().for_each(drop)).unwrap();
    let error = refused(TokioPlatform::without_tls(), &address).await;
    assert!(error.message.contains(&address), "{error}");
    for noise in ["h2", "transport error", "os error", "Unknown error"] {
        assert!(!error.message.contains(noise), "{error}");
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_said() {
    let error = refused(TokioPlatform::without_tls(), "not an address").await;
    assert!(error.message.contains("not an address"), "{error}");
}

#[tokio::test]
async fn a_missing_authority_names_the_file() {
    let error = TokioPlatform::from_ca_file("/nonexistent/ca.pem".as_ref()).unwrap_err();
    assert!(error.code == ErrorCode::Invalid && error.message.contains("/nonexistent/ca.pem"), "{error}");
}
