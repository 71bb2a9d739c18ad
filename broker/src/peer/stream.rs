//! The two halves of a QUIC stream as streams of frames.

use bytes::Bytes;
use quinn::VarInt;
use unibus_raft_store::env::{FrameRx, FrameTx, NetError};

use super::frame::{self, FrameDecoder};

/// The sending half of a stream.
pub struct QuicTx {
    stream: quinn::SendStream,
    /// A frame was begun and not ended (its future was dropped): nothing may follow.
    broken: bool,
    finished: bool,
}

impl QuicTx {
    pub(super) fn new(stream: quinn::SendStream) -> Self {
        Self { stream, broken: false, finished: false }
    }
}

impl Drop for QuicTx {
    fn drop(&mut self) {
        if !self.finished {
            // Refused only when the stream has ended already.
            drop(self.stream.reset(VarInt::from_u32(0)));
        }
    }
}

impl FrameTx for QuicTx {
    async fn send(&mut self, mut parts: Vec<Bytes>) -> Result<(), NetError> {
        if self.broken {
            return Err(NetError::Closed("an earlier frame was not sent to its end".into()));
        }
        let prefix = frame::prefix(&parts).map_err(|error| NetError::Malformed(error.to_string()))?;
        parts.insert(0, prefix);
        self.broken = true;
        self.stream.write_all_chunks(&mut parts).await.map_err(|error| NetError::Closed(error.to_string()))?;
        self.broken = false;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), NetError> {
        if self.broken {
            return Err(NetError::Closed("an earlier frame was not sent to its end".into()));
        }
        self.stream.finish().map_err(|error| NetError::Closed(error.to_string()))?;
        self.finished = true;
        Ok(())
    }
}

/// The receiving half of a stream. Dropping a waiting `recv` loses nothing.
pub struct QuicRx {
    stream: quinn::RecvStream,
    decoder: FrameDecoder,
}

impl QuicRx {
    pub(super) fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, decoder: FrameDecoder::default() }
    }
}

impl FrameRx for QuicRx {
    async fn recv(&mut self) -> Result<Option<Bytes>, NetError> {
        loop {
            let frame = self.decoder.poll_frame().map_err(|error| NetError::Malformed(error.to_string()))?;
            if frame.is_some() {
                return Ok(frame);
            }
            match self.stream.read_chunk(usize::MAX, true).await {
                Ok(Some(chunk)) => self.decoder.push(&chunk.bytes),
                Ok(None) if self.decoder.is_empty() => return Ok(None),
                Ok(None) => return Err(NetError::Closed("the stream ended within a frame".into())),
                Err(error) => return Err(NetError::Closed(error.to_string())),
            }
        }
    }
}
