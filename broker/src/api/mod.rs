//! The gRPC surface: thin adapters from `unibus.v1` to [`Service`]. No sockets here: production serves
//! the routes over TLS and on the Unix socket, the simulator feeds them requests in process.
//!
//! Who calls is taken from the metadata entry `authorization: Unibus <base64 of the encoded Token>`, or
//! from the [`LocalCaller`] extension, which only the Unix socket's server puts in.

mod auth;
mod cluster;
pub mod connection;
mod devices;
mod gate;
mod messages;
mod rooms;
mod status;
mod users;

use axum::middleware::from_fn_with_state;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use unibus_proto::limits::DECODE_BYTES_MAX;
use unibus_proto::v1::auth_service_server::AuthServiceServer;
use unibus_proto::v1::cluster_service_server::ClusterServiceServer;
use unibus_proto::v1::device_service_server::DeviceServiceServer;
use unibus_proto::v1::message_service_server::MessageServiceServer;
use unibus_proto::v1::room_service_server::RoomServiceServer;
use unibus_proto::v1::user_service_server::UserServiceServer;
use unibus_raft_store::env::Env;

use crate::service::{Caller, Failure, Outcome, Service};
pub use status::to_status;

/// Bytes of a message of `AuthService`, which is read before anybody has signed in: a first device list
/// with the bundles of all devices fits.
const SIGN_IN_BYTES_MAX: usize = 512 << 10;

/// Marks a request that came through the node's Unix socket.
#[derive(Clone, Copy, Debug)]
pub struct LocalCaller;

/// All services of `unibus.v1`.
pub fn routes<E: Env>(service: Service<E>) -> Routes {
    macro_rules! limited {
        ($server:ident) => {
            $server::new(Api { service: service.clone() })
                .max_decoding_message_size(DECODE_BYTES_MAX)
                .max_encoding_message_size(DECODE_BYTES_MAX)
        };
    }
    let routes = Routes::new(limited!(AuthServiceServer).max_decoding_message_size(SIGN_IN_BYTES_MAX))
        .add_service(limited!(UserServiceServer))
        .add_service(limited!(DeviceServiceServer))
        .add_service(limited!(RoomServiceServer))
        .add_service(limited!(MessageServiceServer))
        .add_service(limited!(ClusterServiceServer));
    routes.into_axum_router().layer(from_fn_with_state(service, gate::pass::<E>)).into()
}

/// Implements the generated traits.
struct Api<E: Env> {
    service: Service<E>,
}

/// Who calls: [`gate`] has put him into the request's extensions.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let unknown = || Failure::unauthenticated("the request did not pass the gate");
    request.extensions().get::<Caller>().cloned().ok_or_else(|| to_status(unknown()))
}

/// A service's answer as gRPC's.
fn answer<T>(outcome: Outcome<T>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(to_status)
}
