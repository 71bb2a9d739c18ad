//! The files that the SDK, the CLI and `unibus-node dev` share: identities (secret, 0600), public
//! cards for `user add --key`, and profiles. All are JSON with an explicit format name.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use curve25519_dalek::montgomery::MontgomeryPoint;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, Zeroizing};

use crate::id::{ClusterId, DeviceId, Handle};
use crate::signed::sha256;
use crate::v1::{ActorProof, DeviceBundle, DeviceKind, DeviceList, Signed};

const IDENTITY_FORMAT: &str = "unibus.identity.v1";
const CARD_FORMAT: &str = "unibus.public.v1";
const PROFILE_FORMAT: &str = "unibus.profile.v1";
/// No such file is larger; anything above is not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// Others may read a secret.
    #[error("{path}: mode {mode:o} lets others read the secret keys in it, expected 600; run: chmod 600 {path}")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is there already and is not overwritten.
    #[error("{path}: exists and is not overwritten; choose another name or move it away")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It is not what it should be.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected. Never holds a value from the file.
        problem: String,
    },
}

/// A user's keys and one device of his: who signs in.
///
/// The user key is the root of trust; the device key signs tokens and documents; the Curve25519 key is
/// that of the device's Olm account.
#[derive(Clone)]
pub struct Identity {
    /// The user's name.
    pub handle: Handle,
    /// Signs devices.
    pub user_key: SigningKey,
    /// Signs tokens and roster events.
    pub device_key: SigningKey,
    /// What the device is used by.
    pub kind: DeviceKind,
    /// When the device was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
    curve25519_secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("handle", &self.handle)
            .field("device", &self.device_id())
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: String,
    handle: String,
    device_kind: String,
    created_ms: u64,
    user_key: String,
    device_key: String,
    curve25519_key: String,
}

impl Drop for IdentityFile {
    fn drop(&mut self) {
        self.user_key.zeroize();
        self.device_key.zeroize();
        self.curve25519_key.zeroize();
    }
}

impl Identity {
    /// Mints keys from `fill`, which must be fit for keys.
    pub fn generate(handle: Handle, kind: DeviceKind, now_ms: u64, mut fill: impl FnMut(&mut [u8])) -> Self {
        let mut secret = || {
            let mut bytes = Zeroizing::new([0; 32]);
            fill(&mut *bytes);
            bytes
        };
        Self {
            handle,
            user_key: SigningKey::from_bytes(&secret()),
            device_key: SigningKey::from_bytes(&secret()),
            kind,
            created_ms: now_ms,
            curve25519_secret: secret(),
        }
    }

    /// Reads an identity file; one that others may read is refused.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let text = Zeroizing::new(read(path, true)?);
        let file: IdentityFile = parse(path, &text, IDENTITY_FORMAT)?;
        let malformed = |problem: String| FileError::Malformed { path: path.into(), problem };
        let key = |name: &str, text: &str| {
            let mut bytes = Zeroizing::new([0; 32]);
            hex::decode_to_slice(text, &mut *bytes)
                .map_err(|_| malformed(format!("{name} is not 64 hexadecimal digits")))?;
            Ok::<_, FileError>(bytes)
        };
        Ok(Self {
            handle: file.handle.parse().map_err(|error| malformed(format!("{error}")))?,
            user_key: SigningKey::from_bytes(&*key("user_key", &file.user_key)?),
            device_key: SigningKey::from_bytes(&*key("device_key", &file.device_key)?),
            kind: DeviceKind::from_str_name(&file.device_kind)
                .ok_or_else(|| malformed(format!("device_kind {:?} is not known", file.device_kind)))?,
            created_ms: file.created_ms,
            curve25519_secret: key("curve25519_key", &file.curve25519_key)?,
        })
    }

    /// Writes the identity with mode 0600, fsynced; an existing file is never overwritten.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        let file = IdentityFile {
            format: IDENTITY_FORMAT.into(),
            handle: self.handle.as_str().into(),
            device_kind: self.kind.as_str_name().into(),
            created_ms: self.created_ms,
            user_key: hex::encode(self.user_key.as_bytes()),
            device_key: hex::encode(self.device_key.as_bytes()),
            curve25519_key: hex::encode(self.curve25519_secret.as_slice()),
        };
        write_new(path, &Zeroizing::new(to_json(&file)))
    }

    /// The device's id.
    pub fn device_id(&self) -> DeviceId {
        DeviceId::of_keys(self.device_key.verifying_key().as_bytes(), &self.curve25519_key())
    }

    /// The device's public Curve25519 key.
    pub fn curve25519_key(&self) -> [u8; 32] {
        MontgomeryPoint::mul_base_clamped(*self.curve25519_secret).to_bytes()
    }

    /// What others may know: for `user add --key FILE`.
    pub fn public_card(&self) -> PublicCard {
        PublicCard { handle: self.handle.clone(), user_key: self.user_key.verifying_key().to_bytes() }
    }

    /// The device's bundle, signed by the device and by the user key. Signing the same twice gives the
    /// same bytes.
    pub fn bundle(&self, cluster: ClusterId) -> Signed {
        let bundle = DeviceBundle {
            user: self.handle.as_str().into(),
            user_key_fingerprint: Bytes::copy_from_slice(&sha256(self.user_key.verifying_key().as_bytes())),
            device_id: self.device_id().to_bytes(),
            ed25519_key: Bytes::copy_from_slice(self.device_key.verifying_key().as_bytes()),
            curve25519_key: Bytes::copy_from_slice(&self.curve25519_key()),
            kind: self.kind.into(),
            owner: String::new(),
            algorithms: Vec::new(),
            created_ms: self.created_ms,
            expires_ms: 0,
        };
        Signed::sign(cluster, &bundle, &[&self.device_key, &self.user_key])
    }

    /// The user's first device list, of this device alone, with its bundle.
    pub fn device_list(&self, cluster: ClusterId) -> (Signed, Vec<Signed>) {
        let bundle = self.bundle(cluster);
        let list = DeviceList {
            user: self.handle.as_str().into(),
            version: 1,
            previous_hash: Bytes::new(),
            bundle_hashes: vec![Bytes::copy_from_slice(&bundle.payload_hash())],
            ended: Vec::new(),
        };
        (Signed::sign(cluster, &list, &[&self.user_key]), vec![bundle])
    }

    /// What shows that this device belongs to this user.
    pub fn actor_proof(&self, cluster: ClusterId) -> ActorProof {
        ActorProof {
            user_key: Bytes::copy_from_slice(self.user_key.verifying_key().as_bytes()),
            bundle: Some(self.bundle(cluster)),
        }
    }
}

