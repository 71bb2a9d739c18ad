//! Any RPC by its path, with the bytes of its request: what the matrix sends, it sends as a client would.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes};
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::{Request, Status};
use unibus_broker::api::LocalCaller;

/// What a caller shows.
#[derive(Clone, Debug)]
pub enum Credential {
    Nothing,
    Token(Bytes),
    Local,
}

/// Messages as their bytes.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Opens a call; requests may come one after another.
pub async fn open(
    routes: &Routes,
    rpc: &str,
    credential: &Credential,
    requests: BoxStream<'static, Bytes>,
) -> Result<Streaming<Bytes>, Status> {
    let mut request = Request::new(requests);
    match credential {
        Credential::Nothing => {}
        Credential::Local => drop(request.extensions_mut().insert(LocalCaller)),
        Credential::Token(token) => {
            let value = MetadataValue::try_from(format!("Unibus {}", STANDARD.encode(token))).unwrap();
            request.metadata_mut().insert("authorization", value);
        }
    }
    let mut client = Grpc::new(routes.clone());
    client.ready().await.expect("routes are always ready");
    let path = format!("/unibus.v1.{rpc}").parse().unwrap();
    Ok(client.streaming(request, path, Raw).await?.into_inner())
}

/// The first answer to one request.
pub async fn call(routes: &Routes, rpc: &str, credential: &Credential, request: Bytes) -> Result<Bytes, Status> {
    let requests = futures::stream::once(std::future::ready(request)).boxed();
    let mut answers = open(routes, rpc, credential, requests).await?;
    answers.message().await?.ok_or_else(|| Status::unknown("the stream ended without an answer"))
}
