//! Splits a stream into lines that keep their terminators, in constant memory.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// A line that is too long is counted up to so many bytes, then called longer.
const COUNTED_BYTES_MAX: u64 = 1 << 30;

/// Why there is no next line.
#[derive(Debug)]
pub enum LineError {
    /// A line does not fit into a message.
    TooLong {
        /// Its number, from 1.
        line: u64,
        /// Its bytes, terminator included; not less than this when it is counted no further.
        bytes: u64,
    },
    /// The stream failed.
    Io(io::Error),
}

/// The lines of a stream.
pub struct Lines<R> {
    reader: R,
    limit: usize,
    number: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// Lines of at most `limit` bytes, terminator included.
    pub fn new(reader: R, limit: usize) -> Self {
        Self { reader, limit, number: 0 }
    }

    /// The next line with its terminator; a last line without one comes without. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let mut line = Vec::new();
        self.number += 1;
        loop {
            let chunk = self.reader.fill_buf().await.map_err(LineError::Io)?;
            if chunk.is_empty() {
                return Ok((!line.is_empty()).then_some(line));
            }
            let end = chunk.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(chunk.len());
            if line.len() + taken > self.limit {
                return Err(self.too_long(line.len() as u64).await);
            }
            line.extend_from_slice(&chunk[..taken]);
            self.reader.consume(taken);
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }

    /// Reads the rest of the line without keeping it, to tell its size.
    async fn too_long(&mut self, mut bytes: u64) -> LineError {
        while bytes < COUNTED_BYTES_MAX {
            let chunk = match self.reader.fill_buf().await {
                Ok(chunk) => chunk,
                Err(error) => return LineError::Io(error),
            };
            let end = chunk.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(chunk.len());
            bytes += taken as u64;
            self.reader.consume(taken);
            if end.is_some() || taken == 0 {
                break;
            }
        }
        LineError::TooLong { line: self.number, bytes }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn split(input: &[u8], buffer: usize, limit: usize) -> (Vec<Vec<u8>>, Option<LineError>) {
        let mut lines = Lines::new(BufReader::with_capacity(buffer, input), limit);
        let mut all = Vec::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => all.push(line),
                Ok(None) => return (all, None),
                Err(error) => return (all, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn bodies_joined_are_the_input_whatever_the_buffer() {
        for input in [&b"a\nbb\n\n\r\nlast"[..], b"one\n", b"", b"\n", b"no end", b"\xff\x00\n\xfe"] {
            for buffer in [1, 2, 3, 64] {
                let (lines, error) = split(input, buffer, 16).await;
                assert!(error.is_none());
                assert_eq!(lines.concat(), input);
                assert_eq!(lines.len(), input.split_inclusive(|&byte| byte == b'\n').count());
            }
        }
    }

    #[tokio::test]
    async fn too_long_line_is_named_after_those_before_it() {
        let (lines, error) = split(b"ok\n0123456789\nafter\n", 4, 8).await;
        assert_eq!(lines, [b"ok\n"]);
        assert!(matches!(error, Some(LineError::TooLong { line: 2, bytes: 11 })), "{error:?}");
        let (lines, error) = split(b"1234567\n12345678\n", 4, 8).await;
        assert_eq!(lines.len(), 1, "the terminator counts");
        assert!(matches!(error, Some(LineError::TooLong { line: 2, bytes: 9 })), "{error:?}");
    }
}
