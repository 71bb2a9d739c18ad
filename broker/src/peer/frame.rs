//! Framing, sans-IO: a frame is its length (u32, big endian) and so many bytes.

use bytes::{Buf, Bytes, BytesMut};
use unibus_proto::limits::PEER_FRAME_BYTES_MAX;

/// Bytes of a frame's length.
pub const PREFIX_BYTES: usize = 4;

/// A length above the limit: the stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of {found} bytes, expected at most {PEER_FRAME_BYTES_MAX}")]
pub struct FrameTooLong {
    /// The length that was found.
    pub found: usize,
}

/// The length prefix of a frame made of `parts`.
pub fn prefix(parts: &[Bytes]) -> Result<Bytes, FrameTooLong> {
    let found = parts.iter().map(Bytes::len).sum();
    match u32::try_from(found) {
        Ok(len) if found <= PEER_FRAME_BYTES_MAX => Ok(Bytes::copy_from_slice(&len.to_be_bytes())),
        _ => Err(FrameTooLong { found }),
    }
}

/// Puts frames together from the chunks of a stream.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Takes the next chunk of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        if let Some(missing) = self.missing() {
            self.buffer.reserve(missing.max(chunk.len()));
        }
        self.buffer.extend_from_slice(chunk);
    }

    /// Bytes that the frame that was begun still lacks, so that a large one is moved once and not at each
    /// doubling.
    fn missing(&self) -> Option<usize> {
        let length = u32::from_be_bytes(*self.buffer.first_chunk::<PREFIX_BYTES>()?) as usize;
        (length <= PEER_FRAME_BYTES_MAX).then(|| (PREFIX_BYTES + length).saturating_sub(self.buffer.len()))
    }

    /// The next whole frame, if it is there.
    pub fn poll_frame(&mut self) -> Result<Option<Bytes>, FrameTooLong> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let found = u32::from_be_bytes(*prefix) as usize;
        if found > PEER_FRAME_BYTES_MAX {
            return Err(FrameTooLong { found });
        }
        if self.buffer.len() < PREFIX_BYTES + found {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(found).freeze()))
    }

    /// Whether the stream may end here: no frame has been begun.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(parts: &[Bytes]) -> Vec<u8> {
        [&prefix(parts).expect("short enough")[..], &parts.concat()].concat()
    }

    #[test]
    fn frames_survive_any_chunking() {
        let frames: Vec<Vec<Bytes>> = vec![
            vec![Bytes::from_static(b"one")],
            vec![],
            vec![Bytes::from_static(b"tw"), Bytes::from_static(b"o")],
            vec![Bytes::from(vec![7; 70_000])],
        ];
        let stream: Vec<u8> = frames.iter().flat_map(|parts| encode(parts)).collect();
        for size in [1, 2, 3, 5, 1_000, stream.len()] {
            let (mut decoder, mut decoded) = (FrameDecoder::default(), Vec::new());
            for chunk in stream.chunks(size) {
                decoder.push(chunk);
                while let Some(frame) = decoder.poll_frame().expect("within the limit") {
                    decoded.push(frame);
                }
            }
            assert!(decoder.is_empty());
            assert_eq!(decoded, frames.iter().map(|parts| Bytes::from(parts.concat())).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_it_is_buffered() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&u32::MAX.to_be_bytes());
        assert_eq!(decoder.poll_frame(), Err(FrameTooLong { found: u32::MAX as usize }));
        let long = [Bytes::from(vec![0; PEER_FRAME_BYTES_MAX]), Bytes::from_static(b"x")];
        assert_eq!(prefix(&long), Err(FrameTooLong { found: PEER_FRAME_BYTES_MAX + 1 }));
        assert!(prefix(&long[..1]).is_ok());
    }

    #[test]
    fn a_begun_frame_is_not_an_end() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&encode(&[Bytes::from_static(b"whole")])[..6]);
        assert_eq!(decoder.poll_frame(), Ok(None));
        assert!(!decoder.is_empty());
    }
}
