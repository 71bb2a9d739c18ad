//! The gRPC surface: thin adapters from `unibus.v1` to [`Service`]. No sockets here: production serves
//! the routes over TLS and on the Unix socket, the simulator feeds them requests in process.
//!
//! Who calls is taken from the metadata entry `authorization: Unibus <base64 of the encoded Token>`, or
//! from the [`LocalCaller`] extension, which only the Unix socket's server puts in.

mod auth;
mod cluster;
mod devices;
mod messages;
mod rooms;
mod status;
mod users;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Extensions, Request, Response, Status};
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

/// Bytes of the `authorization` entry: a token of 4 KiB in base64.
const AUTHORIZATION_BYTES_MAX: usize = 6 << 10;
/// What stands before the token.
const SCHEME: &str = "Unibus ";

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
    Routes::new(limited!(AuthServiceServer))
        .add_service(limited!(UserServiceServer))
        .add_service(limited!(DeviceServiceServer))
        .add_service(limited!(RoomServiceServer))
        .add_service(limited!(MessageServiceServer))
        .add_service(limited!(ClusterServiceServer))
}

/// Implements the generated traits.
struct Api<E: Env> {
    service: Service<E>,
}

impl<E: Env> Api<E> {
    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        self.caller_of(request.metadata(), request.extensions()).await.map_err(to_status)
    }

    async fn caller_of(&self, metadata: &MetadataMap, extensions: &Extensions) -> Outcome<Caller> {
        if extensions.get::<LocalCaller>().is_some() {
            return Ok(Caller::Local);
        }
        self.service.authenticate(&token(metadata)?).await
    }
}

/// The encoded token of a request.
fn token(metadata: &MetadataMap) -> Outcome<Vec<u8>> {
    let entry = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let entry = entry.ok_or_else(|| {
        Failure::unauthenticated("authorization: not set, expected \"Unibus <base64 of a token>\"; sign in")
    })?;
    if entry.len() > AUTHORIZATION_BYTES_MAX {
        let found = entry.len();
        return Err(Failure::unauthenticated(format!(
            "authorization: found {found} bytes, at most {AUTHORIZATION_BYTES_MAX} are allowed"
        )));
    }
    let encoded = entry.strip_prefix(SCHEME).and_then(|encoded| STANDARD.decode(encoded.trim()).ok());
    encoded.ok_or_else(|| {
        Failure::unauthenticated("authorization: malformed, expected \"Unibus <base64 of a token>\"; sign in")
    })
}

/// A service's answer as gRPC's.
fn answer<T>(outcome: Outcome<T>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(to_status)
}

#[cfg(test)]
mod tests {
    use unibus_proto::code::ErrorCode;

    use super::*;

    #[test]
    fn the_token_is_taken_from_the_metadata() {
        let with = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().expect("ascii"));
            token(&metadata)
        };
        assert_eq!(with("Unibus AQID"), Ok(vec![1, 2, 3]));
        for wrong in ["Bearer AQID", "Unibus !", "", &"a".repeat(AUTHORIZATION_BYTES_MAX + 1)] {
            assert_eq!(with(wrong).expect_err("malformed").code, ErrorCode::Unauthenticated);
        }
        assert_eq!(token(&MetadataMap::new()).expect_err("missing").code, ErrorCode::Unauthenticated);
    }
}
