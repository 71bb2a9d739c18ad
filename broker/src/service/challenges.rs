//! Challenges that this node gave out: single-use nonces, at most so many, each for a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use unibus_proto::limits::{CHALLENGE_LIFETIME, CHALLENGES_MAX};
use unibus_raft_store::env::{Env, Instant, InstantOf};

/// 32 random bytes.
pub(super) type Nonce = [u8; 32];

/// Challenges of one source: whoever asks for more loses his own oldest, nobody else's.
const PER_SOURCE_MAX: usize = CHALLENGES_MAX / 10;

struct Given<E: Env> {
    at: InstantOf<E>,
    nonce: Nonce,
    source: Option<IpAddr>,
}

/// The nonces that are not used up yet. When the table is full the oldest goes: many sources that ask for
/// many hurt at most those who are slow.
pub(super) struct Challenges<E: Env> {
    last: u64,
    given: BTreeMap<u64, Given<E>>,
    open: BTreeMap<Nonce, u64>,
    by_source: BTreeMap<IpAddr, BTreeSet<u64>>,
}

impl<E: Env> Default for Challenges<E> {
    fn default() -> Self {
        Self { last: 0, given: BTreeMap::new(), open: BTreeMap::new(), by_source: BTreeMap::new() }
    }
}

impl<E: Env> Challenges<E> {
    /// Remembers a new nonce, asked for by `source`; calls in process have none.
    pub(super) fn give(&mut self, now: InstantOf<E>, nonce: Nonce, source: Option<IpAddr>) {
        self.expire(now);
        let own = source.and_then(|source| self.by_source.get(&source)).filter(|own| own.len() >= PER_SOURCE_MAX);
        if let Some(oldest) = own.and_then(|own| own.first().copied()) {
            self.remove(oldest);
        } else if self.given.len() >= CHALLENGES_MAX
            && let Some((&oldest, _)) = self.given.first_key_value()
        {
            self.remove(oldest);
        }
        self.last += 1;
        self.given.insert(self.last, Given { at: now, nonce, source });
        self.open.insert(nonce, self.last);
        if let Some(source) = source {
            self.by_source.entry(source).or_default().insert(self.last);
        }
    }

    /// Uses a nonce up; true when it was open.
    pub(super) fn take(&mut self, now: InstantOf<E>, nonce: &[u8]) -> bool {
        self.expire(now);
        let number = Nonce::try_from(nonce).ok().and_then(|nonce| self.open.get(&nonce).copied());
        number.is_some_and(|number| self.remove(number))
    }

    fn remove(&mut self, number: u64) -> bool {
        let Some(Given { nonce, source, .. }) = self.given.remove(&number) else { return false };
        self.open.remove(&nonce);
        if let Some(source) = source
            && let Some(own) = self.by_source.get_mut(&source)
        {
            own.remove(&number);
            if own.is_empty() {
                self.by_source.remove(&source);
            }
        }
        true
    }

    fn expire(&mut self, now: InstantOf<E>) {
        while let Some((&number, Given { at, .. })) = self.given.first_key_value()
            && now.saturating_duration_since(*at) >= CHALLENGE_LIFETIME
        {
            self.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use unibus_raft_store::env::now;
    use unibus_raft_store::testing::TestEnv;

    use super::*;

    fn nonce(n: usize) -> Nonce {
        unibus_proto::signed::sha256(&n.to_le_bytes())
    }

    #[test]
    fn a_nonce_is_good_once_and_for_a_minute() {
        let mut challenges = Challenges::<TestEnv>::default();
        let start = now::<TestEnv>();
        challenges.give(start, nonce(1), None);
        challenges.give(start, nonce(2), None);
        assert!(!challenges.take(start, &nonce(3)));
        assert!(!challenges.take(start, b"short"));
        assert!(challenges.take(start, &nonce(1)));
        assert!(!challenges.take(start, &nonce(1)), "a replay");
        assert!(!challenges.take(start + CHALLENGE_LIFETIME, &nonce(2)), "too late");
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_goes() {
        let mut challenges = Challenges::<TestEnv>::default();
        let start = now::<TestEnv>();
        (0..=CHALLENGES_MAX).for_each(|n| challenges.give(start, nonce(n), None));
        assert_eq!(challenges.open.len(), CHALLENGES_MAX);
        assert!(!challenges.take(start, &nonce(0)));
        assert!(challenges.take(start + Duration::from_secs(1), &nonce(CHALLENGES_MAX)));
    }

    #[test]
    fn a_source_that_asks_for_many_pushes_out_only_its_own() {
        let mut challenges = Challenges::<TestEnv>::default();
        let start = now::<TestEnv>();
        let [flood, honest] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().ok());
        challenges.give(start, nonce(0), honest);
        (1..=2 * CHALLENGES_MAX).for_each(|n| challenges.give(start, nonce(n), flood));
        assert_eq!(challenges.given.len(), PER_SOURCE_MAX + 1);
        assert!(challenges.take(start, &nonce(0)));
        assert!(!challenges.take(start, &nonce(1)), "its own oldest went");
        assert!(challenges.take(start, &nonce(2 * CHALLENGES_MAX)));
        challenges.expire(start + CHALLENGE_LIFETIME);
        assert!(challenges.open.is_empty() && challenges.by_source.is_empty() && challenges.given.is_empty());
    }
}
