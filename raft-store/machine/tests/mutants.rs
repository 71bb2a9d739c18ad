//! The planted bugs do what they say: what the simulator must catch is really there.
#![cfg(feature = "mutants")]

mod common;

use common::{Log, Person, publish};
use unibus_machine::mutants;

#[test]
fn hash_order_makes_replicas_differ() {
    let rows = |log: &mut Log| {
        let (alice, subjects) = (Person::new("alice"), ["a", "b", "c", "d", "e"]);
        log.apply(alice.create("room"));
        log.apply(publish(subjects.iter().map(|producer| alice.group("room", producer, 1, &["x"])).collect()));
        log.machine.rows().clone()
    };
    let straight = rows(&mut Log::shard());
    assert!((0..20).all(|_| rows(&mut Log::shard()) == straight));
    mutants::enable(mutants::HASH_ORDER_IN_APPLY);
    assert!((0..20).any(|_| rows(&mut Log::shard()) != straight));
    mutants::disable_all();
}
