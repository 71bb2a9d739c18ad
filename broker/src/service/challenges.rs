//! Challenges that this node gave out: single-use nonces, at most so many, each for a minute.

use std::collections::{BTreeSet, VecDeque};

use unibus_proto::limits::{CHALLENGE_LIFETIME, CHALLENGES_MAX};
use unibus_raft_store::env::{Env, Instant, InstantOf};

/// 32 random bytes.
pub(super) type Nonce = [u8; 32];

/// The nonces that are not used up yet. When the table is full the oldest goes: whoever asks for many
/// hurts at most those who are slow.
pub(super) struct Challenges<E: Env> {
    given: VecDeque<(InstantOf<E>, Nonce)>,
    open: BTreeSet<Nonce>,
}

impl<E: Env> Default for Challenges<E> {
    fn default() -> Self {
        Self { given: VecDeque::new(), open: BTreeSet::new() }
    }
}

impl<E: Env> Challenges<E> {
    /// Remembers a new nonce.
    pub(super) fn give(&mut self, now: InstantOf<E>, nonce: Nonce) {
        self.expire(now);
        if self.given.len() >= CHALLENGES_MAX
            && let Some((_, oldest)) = self.given.pop_front()
        {
            self.open.remove(&oldest);
        }
        self.given.push_back((now, nonce));
        self.open.insert(nonce);
    }

    /// Uses a nonce up; true when it was open.
    pub(super) fn take(&mut self, now: InstantOf<E>, nonce: &[u8]) -> bool {
        self.expire(now);
        Nonce::try_from(nonce).is_ok_and(|nonce| self.open.remove(&nonce))
    }

    fn expire(&mut self, now: InstantOf<E>) {
        while let Some(&(given, nonce)) = self.given.front()
            && now.saturating_duration_since(given) >= CHALLENGE_LIFETIME
        {
            self.given.pop_front();
            self.open.remove(&nonce);
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
        challenges.give(start, nonce(1));
        challenges.give(start, nonce(2));
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
        (0..=CHALLENGES_MAX).for_each(|n| challenges.give(start, nonce(n)));
        assert_eq!(challenges.open.len(), CHALLENGES_MAX);
        assert!(!challenges.take(start, &nonce(0)));
        assert!(challenges.take(start + Duration::from_secs(1), &nonce(CHALLENGES_MAX)));
    }
}
