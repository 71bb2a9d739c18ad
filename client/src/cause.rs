//! The cause of a transport error in a few words: the stack below says it three times over, or not at all.

use std::error::Error;
use std::io::{self, ErrorKind};

/// What the nodes' certificates are checked against, in words.
const UNKNOWN_AUTHORITY: &str = "its certificate is not from the certificate authority that this client trusts; \
                                 give the client CA of this cluster";

const NO_TLS: &str = "what answers there does not speak TLS; is it the client port of a node?";

/// How the layers below say that the other side ended: rustls adds the address of its manual.
const GONE: [&str; 3] = ["broken pipe", "connection closed", "peer closed connection"];

/// The cause at the bottom of an error's chain.
pub(crate) fn cause(error: &(dyn Error + 'static)) -> String {
    let chain = || std::iter::successors(Some(error), |link: &&(dyn Error + 'static)| (*link).source());
    let known = chain().filter_map(|link| link.downcast_ref::<io::Error>()).find_map(|io| in_words(io.kind()));
    if let Some(words) = known {
        return words.into();
    }
    let deepest = chain().last().map(ToString::to_string).unwrap_or_default();
    match deepest.as_str() {
        text if text.contains("UnknownIssuer") || text.contains("BadSignature") => UNKNOWN_AUTHORITY.into(),
        text if text.contains("InvalidContentType") => NO_TLS.into(),
        text if text.contains("deadline has elapsed") => "no answer in time".into(),
        text if GONE.iter().any(|gone| text.contains(gone)) => "the node is gone".into(),
        text => without_number(text).into(),
    }
}

fn in_words(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => "connection reset",
        ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => "the node is gone",
        ErrorKind::TimedOut => "no answer in time",
        ErrorKind::HostUnreachable => "no route to the host",
        ErrorKind::NetworkUnreachable => "no route to its network",
        _ => return None,
    })
}

/// Without the operating system's number of the error, which says nothing more.
fn without_number(text: &str) -> &str {
    text.find(" (os error ").map_or(text, |at| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(Box<dyn Error + Send + Sync>);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("transport error")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    fn of(inner: impl Into<Box<dyn Error + Send + Sync>>) -> String {
        cause(&Outer(Box::new(Outer(inner.into()))))
    }

    #[test]
    fn the_deepest_cause_is_told_once_and_in_words() {
        assert_eq!(of(io::Error::from_raw_os_error(111)), "connection refused");
        assert_eq!(of(io::Error::from(ErrorKind::UnexpectedEof)), "the node is gone");
        assert_eq!(
            of("failed to lookup address: Name or service not known"),
            "failed to lookup address: Name or service not known"
        );
        assert_eq!(of("stream closed because of a broken pipe"), "the node is gone");
        assert_eq!(of("peer closed connection without sending TLS close_notify: https://..."), "the node is gone");
        assert_eq!(of("some error (os error 7)"), "some error");
        assert!(of("received corrupt message of type InvalidContentType").contains("TLS"));
        assert!(of("invalid peer certificate: UnknownIssuer").contains("certificate authority"));
    }
}
