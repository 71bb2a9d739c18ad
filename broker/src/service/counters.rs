//! What has happened since the node started, for `/metrics`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use unibus_proto::code::ErrorCode;

/// Counts; they only grow.
#[derive(Debug, Default)]
pub struct Counters {
    published: AtomicU64,
    delivered: AtomicU64,
    sign_ins: AtomicU64,
    sign_ins_failed: AtomicU64,
    forwarded: AtomicU64,
    ephemeral_sent: AtomicU64,
    ephemeral_delivered: AtomicU64,
    ephemeral_dropped: AtomicU64,
    rejected: Mutex<BTreeMap<ErrorCode, u64>>,
}

/// The counts of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Messages that were stored for clients of this node.
    pub published: u64,
    /// Timeline entries that were handed to clients of this node.
    pub delivered: u64,
    /// Sign-ins that got a token.
    pub sign_ins: u64,
    /// Sign-ins that were refused.
    pub sign_ins_failed: u64,
    /// Log entries that were sent to the leader on another node: clients go there themselves where they can.
    pub forwarded: u64,
    /// Messages of ephemeral rooms that clients of this node sent.
    pub ephemeral_sent: u64,
    /// Messages of ephemeral rooms that were handed to clients of this node.
    pub ephemeral_delivered: u64,
    /// Messages of ephemeral rooms that found a full queue or lost their connection, each time they did.
    pub ephemeral_dropped: u64,
    /// Requests and messages that were refused, by why.
    pub rejected: BTreeMap<ErrorCode, u64>,
}

impl Counters {
    /// Messages were stored.
    pub(crate) fn published(&self, count: u64) {
        self.published.fetch_add(count, Ordering::Relaxed);
    }

    /// Entries were handed out.
    pub(crate) fn delivered(&self, count: usize) {
        self.delivered.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Somebody tried to sign in.
    pub(crate) fn signed_in(&self, worked: bool) {
        let counter = if worked { &self.sign_ins } else { &self.sign_ins_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A log entry goes to the leader on another node.
    pub(crate) fn forwarded(&self) {
        self.forwarded.fetch_add(1, Ordering::Relaxed);
    }

    /// Ephemeral messages were sent.
    pub(crate) fn ephemeral_sent(&self, count: u64) {
        self.ephemeral_sent.fetch_add(count, Ordering::Relaxed);
    }

    /// Ephemeral messages were handed out.
    pub(crate) fn ephemeral_delivered(&self, count: u64) {
        self.ephemeral_delivered.fetch_add(count, Ordering::Relaxed);
    }

    /// Ephemeral messages were dropped.
    pub(crate) fn ephemeral_dropped(&self, count: u64) {
        self.ephemeral_dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// A request, or a message of one, was refused.
    pub(crate) fn rejected(&self, code: ErrorCode) {
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    /// As they are now.
    pub fn now(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            published: read(&self.published),
            delivered: read(&self.delivered),
            sign_ins: read(&self.sign_ins),
            sign_ins_failed: read(&self.sign_ins_failed),
            forwarded: read(&self.forwarded),
            ephemeral_sent: read(&self.ephemeral_sent),
            ephemeral_delivered: read(&self.ephemeral_delivered),
            ephemeral_dropped: read(&self.ephemeral_dropped),
            rejected: self.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
