//! Planted bugs, to prove that the checkers catch what they must.
//!
//! Without the cargo feature `mutants` every question is answered `false` at compile time. With it, a
//! test or the simulator switches a bug on by name for the whole process.

#[cfg(feature = "mutants")]
static ENABLED: std::sync::Mutex<std::collections::BTreeSet<&'static str>> =
    std::sync::Mutex::new(std::collections::BTreeSet::new());

/// Whether the planted bug `name` is on.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is(_name: &str) -> bool {
    false
}

/// Whether the planted bug `name` is on.
#[cfg(feature = "mutants")]
pub fn is(name: &str) -> bool {
    ENABLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(name)
}

/// Switches the planted bug `name` on, for the rest of the process or until [`disable_all`].
#[cfg(feature = "mutants")]
pub fn enable(name: &'static str) {
    ENABLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name);
}

/// Switches every planted bug off.
#[cfg(feature = "mutants")]
pub fn disable_all() {
    ENABLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
}
