//! The state hash: additive over rows, so it costs only the rows that changed, does not depend on the
//! order of changes, and a scan of any copy of the rows must add up to the same number.

use std::fmt;

use bytes::Bytes;

/// Sum of the keyed hashes of rows, modulo 2^256 (little-endian).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct StateHash(pub [u8; 32]);

impl StateHash {
    /// The hash of a set of rows.
    pub fn of<'a>(rows: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> Self {
        let mut sum = Self::default();
        rows.into_iter().for_each(|(key, value)| sum.add_row(key, value));
        sum
    }

    /// Counts a row in.
    pub fn add_row(&mut self, key: &[u8], value: &[u8]) {
        let mut carry = 0u16;
        for (digit, add) in self.0.iter_mut().zip(row_hash(key, value)) {
            carry += u16::from(*digit) + u16::from(add);
            *digit = carry as u8;
            carry >>= 8;
        }
    }

    /// Takes a row out.
    pub fn subtract_row(&mut self, key: &[u8], value: &[u8]) {
        let mut borrow = 0i16;
        for (digit, sub) in self.0.iter_mut().zip(row_hash(key, value)) {
            let difference = i16::from(*digit) - i16::from(sub) - borrow;
            *digit = difference as u8;
            borrow = i16::from(difference < 0);
        }
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn row_hash(key: &[u8], value: &[u8]) -> [u8; 32] {
    const KEY: &[u8; 32] = b"unibus state hash of rows, v1   ";
    let mut hasher = blake3::Hasher::new_keyed(KEY);
    hasher.update(&(key.len() as u32).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize().into()
}
