//! Signatures and keys that were found good are not computed again: an event is checked at admission, in meta and in
//! its shard, and each one carries the same device bundle. What is remembered is a digest over all that the
//! answer depends on, so the answer is the same with and without it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use ed25519_dalek::VerifyingKey;
use unibus_proto::id::ClusterId;
use unibus_proto::signed::{Document, SignatureError, sha256};
use unibus_proto::v1::Signed;

/// Digests that are kept, of the documents that were verified last.
const KEPT_MAX: usize = 8_192;

#[derive(Default)]
struct Known {
    digests: BTreeSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

/// Checks that each of `keys` has signed the document, and decodes it.
pub(crate) fn verify<D: Document>(cluster: ClusterId, signed: &Signed, keys: &[&[u8]]) -> Result<D, SignatureError> {
    let digest = digest::<D>(cluster, signed, keys);
    if is_known(&digest) {
        return signed.decode_unverified();
    }
    let document = signed.verify(cluster, keys)?;
    remember(digest);
    Ok(document)
}

/// Whether signatures can be trusted under an Ed25519 key: it is a point, and not one of small order.
pub(crate) fn is_usable(key: &[u8; 32]) -> bool {
    let digest = sha256(&[&b"key"[..], key].concat());
    if is_known(&digest) {
        return true;
    }
    let usable = VerifyingKey::from_bytes(key).is_ok_and(|point| !point.is_weak());
    if usable {
        remember(digest);
    }
    usable
}

fn is_known(digest: &[u8; 32]) -> bool {
    with_known(|known| known.digests.contains(digest))
}

fn remember(digest: [u8; 32]) {
    with_known(|known| {
        if known.digests.insert(digest) {
            known.order.push_back(digest);
        }
        if known.order.len() > KEPT_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.digests.remove(&oldest);
        }
    });
}

fn with_known<T>(read: impl FnOnce(&mut Known) -> T) -> T {
    read(KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Over everything, each part with its length before it.
fn digest<D: Document>(cluster: ClusterId, signed: &Signed, keys: &[&[u8]]) -> [u8; 32] {
    let signatures = signed.signatures.iter().flat_map(|one| [&one.public_key[..], &one.signature[..]]);
    let parts = [&cluster.0[..], D::TYPE.as_bytes(), signed.r#type.as_bytes(), &signed.payload[..]];
    let counts = [keys.len() as u64, signed.signatures.len() as u64];
    let mut all: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
    for part in parts.into_iter().chain(keys.iter().copied()).chain(signatures) {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part);
    }
    sha256(&all)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use unibus_proto::v1::TokenClaims;

    use super::*;

    #[test]
    fn a_key_is_usable_or_not_however_often_it_is_asked_for() {
        let weak = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let no_point = [2; 32];
        for _ in 0..2 {
            assert!(is_usable(SigningKey::from_bytes(&[1; 32]).verifying_key().as_bytes()));
            assert!(!is_usable(&weak), "the identity element");
            assert!(VerifyingKey::from_bytes(&no_point).is_err() && !is_usable(&no_point));
        }
    }

    #[test]
    fn what_was_good_stays_good_and_any_change_is_noticed() {
        let (alice, bob) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let (alices, bobs) = (alice.verifying_key(), bob.verifying_key());
        let claims = TokenClaims { user: "alice".into(), ..TokenClaims::default() };
        let (cluster, other) = (ClusterId([7; 16]), ClusterId([8; 16]));
        let signed = Signed::sign(cluster, &claims, &[&alice]);
        for _ in 0..2 {
            assert_eq!(verify::<TokenClaims>(cluster, &signed, &[alices.as_bytes()]), Ok(claims.clone()));
            assert!(verify::<TokenClaims>(other, &signed, &[alices.as_bytes()]).is_err());
            assert!(verify::<TokenClaims>(cluster, &signed, &[bobs.as_bytes()]).is_err());
            assert!(verify::<TokenClaims>(cluster, &signed, &[alices.as_bytes(), bobs.as_bytes()]).is_err());
            let mut altered = signed.clone();
            altered.payload = [&signed.payload[..], &[0x30, 1]].concat().into();
            assert!(verify::<TokenClaims>(cluster, &altered, &[alices.as_bytes()]).is_err());
            let mut altered = signed.clone();
            altered.signatures[0].signature = vec![3; 64].into();
            assert!(verify::<TokenClaims>(cluster, &altered, &[alices.as_bytes()]).is_err());
        }
    }
}
