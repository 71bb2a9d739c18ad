//! A message on its way out.

use bytes::Bytes;
use unibus_proto::limits::{
    BODY_BYTES_MAX, HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX, HEADERS_BYTES_MAX, HEADERS_MAX,
};
use unibus_proto::v1::{Header, OutgoingMessage};

use crate::{Error, ErrorCode};

/// What a message takes in a request beside its body and headers, rounded up.
const FRAME_BYTES: usize = 32;

/// A message: a body, and headers that travel in clear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// At most 16 KiB together.
    pub headers: Vec<Header>,
    /// At most 1 MiB.
    pub body: Bytes,
}

impl Message {
    /// A message without headers.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { headers: Vec::new(), body: body.into() }
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }

    /// What a node would refuse is refused here, before it takes a number.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::new(ErrorCode::Invalid, format!("publish: {message}")));
        if self.body.len() > BODY_BYTES_MAX {
            return invalid(format!("the body has {} bytes, allowed are {BODY_BYTES_MAX}", self.body.len()));
        }
        if self.headers.len() > HEADERS_MAX {
            return invalid(format!("{} headers, allowed are {HEADERS_MAX}", self.headers.len()));
        }
        let headers_bytes: usize = self.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        if headers_bytes > HEADERS_BYTES_MAX {
            return invalid(format!("the headers have {headers_bytes} bytes, allowed are {HEADERS_BYTES_MAX}"));
        }
        for Header { name, value } in &self.headers {
            if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX || name.chars().any(char::is_control) {
                let shown: String = name.chars().take(40).collect();
                return invalid(format!(
                    "header name {shown:?}: expected 1 to {HEADER_NAME_BYTES_MAX} bytes without control characters"
                ));
            }
            if value.len() > HEADER_VALUE_BYTES_MAX {
                return invalid(format!(
                    "the value of header {name:?} has {} bytes, allowed are {HEADER_VALUE_BYTES_MAX}",
                    value.len()
                ));
            }
        }
        Ok(())
    }

    /// Bytes that it takes in a request, at most.
    pub(crate) fn size(&self) -> usize {
        let headers: usize =
            self.headers.iter().map(|header| header.name.len() + header.value.len() + FRAME_BYTES).sum();
        self.body.len() + headers + FRAME_BYTES
    }

    pub(crate) fn into_wire(self) -> OutgoingMessage {
        OutgoingMessage { headers: self.headers, body: self.body }
    }
}

macro_rules! bodies {
    ($($body:ty),*) => {
        $(impl From<$body> for Message {
            fn from(body: $body) -> Self {
                Self::new(body)
            }
        })*
    };
}

bodies!(Bytes, Vec<u8>, String, &'static [u8], &'static str);
