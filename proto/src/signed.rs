//! Signed documents (E2E 4.0): Ed25519 over
//! `"unibus/" || type || "/v1\0" || cluster id || SHA-256(payload)`, checked strictly
//! (`verify_strict`: no small-order keys, no malleable signatures).

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::id::ClusterId;
use crate::v1::{DeviceBundle, DeviceList, RosterEvent, Signature, Signed, TokenClaims};

/// A payload type that can be signed. The name is part of what is signed.
pub trait Document: Message + Default {
    /// The name in [`Signed::type`](Signed).
    const TYPE: &'static str;
}

impl Document for DeviceBundle {
    const TYPE: &'static str = "device-bundle";
}
impl Document for DeviceList {
    const TYPE: &'static str = "device-list";
}
impl Document for RosterEvent {
    const TYPE: &'static str = "roster-event";
}
impl Document for TokenClaims {
    const TYPE: &'static str = "token";
}

/// Why a signed document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Another type, or one that this version does not know.
    #[error("document type is {found:?}, expected {expected:?}")]
    WrongType {
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The payload cannot be decoded.
    #[error("{0} cannot be decoded")]
    Malformed(&'static str),
    /// The key that must have signed did not.
    #[error("{0} is not signed by the expected key")]
    Missing(&'static str),
    /// The signature does not match.
    #[error("{0} has a signature that does not match")]
    Bad(&'static str),
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn message<D: Document>(cluster: ClusterId, payload: &[u8]) -> Vec<u8> {
    [b"unibus/", D::TYPE.as_bytes(), b"/v1\0", &cluster.0, &sha256(payload)].concat()
}

impl Signed {
    /// Encodes and signs a document.
    pub fn sign<D: Document>(cluster: ClusterId, document: &D, keys: &[&SigningKey]) -> Self {
        let mut signed =
            Self { r#type: D::TYPE.into(), payload: document.encode_to_vec().into(), signatures: Vec::new() };
        for key in keys {
            signed.add_signature::<D>(cluster, key);
        }
        signed
    }

    /// Adds a signature over the payload as it is.
    pub fn add_signature<D: Document>(&mut self, cluster: ClusterId, key: &SigningKey) {
        let signature = key.sign(&message::<D>(cluster, &self.payload));
        self.signatures.push(Signature {
            public_key: Bytes::copy_from_slice(key.verifying_key().as_bytes()),
            signature: Bytes::copy_from_slice(&signature.to_bytes()),
        });
    }

    /// Decodes the payload without checking any signature: only to learn which key to check.
    pub fn decode_unverified<D: Document>(&self) -> Result<D, SignatureError> {
        if self.r#type != D::TYPE {
            return Err(SignatureError::WrongType { found: self.r#type.chars().take(40).collect(), expected: D::TYPE });
        }
        D::decode(self.payload.clone()).map_err(|_| SignatureError::Malformed(D::TYPE))
    }

    /// Checks that each of `keys` has signed, and decodes the payload.
    pub fn verify<D: Document>(&self, cluster: ClusterId, keys: &[&[u8]]) -> Result<D, SignatureError> {
        let document = self.decode_unverified::<D>()?;
        let message = message::<D>(cluster, &self.payload);
        for &key in keys {
            let signature = self
                .signatures
                .iter()
                .find(|signature| signature.public_key == key)
                .ok_or(SignatureError::Missing(D::TYPE))?;
            check(key, &message, &signature.signature).ok_or(SignatureError::Bad(D::TYPE))?;
        }
        Ok(document)
    }

    /// SHA-256 of the payload: what the next document of a chain names.
    pub fn payload_hash(&self) -> [u8; 32] {
        sha256(&self.payload)
    }
}

fn check(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = VerifyingKey::from_bytes(key.try_into().ok()?).ok()?;
    let signature = ed25519_dalek::Signature::from_slice(signature).ok()?;
    key.verify_strict(message, &signature).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> TokenClaims {
        TokenClaims { user: "alice".into(), issued_ms: 7, ..TokenClaims::default() }
    }

    #[test]
    fn verifies_what_it_signed_and_nothing_else() {
        let (alice, bob) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let (alice_key, bob_key) = (alice.verifying_key(), bob.verifying_key());
        let cluster = ClusterId([7; 16]);
        let signed = Signed::sign(cluster, &claims(), &[&alice]);
        assert_eq!(signed.verify::<TokenClaims>(cluster, &[alice_key.as_bytes()]), Ok(claims()));
        let missing = Err(SignatureError::Missing("token"));
        assert_eq!(signed.verify::<TokenClaims>(cluster, &[bob_key.as_bytes()]), missing);
        let bad = Err(SignatureError::Bad("token"));
        assert_eq!(signed.verify::<TokenClaims>(ClusterId([8; 16]), &[alice_key.as_bytes()]), bad);
        let mut altered = signed.clone();
        altered.payload = Bytes::from([&signed.payload[..], &[0x30, 1]].concat());
        assert_eq!(altered.verify::<TokenClaims>(cluster, &[alice_key.as_bytes()]), bad);
        assert!(matches!(
            signed.verify::<DeviceList>(cluster, &[alice_key.as_bytes()]),
            Err(SignatureError::WrongType { .. })
        ));
    }
}
