//! I15: a subscription gets a message of an ephemeral room at most once, none that nobody sent or that its
//! sender was told did not go, and a removed member none that was sent later than a lease after his removal;
//! later than that nothing of his own is acknowledged either.

use std::collections::{BTreeMap, BTreeSet};

use unibus_proto::limits::LEASE;

use crate::history::{EphemeralSend, History, Listener, Outcome};
use crate::invariants::Violation;

const INVARIANT: &str = "I15 ephemeral messages come at most once, and to and from members only";

fn broken(what: String) -> Result<(), Violation> {
    Err(Violation { invariant: INVARIANT, what })
}

fn check_listener(
    listener: &Listener,
    sends: &BTreeMap<u64, &EphemeralSend>,
    removed_at: Option<u64>,
) -> Result<(), Violation> {
    let (name, mut seen) = (&listener.name, BTreeSet::new());
    for body in &listener.received {
        if !seen.insert(body) {
            return broken(format!("{name} got message {body:016x} twice"));
        }
        let Some(send) = sends.get(body) else {
            return broken(format!("{name} got message {body:016x}, which nobody sent"));
        };
        if send.outcome == Outcome::Refused {
            return broken(format!("{name} got message {body:016x}, though its sender was told that it did not go"));
        }
        if let Some(late) = removed_at.and_then(|at| late(send, at)) {
            return broken(format!(
                "{name} got message {body:016x}, sent {late} ns after his removal was acknowledged"
            ));
        }
    }
    Ok(())
}

fn check_send(send: &EphemeralSend, removed_at: Option<u64>) -> Result<(), Violation> {
    match (send.outcome, removed_at.and_then(|at| late(send, at))) {
        (Outcome::Acked { .. }, Some(late)) => {
            let EphemeralSend { user, body, .. } = send;
            broken(format!("{user} sent message {body:016x} {late} ns after his removal was acknowledged"))
        }
        _ => Ok(()),
    }
}

/// How long after a removal something was sent, if that is longer than a lease.
fn late(send: &EphemeralSend, removed_at: u64) -> Option<u64> {
    send.began.checked_sub(removed_at).filter(|late| *late > LEASE.as_nanos() as u64)
}

/// Whether a listener got what he should not, or somebody sent what he should not.
pub fn check(history: &History) -> Result<(), Violation> {
    let ephemeral = &history.ephemeral;
    ephemeral.sends.iter().try_for_each(|send| check_send(send, ephemeral.removed.get(&send.user).copied()))?;
    let sends = ephemeral.sends.iter().map(|send| (send.body, send)).collect();
    ephemeral
        .listeners
        .iter()
        .try_for_each(|listener| check_listener(listener, &sends, ephemeral.removed.get(&listener.user).copied()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::honest;

    const LATE: u64 = 10 + LEASE.as_nanos() as u64;

    /// Two messages, the second one long after bob was removed.
    fn sent(received: &[u64], user: &str) -> History {
        let mut history = honest();
        let send = |(body, began)| EphemeralSend { user: "alice".into(), body, began, outcome: Outcome::Unknown };
        history.ephemeral.sends = [(1, 5), (2, LATE + 1)].map(send).to_vec();
        history.ephemeral.removed = [("bob".to_string(), 10)].into();
        let listener = Listener { name: format!("{user}@n1"), user: user.into(), received: received.to_vec() };
        history.ephemeral.listeners.push(listener);
        history
    }

    #[test]
    fn passes_what_is_missed() {
        assert_eq!(check(&sent(&[1, 2], "alice")), Ok(()));
        assert_eq!(check(&sent(&[2], "alice")), Ok(()));
        assert_eq!(check(&sent(&[1], "bob")), Ok(()));
    }

    #[test]
    fn catches_what_comes_twice_or_from_nobody() {
        assert!(check(&sent(&[1, 2, 1], "alice")).unwrap_err().what.contains("twice"));
        assert!(check(&sent(&[3], "alice")).unwrap_err().what.contains("nobody sent"));
    }

    #[test]
    fn catches_what_a_removed_member_gets() {
        assert!(check(&sent(&[1, 2], "bob")).unwrap_err().what.contains("after his removal"));
    }

    #[test]
    fn catches_what_a_removed_member_sends() {
        let mut history = sent(&[1], "alice");
        let at = |began, user: &str, outcome| EphemeralSend { user: user.into(), body: 3, began, outcome };
        let acked = Outcome::Acked { at: LATE + 2, sequence: 0 };
        history.ephemeral.sends.extend([
            at(LATE, "bob", acked),
            at(LATE + 1, "alice", acked),
            at(LATE + 1, "bob", Outcome::Refused),
            at(LATE + 1, "bob", Outcome::Unknown),
        ]);
        assert_eq!(check(&history), Ok(()), "within a lease, by a member, refused, or without an answer");
        history.ephemeral.sends.push(at(LATE + 1, "bob", acked));
        assert!(check(&history).unwrap_err().what.contains("bob sent message"));
    }

    #[test]
    fn catches_what_was_refused() {
        let mut history = sent(&[1], "alice");
        history.ephemeral.sends[0].outcome = Outcome::Refused;
        assert!(check(&history).unwrap_err().what.contains("did not go"));
    }
}
