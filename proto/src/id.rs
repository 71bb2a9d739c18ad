//! Identifiers. Each is a value of its own type, so that a room cannot be passed for a device.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::limits::HANDLE_BYTES_MAX;

/// A value that is not a valid identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: found {found}, expected {expected}")]
pub struct InvalidId {
    /// The kind of identifier.
    pub what: &'static str,
    /// What was given.
    pub found: String,
    /// What is allowed.
    pub expected: &'static str,
}

/// A node of the cluster; 0 is no node. Never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

/// A Raft group: 0 is meta, 1.. are the shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group of users, nodes and the room directory.
    pub const META: Self = Self(0);

    /// Whether this is the meta group.
    pub fn is_meta(self) -> bool {
        self == Self::META
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_meta() { f.write_str("meta") } else { write!(f, "s{}", self.0) }
    }
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Parses the bytes of a message field.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes.try_into().map(Self).map_err(|_| InvalidId {
                    what: $what,
                    found: format!("{} bytes", bytes.len()),
                    expected: concat!(stringify!($len), " bytes"),
                })
            }

            /// The bytes, for a message field.
            pub fn to_bytes(self) -> Bytes {
                Bytes::copy_from_slice(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId {
                    what: $what,
                    found: text.chars().take(80).collect(),
                    expected: concat!("twice ", stringify!($len), " hexadecimal digits"),
                };
                // `from_str_radix` would take a sign for a digit.
                if text.len() != 2 * $len || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(invalid());
                }
                let mut id = [0; $len];
                for (byte, at) in id.iter_mut().zip((0..).step_by(2)) {
                    *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| invalid())?;
                }
                Ok(Self(id))
            }
        }
    };
}

bytes_id!(
    /// A cluster; part of every signature.
    ClusterId, 16, "cluster id"
);
bytes_id!(
    /// The uuid that a node minted for its data directory: another disk is another one.
    DirectoryId, 16, "directory id"
);
bytes_id!(
    /// A room, minted by its creator.
    RoomId, 16, "room id"
);
bytes_id!(
    /// A device: the first 16 bytes of SHA-256(ed25519 key || curve25519 key).
    DeviceId, 16, "device id"
);
bytes_id!(
    /// A producer of messages: random, or the hash of a name.
    ProducerId, 8, "producer id"
);
bytes_id!(
    /// A mutation that may be retried.
    RequestId, 16, "request id"
);

impl DeviceId {
    /// The id that belongs to a device's two public keys (E2E 4.1).
    pub fn of_keys(ed25519: &[u8; 32], curve25519: &[u8; 32]) -> Self {
        let hash = Sha256::new().chain_update(ed25519).chain_update(curve25519).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }
}

/// A user's unique name: 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(Box<str>);

impl Handle {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Handle {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let starts = text.chars().next().is_some_and(word);
        let rest = text.chars().all(|c| word(c) || matches!(c, '.' | '_' | '-'));
        if starts && rest && text.len() <= HANDLE_BYTES_MAX {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId {
                what: "handle",
                found: format!("{:?}", text.chars().take(80).collect::<String>()),
                expected: "1 to 64 of a-z 0-9 . _ -, starting with a letter or digit",
            })
        }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
