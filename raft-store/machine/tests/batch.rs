//! Commands that share an entry are decided as if each had one of its own.

mod common;

use common::{Log, Person, publish, room_id};
use unibus_proto::code::ErrorCode;
use unibus_proto::limits::COMMANDS_PER_ENTRY_MAX;
use unibus_proto::log::proposal::Command;
use unibus_proto::log::reply::Reply as Answer;
use unibus_proto::log::{CommandBatch, Proposal, Tick};

fn batch(commands: impl IntoIterator<Item = Command>) -> Command {
    let proposal = |command| Proposal { at_ms: 0, command: Some(command) };
    Command::CommandBatch(CommandBatch { commands: commands.into_iter().map(proposal).collect() })
}

#[test]
fn a_batch_makes_the_rows_and_replies_that_its_commands_make_one_by_one() {
    let alice = Person::new("alice");
    let commands = || {
        let unknown = publish(vec![alice.group("no.room", "p", 1, &["lost"])]);
        let known = publish(vec![alice.group("a.b", "p", 1, &["one", "two"])]);
        vec![alice.create("a.b"), alice.create("a.b"), unknown, known, alice.create("c.d"), Command::Tick(Tick {})]
    };
    let (mut together, mut alone) = (Log::shard(), Log::shard());
    let Answer::CommandBatch(found) = together.answer(batch(commands())) else { panic!("one reply for each") };
    let expected: Vec<_> = commands().into_iter().map(|command| alone.apply(command).reply).collect();
    assert_eq!(found.replies, expected);
    assert!(together.machine.rows() == alone.machine.rows(), "rows differ");
    assert!(together.machine.room(room_id("c.d")).is_some());
}

#[test]
fn a_refusal_stops_none_of_the_others() {
    let (alice, mut log) = (Person::new("alice"), Log::shard());
    let meta_only = common::user_add(&alice, unibus_proto::v1::UserRole::Admin, 1);
    let nested = batch([Command::Tick(Tick {})]);
    let Answer::CommandBatch(found) = log.answer(batch([meta_only, nested, alice.create("a.b")])) else {
        panic!("one reply for each")
    };
    let codes = found.replies.iter().map(|reply| match reply.reply.as_ref().unwrap() {
        Answer::Rejected(reject) => Some(reject.error_code()),
        _ => None,
    });
    assert_eq!(codes.collect::<Vec<_>>(), [Some(ErrorCode::Invalid), Some(ErrorCode::Invalid), None]);
}

#[test]
fn a_batch_is_bounded() {
    let many = batch((0..=COMMANDS_PER_ENTRY_MAX).map(|_| Command::Tick(Tick {})));
    assert_eq!(Log::shard().refused(many).error_code(), ErrorCode::Invalid);
}
