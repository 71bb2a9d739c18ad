//! `unibus-node admin add`: the first admin of a cluster, through the local socket of one of its nodes.
//! `dev` makes its admin the same way.
#![allow(clippy::disallowed_methods)] // A tool for operators: sockets and time.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use unibus_proto::files::PublicCard;
use unibus_proto::v1::user_service_client::UserServiceClient;
use unibus_proto::v1::{AddUserRequest, AddUserResponse, Signed, UserRole, UserStatus};
use unibus_raft_store::env::Rng;

use crate::cli::AdminAdd;
use crate::config::{self, NodeFile};
use crate::env::SystemRng;
use crate::local::SOCKET_NAME;

const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `admin add`.
pub async fn run(args: &AdminAdd) -> Result<(), String> {
    let card = PublicCard::load(&args.key)
        .map_err(|error| format!("--key: {error}; `unibusctl identity new HANDLE` makes HANDLE.pub"))?;
    let overrides = config::env_overrides(std::env::vars()).map_err(|error| error.to_string())?;
    let file = config::load(&args.config, &overrides).map_err(|error| error.to_string())?;
    let folder = args.config.parent().unwrap_or(Path::new(""));
    let answer = add(&folder.join(&file.data_dir).join(SOCKET_NAME), &card, None).await?;
    let user = answer.user.unwrap_or_default();
    if user.role() != UserRole::Admin || user.status() != UserStatus::Active {
        return Err(format!(
            "admin add: user {} was there already and is no active admin; an admin can change that: unibusctl user \
             role {0} admin, unibusctl user reinstate {0}",
            card.handle
        ));
    }
    let what = if answer.created { "is an admin of the cluster now" } else { "was an admin already" };
    println!("{} {what}, key {}", card.handle, card.fingerprint());
    eprintln!("{}", next_steps(&card, &args.config, &file));
    Ok(())
}

fn next_steps(card: &PublicCard, config: &Path, file: &NodeFile) -> String {
    let ca = config.parent().unwrap_or(Path::new("")).join(&file.tls.client_ca);
    let nodes: Vec<String> = file.cluster.node.iter().map(|node| format!("--node {}", node.client)).collect();
    format!(
        "next, where {0}.identity and a copy of {1} are:\n  \
         unibusctl profile add {0} --identity {0}.identity --ca {2} {3}\n  unibusctl --profile {0} status",
        card.handle,
        ca.display(),
        file.tls.client_ca.file_name().unwrap_or_default().display(),
        nodes.join(" "),
    )
}

/// Adds an admin through a node's local socket. `devices` may be left to his first sign-in.
pub(crate) async fn add(
    socket: &Path,
    card: &PublicCard,
    devices: Option<(Signed, Vec<Signed>)>,
) -> Result<AddUserResponse, String> {
    check_socket(socket)?;
    let (device_list, bundles) = devices.unzip();
    let mut request_id = [0; 16];
    SystemRng::default().fill(&mut request_id);
    let request = AddUserRequest {
        request_id: Bytes::copy_from_slice(&request_id),
        handle: card.handle.to_string(),
        user_key: Bytes::copy_from_slice(&card.user_key),
        role: UserRole::Admin.into(),
        device_list,
        bundles: bundles.unwrap_or_default(),
    };
    let begun = tokio::time::Instant::now();
    let mut client = UserServiceClient::new(channel(socket)?);
    loop {
        match client.add_user(request.clone()).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) if may_pass(&status) && begun.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            Err(status) => {
                let (socket, why) = (socket.display(), status.message());
                let hint = if may_pass(&status) { "; a new cluster forms once all its nodes run" } else { "" };
                return Err(format!("add admin {} through {socket}: {why}{hint}", card.handle));
            }
        }
    }
}

/// An election may be under way, or the answer was lost; the request id makes it safe to ask again.
fn may_pass(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::DeadlineExceeded)
}

/// Says in words what keeps this program from the node.
fn check_socket(socket: &Path) -> Result<(), String> {
    let remedy = match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            "run this as the node's user or as root".to_owned()
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            "the node does not run here: start it; its log and /readyz of its admin port say what it waits for"
                .to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(format!("local socket {}: cannot be opened; {remedy}", socket.display()))
}

fn channel(socket: &Path) -> Result<Channel, String> {
    let socket = socket.to_owned();
    // The name is never looked up: the connector goes to the socket.
    let endpoint = Endpoint::try_from("http://local").map_err(|error| error.to_string())?.timeout(PATIENCE);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })))
}