/// The public half of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicCard {
    /// The user's name, as he chose it.
    pub handle: Handle,
    /// His Ed25519 user key.
    pub user_key: [u8; 32],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CardFile {
    format: String,
    handle: String,
    user_key: String,
}

impl PublicCard {
    /// SHA-256 of the user key, in hexadecimal: what people compare.
    pub fn fingerprint(&self) -> String {
        hex::encode(sha256(&self.user_key))
    }

    /// Reads a card.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let file: CardFile = parse(path, &read(path, false)?, CARD_FORMAT)?;
        let malformed = |problem: String| FileError::Malformed { path: path.into(), problem };
        let mut user_key = [0; 32];
        hex::decode_to_slice(&file.user_key, &mut user_key)
            .map_err(|_| malformed("user_key is not 64 hexadecimal digits".into()))?;
        Ok(Self { handle: file.handle.parse().map_err(|error| malformed(format!("{error}")))?, user_key })
    }

    /// Writes the card; an existing file is never overwritten.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        let (handle, user_key) = (self.handle.as_str().into(), hex::encode(self.user_key));
        write_new(path, &to_json(&CardFile { format: CARD_FORMAT.into(), handle, user_key }))
    }
}

/// How a client reaches a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    format: String,
    /// Whom to sign in as: an [`Identity`] file.
    pub identity: PathBuf,
    /// The certificate authority that the nodes are pinned to, PEM.
    pub ca: PathBuf,
    /// host:port of nodes' gRPC listeners; any of them will do.
    pub nodes: Vec<String>,
}

impl Profile {
    /// A profile.
    pub fn new(identity: PathBuf, ca: PathBuf, nodes: Vec<String>) -> Self {
        Self { format: PROFILE_FORMAT.into(), identity, ca, nodes }
    }

    /// Reads a profile.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        parse(path, &read(path, false)?, PROFILE_FORMAT)
    }

    /// Writes a profile, replacing an older one atomically.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        let fail = |error| FileError::Io { path: path.into(), error };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = fs::write(&fresh, to_json(self)).and_then(|()| fs::rename(&fresh, path));
        written.map_err(fail)
    }
}

/// Where profiles live: `$XDG_CONFIG_HOME/unibus`, else `~/.config/unibus`.
pub fn config_dir() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("XDG_CONFIG_HOME").or_else(|| from("HOME").map(|home| home.join(".config"))).map(|dir| dir.join("unibus"))
}

/// The file of a profile.
pub fn profile_path(config_dir: &Path, name: &str) -> PathBuf {
    config_dir.join("profiles").join(format!("{name}.json"))
}

fn read(path: &Path, secret: bool) -> Result<String, FileError> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |error| FileError::Io { path: path.into(), error };
    let file = File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o777;
    if secret && mode & 0o077 != 0 {
        return Err(FileError::Mode { path: path.into(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str, format: &str) -> Result<T, FileError> {
    #[derive(Deserialize)]
    struct Format {
        format: Option<String>,
    }
    // The parser's own message may quote the value at fault, which may be a key: only its place is told.
    let malformed = |problem| FileError::Malformed { path: path.into(), problem };
    let place = |error: serde_json::Error| {
        malformed(format!("line {}, column {}: not a file of format {format:?}", error.line(), error.column()))
    };
    let found = serde_json::from_str::<Format>(text).map_err(place)?.format;
    if found.as_deref() != Some(format) {
        return Err(malformed(format!("format is {}, expected {format:?}", found.map_or("missing", |_| "another"))));
    }
    serde_json::from_str(text).map_err(place)
}

fn to_json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("strings and numbers always serialize");
    text.push('\n');
    text
}

fn write_new(path: &Path, text: &str) -> Result<(), FileError> {
    use std::os::unix::fs::OpenOptionsExt;
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists { path: path.into() },
        _ => FileError::Io { path: path.into(), error },
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)
}

#[cfg(test)]
mod tests;
