//! Planted bugs for the mutation gate: the checkers must catch each one. Compiled to `false` without the
//! feature `mutants`, which no release enables.

/// Assigns sequences to the groups of a batch in the order of a randomly keyed hash: replicas differ.
pub const HASH_ORDER_IN_APPLY: &str = "hash-order-in-apply";

/// Whether the bug of this name is on.
#[cfg(not(feature = "mutants"))]
pub const fn is(_name: &str) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use planted::{disable_all, enable, is};

#[cfg(feature = "mutants")]
mod planted {
    use std::collections::BTreeSet;
    use std::sync::RwLock;

    static ENABLED: RwLock<BTreeSet<String>> = RwLock::new(BTreeSet::new());

    /// Turns the bug of this name on, for the whole process.
    pub fn enable(name: &str) {
        ENABLED.write().expect("no holder panics").insert(name.into());
    }

    /// Turns all bugs off.
    pub fn disable_all() {
        ENABLED.write().expect("no holder panics").clear();
    }

    /// Whether the bug of this name is on.
    pub fn is(name: &str) -> bool {
        ENABLED.read().expect("no holder panics").contains(name)
    }
}
